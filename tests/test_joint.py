"""A generator and a recogniser trained together: who learns from whom, and what is left at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended, Tiny
from faces import draw, write_tree
from PIL import Image

from facesynth import config, modelcard, train, weights
from facesynth.console import UsageError
from facesynth.expression import Judge, load_judge
from facesynth.generators.drawer import FaceDrawer
from facesynth.generators.gan import GanRecipe, layout
from facesynth.generators.joint import JointRecipe, as_crops, intra_class
from facesynth.loop import Loop
from facesynth.photo import to_gray
from facesynth.recipe import Descend, Logs, TrainConfig
from facesynth.training_data import load_faces

Command = Callable[..., Ended]
GAN = {"network": "conv-48", "width": 8, "latent": 8, "loss": "bce", "condition": "label"}


def trained(drawn: Path, out: Path, **losses: float) -> Path:
    """A generator whose recogniser joins it after 30 of 200 steps."""
    return train(
        drawn,
        "fesgan-48",
        out,
        images=3200,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_images=0,
        ema_images=500,
        gan=GAN,
        joint={"from_images": 480, "recognizer_rate": 5},
        network={"width": 8, "dropout": 0.0},
        losses=losses,
        stages={},
        device="cpu",
        precision="fp32",
    ).weights


@pytest.fixture(scope="module")
def joint(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a joint training."""
    return trained(drawn, tmp_path_factory.mktemp("joint"), expression=1.0, intra_class=0.1).parent


def steps_of(drawn: Path, kind: type[GanRecipe], **settings: Any) -> tuple[Any, Loop]:
    """A recipe on the drawn faces, and the loop that steps it: two faces of batch norm's smallest networks at a time."""
    common = {"recipe": "joint" if kind is JointRecipe else "gan", "images": 64, "batch_size": 8, "device": "cpu"}
    common |= {"precision": "fp32", "warmup_images": 0, "gan": GAN | {"width": 2}}
    if kind is JointRecipe:
        common |= {"network": {"width": 2, "dropout": 0.0}}
    told = TrainConfig(**common | settings)
    wanted = layout(told.gan)
    torch.manual_seed(0)
    recipe = kind(told, load_faces(drawn, "cpu", wanted.size, colour=wanted.channels == 3))
    return recipe, Loop(recipe, told, drawn)


# --- who learns from whom ---------------------------------------------------------------------------------------------


def test_the_recogniser_and_another_judge_read_more_of_what_was_trained_with_it(
    drawn: Path, tiny: Tiny, joint: Path, tmp_path: Path
) -> None:
    alone = trained(drawn, tmp_path, expression=0.0, intra_class=0.0).parent

    def surely(folder: Path, judge: Judge) -> float:
        """Mean probability of the class that was asked for."""
        drawer = FaceDrawer(weights.load(str(folder)))
        noise = np.random.default_rng(0).standard_normal((100, drawer.latent_size), np.float32)
        return float(np.mean([judge.predict(drawer.draw([k] * 100, noise)[..., 0])[:, k] for k in range(3)]))

    for folder in (joint, alone):
        assert all(0.5 < value < 2 for value in weights.load(str(folder)).info["diversity"].values())
    own = [surely(folder, load_judge(str(folder / "recognizer.safetensors"))) for folder in (joint, alone)]
    assert own[0] > own[1] + 0.15
    other = [surely(folder, load_judge(str(tiny.judge))) for folder in (joint, alone)]
    assert other[0] > other[1]


def test_the_recogniser_learns_to_read_faces_that_it_has_not_seen(joint: Path, tiny: Tiny) -> None:
    judge = load_judge(str(joint / "recognizer.safetensors"))
    faces = [(label, draw(label, person)) for label in tiny.classes for person in range(2000, 2020)]
    read = judge.predict(np.stack([face for _, face in faces]) / np.float32(255)).argmax(axis=1)
    right = [judge.classes[k] == label for k, (label, _) in zip(read, faces, strict=True)]
    assert np.mean(right) > 0.5  # chance is a third


def test_each_network_is_changed_by_its_own_descent_alone(drawn: Path) -> None:
    recipe, _ = steps_of(drawn, JointRecipe)
    taught: dict[str, set[str]] = {}

    def descend(name: str, loss: Callable[[int], tuple[torch.Tensor, Logs]]) -> Logs:
        for model in recipe.models.values():
            model.zero_grad()
        total, logs = loss(8)
        total.backward()  # type: ignore[no-untyped-call]
        learning = {
            key
            for key, model in recipe.models.items()
            if any(p.grad is not None and p.grad.any() for p in model.parameters())
        }
        taught[name] = learning
        return logs

    checked: Descend = descend
    recipe.step(torch.Generator().manual_seed(0), 0, checked)
    assert taught == {"critic": {"critic"}, "generator": {"generator"}, "recognizer": {"recognizer"}}


def test_real_faces_lead_and_are_not_pulled() -> None:
    real = torch.tensor([[0.0, 0.0], [2.0, 4.0], [9.0, 9.0]], requires_grad=True)
    synthetic = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]], requires_grad=True)
    loss = intra_class(synthetic, torch.tensor([1, 1, 0]), real, torch.tensor([1, 1, 2]))
    assert loss.item() == pytest.approx(((0 + 0) / 2 + (4 + 0) / 2) / 2)  # nobody leads the third
    loss.backward()  # type: ignore[no-untyped-call]
    assert real.grad is None
    assert synthetic.grad is not None
    assert synthetic.grad.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert intra_class(synthetic, torch.tensor([0, 0, 0]), real, torch.tensor([1, 1, 2])).item() == 0


@pytest.mark.parametrize("term", ["expression", "intra_class"])
def test_the_recogniser_teaches_generated_images_and_leaves_real_ones_as_they_are(term: str, drawn: Path) -> None:
    recipe, loop = steps_of(drawn, JointRecipe)
    for _ in range(2):
        loop.step()
    recipe.weight |= {"expression": 0.0, "intra_class": 0.0, term: 1.0}
    generated, real = torch.randn(2, 8, 1, 48, 48).tanh().requires_grad_()
    labels = torch.arange(8) % 3

    def gradients(images: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rng = torch.Generator().manual_seed(0)
        total, _ = recipe._with_others(torch.zeros(()), {}, (images, real), labels, rng)
        return torch.autograd.grad(total, (images, real), allow_unused=True)

    of_generated, of_real = gradients(generated)
    assert of_generated is not None
    assert (of_generated.flatten(1).abs().sum(1) > 0).all()
    assert of_real is None
    (others, _) = gradients(torch.cat([torch.zeros(1, 1, 48, 48), generated[1:]]))
    assert others is not None
    torch.testing.assert_close(others[1:], of_generated[1:])  # each by itself


def test_before_it_begins_the_generator_is_trained_as_if_alone(drawn: Path) -> None:
    alone, steps = steps_of(drawn, GanRecipe)
    recipe, loop = steps_of(drawn, JointRecipe, joint={"from_images": 16})
    first = [parameter.detach().clone() for parameter in recipe.recognizer.parameters()]

    def differs() -> list[bool]:
        pairs = zip(recipe.generator.parameters(), alone.generator.parameters(), strict=True)
        found = [not torch.equal(one, other) for one, other in pairs]
        pairs = zip(recipe.recognizer.parameters(), first, strict=True)
        return [any(found), any(not torch.equal(one, other) for one, other in pairs)]

    for _ in range(2):
        assert loop.step().keys() == steps.step().keys()
    assert differs() == [False, False]
    assert loop.step().keys() - steps.step().keys() >= {"expression", "recognizer", "gradient/recognizer"}
    assert differs() == [True, True]


@pytest.mark.parametrize(
    "gan",
    [
        {"network": "dcgan-64", "condition": "label", "width": 2},
        {"network": "conv-48", "condition": "auxiliary", "loss": "wasserstein-gp", "width": 2},
        {"network": "residual-48", "condition": "projection", "loss": "relativistic", "width": 8, "channels": 3},
    ],
    ids=lambda gan: gan["network"],
)
def test_any_conditional_generator_can_be_joined(gan: dict[str, Any], drawn: Path) -> None:
    recipe, loop = steps_of(drawn, JointRecipe, gan=gan, losses={"expression": 1}, accumulate=3)
    before = [parameter.detach().clone() for parameter in recipe.recognizer.parameters()]
    for _ in range(2):
        logs = loop.step()
    assert all(torch.isfinite(value) for value in logs.values())
    pairs = zip(recipe.recognizer.parameters(), before, strict=True)
    assert not any(torch.equal(new, old) for new, old in pairs)
    (companion,) = recipe.beside(loop.ema).values()
    assert 0 <= companion.figures["held_out_accuracy"] <= 1


def test_a_larger_coloured_image_is_read_as_a_crop_of_it_is() -> None:
    face = draw("happy", 3, 96, colour=True).astype(np.float32) / 255
    crop = as_crops(torch.from_numpy(face).permute(2, 0, 1)[None])
    expected = to_gray(face).reshape(48, 2, 48, 2).mean((1, 3))
    assert np.abs(crop[0, 0].numpy() - expected).max() < 1e-5


# --- what is left -----------------------------------------------------------------------------------------------------


def test_both_weights_say_what_they_are_and_that_they_belong_together(joint: Path, tiny: Tiny) -> None:
    generator, judge = weights.load(str(joint), "generator"), weights.load(str(joint / "recognizer.safetensors"))
    assert judge.kind == "classifier"
    assert generator.info["beside"] == {"recognizer.safetensors": judge.digest}
    assert judge.info["trained_with"] == "generator"
    assert judge.info["images"] == generator.info["images"] == 3200
    assert set(judge.info["thresholds"]) == set(judge.info["held_out_recall"]) == set(tiny.classes)
    published = modelcard.files(joint, "someone/faces")
    assert published["recognizer.safetensors"] == judge.path
    card = published["README.md"]
    assert isinstance(card, bytes)
    assert "## Beside these weights: recognizer.safetensors" in card.decode()
    assert "facesynth balance ./faces --judge hf://someone/faces/recognizer.safetensors" in card.decode()
    assert f"- held out accuracy: {judge.info['held_out_accuracy']:.4g}" in card.decode()
    assert "its opinion of what they make is no\nmeasure of them" in card.decode()


def test_the_generator_fills_classes_and_its_recogniser_gates(
    joint: Path, tiny: Tiny, tmp_path: Path, facesynth: Command
) -> None:
    """Of a dataset that is as blurred as what so short a training draws: it drew it."""
    src, own = tmp_path / "faces", joint / "recognizer.safetensors"
    drawer = FaceDrawer(weights.load(str(joint)))
    for k, (label, count) in enumerate({"happy": 3, "neutral": 6, "surprise": 3}.items()):
        (src / label).mkdir(parents=True)
        noise = np.random.default_rng(k).standard_normal((count, drawer.latent_size), np.float32)
        for n, face in enumerate(drawer.draw([drawer.classes.index(label)] * count, noise)[..., 0]):
            Image.fromarray((255 * face).round().astype(np.uint8)).save(src / label / f"{n}.png")
    flags = ("--identity", "off", "--workers", "1", "--generator", joint)
    for judge, allied in ((tiny.judge, False), (own, True)):
        out = tmp_path / judge.stem
        ended = facesynth("balance", src, *flags, "--judge", judge, "--out", out)
        assert ended.code == 0, ended.err
        assert ("was trained together with the generator" in ended.err) is allied
        run = json.loads((out.with_suffix(".facesynth") / "run.json").read_text())
        assert run["judge_weights"] == weights.load(str(judge)).digest
        assert {label: len(list((out / label).iterdir())) for label in tiny.classes} == dict.fromkeys(tiny.classes, 6)


def test_an_evaluation_by_the_recognisers_features_warns_of_it(
    joint: Path, tmp_path: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path / "cache"))
    real = write_tree(tmp_path / "real", dict.fromkeys(Tiny.classes, 20))
    made = write_tree(tmp_path / "made", dict.fromkeys(Tiny.classes, 8), first_person=1000)
    quick = ("--features", "judge", "--identity", "builtin", "--steps", "2", "--batch-size", "16", "--json")
    said = {}
    for judge in (joint / "recognizer.safetensors", "judge-48"):
        ended = facesynth("evaluate", real, made, *quick, "--judge", judge, "--on-existing", "overwrite")
        assert ended.code == 0, ended.err
        said[str(judge)] = [line for line in json.loads(ended.out)["warnings"] if "trained together" in line]
    assert [len(lines) for lines in said.values()] == [1, 0]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gan: {condition: none}", r"gan\.condition is none; choose label, auxiliary or projection"),
        ("joint: {from_images: 100}", "from_images 100 leaves none of the 100 images to train the recogniser on"),
        (
            "gan: {condition: label, transition: [0, 50]}\njoint: {from_images: 9}",
            r"from_images 9 comes before gan\.transition has let the class in; give 50 or more",
        ),
        ("joint: {shares: 0.5}", r"unknown setting joint\.shares .* Did you mean 'share'\?"),
        ("losses: {identity: 1}", "recipe joint weighs class, penalty, synthetic, expression and intra_class, not"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(text: str, message: str, tmp_path: Path) -> None:
    gan = "" if "gan:" in text else "gan: {condition: label}\n"
    (tmp_path / "my.yaml").write_text(f"recipe: joint\nimages: 100\n{gan}{text}\n")
    with pytest.raises(UsageError, match=message):
        config.load(TrainConfig, {}, preset=str(tmp_path / "my.yaml"))
