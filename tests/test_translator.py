"""Translators (StarGAN): the networks, what can be asked for, which datasets teach it, and that edits do what is asked."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended
from faces import draw, new_faces, write_celeba, write_tree
from PIL import Image, ImageOps
from torch import nn

from facesynth import config, train, training_data, weights
from facesynth.console import UsageError
from facesynth.generators.condition import Group, Vocabulary
from facesynth.generators.translation import LAYOUTS, PatchCritic, Translator
from facesynth.generators.translator import TranslationEditor, TranslatorRecipe, layout
from facesynth.labelled_faces import LabelledFaces, load_labelled
from facesynth.loop import Loop
from facesynth.recipe import TrainConfig, TranslatorSettings

PAIR = ("happy", "neutral")
LEARNS: dict[str, Any] = {"network": "stargan-48", "width": 8, "loss": "relativistic", "critic_steps": 1}

# --- networks ---------------------------------------------------------------------------------------------------------


def numbers(network: nn.Module) -> list[int]:
    """How many numbers each layer holds, in order."""
    layers = [layer for layer in network.modules() if not list(layer.children())]
    counts = [sum(t.numel() for t in layer.state_dict().values()) for layer in layers]
    return [count for count in counts if count]


def test_the_layers_are_those_of_the_papers_tables() -> None:
    with torch.device("meta"):
        translator, critic = Translator("stargan-128", condition=5), PatchCritic("stargan-128", labels=5)
        larger = PatchCritic("stargan-256", labels=5)
    down, block = [25_088, 128, 131_072, 256, 524_288, 512], [589_824, 512, 589_824, 512]
    assert numbers(translator) == [*down, *6 * block, 524_288, 256, 131_072, 128, 9_408]
    strided = [3_136, 131_200, 524_544, 2_097_664, 8_389_632, 33_556_480]
    assert numbers(critic) == [*strided, 18_432, 40_960]
    assert numbers(larger) == [*strided, 18_432, 163_840]  # its class head is twice as high and wide


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("network", "patches"), [("stargan-48", 9), ("stargan-128", 4), ("stargan-256", 16)])
def test_a_face_keeps_its_size_and_its_critic_reads_patches_and_labels(
    network: str, patches: int, channels: int
) -> None:
    side = LAYOUTS[network].size
    images, conditions = torch.randn(2, channels, side, side), torch.eye(4)[:2]
    edited = Translator(network, 4, channels, width=2)(images, conditions)
    assert edited.shape == images.shape
    assert edited.abs().max() <= 1
    scores, logits = PatchCritic(network, 4, channels, width=2)(edited)
    assert scores.shape == (2, patches)
    assert logits is not None
    assert logits.shape == (2, 4)
    assert PatchCritic(network, 0, channels, width=2, images=2)(torch.cat([images, edited], 1))[1] is None


# --- what can be asked for ----------------------------------------------------------------------------------------------

SEVERAL = Vocabulary(
    (
        (Group("class", ("happy", "sad")), Group("pose", ("left", "front", "right"))),
        (Group("class", ("sad", "fear")), Group("Male", ("no", "yes"), "switch")),
    )
)


def test_a_condition_holds_one_datasets_labels_and_says_whose_they_are() -> None:
    first = SEVERAL.condition(torch.tensor([[0.0, 1, 0, 0, 1]]), 0)
    assert first.tolist() == [[0, 1, 0, 0, 1, 0, 0, 0, 1, 0]]
    second = SEVERAL.condition(torch.tensor([[1.0, 0, -1]]), 1)
    assert second.tolist() == [[0] * 5 + [1, 0, -1] + [0, 1]]
    alone = Vocabulary(SEVERAL.datasets[:1])
    assert (alone.size, alone.labels) == (5, 5)  # no mask
    assert Vocabulary.of(json.loads(json.dumps(SEVERAL.describe()))) == SEVERAL


def test_the_class_loss_is_about_what_is_known_alone() -> None:
    values = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 0]])  # of the first face the pose is not known
    right = torch.tensor([[9.0, -9, 0, 0, 0, 0, 0, 0], [-9, 9, 0, 9, 0, 0, 0, 0]])

    def loss(logits: torch.Tensor, values: torch.Tensor, dataset: int) -> torch.Tensor:
        assert SEVERAL.losses == ("class",)
        return SEVERAL.loss(logits, values, dataset)["class"]

    assert loss(right, values, 0) < 1e-3
    elsewhere = right.clone()
    elsewhere[0, 2] = elsewhere[:, 5] = 50
    assert loss(elsewhere, values, 0) == loss(right, values, 0)
    wrong = right.clone()
    wrong[1, 2] = 50
    assert loss(wrong, values, 0) > 40
    switch = torch.tensor([[0.0, 1, -1]])
    logits = torch.zeros(1, 8)
    logits[0, 6:] = torch.tensor([9.0, -9])
    assert loss(logits, switch, 1) < 1e-3
    assert loss(logits, -switch * torch.tensor([-1, -1, 1]), 1) > 8


def test_groups_are_left_as_a_whole_and_filled_with_what_is_known() -> None:
    values = torch.tensor([[0.0, 1, 0, 0, 1]]).repeat(1000, 1)
    left = SEVERAL.leave(values, 0.25, torch.Generator().manual_seed(0), 0)
    kept = torch.stack([left[:, :2].any(1), left[:, 2:].any(1)], 1)
    assert torch.equal(left[:, :2], values[:, :2] * kept[:, :1])
    assert torch.equal(left[:, 2:], values[:, 2:] * kept[:, 1:])
    assert torch.allclose(kept.float().mean(0), torch.tensor(0.75), atol=0.05)
    assert kept.float().T.corrcoef()[0, 1].abs() < 0.1
    source = torch.tensor([[1.0, 0, 1, 0, 0]]).repeat(1000, 1)
    assert torch.equal(
        SEVERAL.fill(left, source, 0), torch.where(kept.repeat_interleave(torch.tensor([2, 3]), 1), values, source)
    )


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("translator: {loss: wasserstein}", "choose bce, wasserstein-gp or relativistic"),
        ("translator: {loss: wasserstein-gp, label_smoothing: 0.1}", "label_smoothing goes with loss bce alone"),
        ("translator: {network: stargan-64}", r"translator\.network in .*should be 'stargan-48'"),
        ("network: {width: 8}", r"give translator: {network, channels, width}"),
        ("translator: {columns: [age], measures: [age]}", "holds either labels .columns. or numbers .measures."),
        ("schedule: constant\ndecay_share: 0.3", "goes with schedule linear alone"),
        ("losses: {clas: 1}", "weighs class, measures, .* and penalty, not clas"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"recipe: translator\nimages: 100\n{text}\n")
    with pytest.raises(UsageError, match=message):
        config.load(TrainConfig, {}, preset=str(tmp_path / "my.yaml"))


def test_further_datasets_are_for_translators(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="also goes with recipe translator alone"):
        config.load(TrainConfig, {"also": [str(tmp_path)]}, preset="cgan-48")


@pytest.mark.parametrize(
    ("told", "expected"), [({}, [0.01, 0.01, 0.008, 0.006, 0.004, 0.002]), ({"decay_share": 0.2}, [0.01] * 5 + [0.005])]
)
def test_the_learning_rate_falls_at_the_end(told: dict[str, float], expected: list[float], drawn: Path) -> None:
    _, loop = recipe_of(drawn, schedule="linear", images=40, critic_steps=1, **told)
    rates = []
    for _ in range(10):
        loop.step()
        rates.append(loop.recipe.optimizers["translator"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01] * 4 + expected)


# --- training -----------------------------------------------------------------------------------------------------------


def recipe_of(
    src: Path,
    schedule: str = "constant",
    images: int = 96,
    also: tuple[str, ...] = (),
    decay_share: float | None = None,
    **translator: Any,
) -> tuple[TranslatorRecipe, Loop]:
    """A recipe on a dataset, and the loop that steps it."""
    settings: dict[str, Any] = {"recipe": "translator", "images": images, "batch_size": 4, "device": "cpu"}
    settings |= {"precision": "fp32", "schedule": schedule, "warmup_images": 0, "learning_rate": 0.01}
    settings["decay_share"] = decay_share
    told = config.load(TrainConfig, settings | {"translator": {"network": "stargan-48", "width": 2} | translator})
    wanted = layout(told.translator)
    faces = load_labelled(src, also, told.translator, "cpu", wanted.size, wanted.channels == 3)
    recipe = TranslatorRecipe(told, faces)
    return recipe, Loop(recipe, told, src)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Everything that translators are asked for from here on."""
    seen: list[torch.Tensor] = []
    forward = Translator.forward

    def listen(self: Translator, images: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        seen.append(conditions)
        return forward(self, images, conditions)

    monkeypatch.setattr(Translator, "forward", listen)
    return seen


@pytest.mark.parametrize("identity_critic", [False, True])
@pytest.mark.parametrize("loss", ["bce", "wasserstein-gp", "relativistic"])
def test_losses_and_critics_combine(loss: str, identity_critic: bool, drawn: Path) -> None:
    told: dict[str, Any] = {"loss": loss, "identity_critic": identity_critic, "critic_steps": 2, "channels": 3}
    recipe, loop = recipe_of(drawn, **told)
    kernels = [p for model in recipe.models.values() for p in model.parameters() if p.ndim > 1]
    before = [kernel.detach().clone() for kernel in kernels]
    for _ in range(2):
        logs = loop.step()
    assert ("critic_identity" in logs, "identity" in logs) == (identity_critic, identity_critic)
    assert all(torch.isfinite(value) for value in logs.values())
    assert not any(torch.equal(old, new) for old, new in zip(before, kernels, strict=True))


def learn(src: Path, out: Path, images: int = 1200, **settings: Any) -> Path:
    """Weights of a small translator that has learned something."""
    told: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 8, "ema_images": 200, "seed": 3}
    told |= {"learning_rate": 2e-3, "images": images, "translator": LEARNS | settings.pop("translator", {})}
    return train(src, "stargan-48", out, **told, **settings).weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of two classes to learn from."""
    return write_tree(tmp_path_factory.mktemp("pair") / "faces", dict.fromkeys(PAIR, 60))


@pytest.fixture(scope="module")
def learned(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a translator between them."""
    return learn(pair, tmp_path_factory.mktemp("translator"))


def proposed(editor: TranslationEditor, crops: np.ndarray, target: int, intensity: float = 1.0) -> np.ndarray:
    """The differences that an editor proposes toward one class."""
    count = len(crops)
    chance = [np.random.default_rng(k) for k in range(count)]
    edits = editor.propose(crops, [0] * count, [target] * count, chance, np.full(count, intensity, np.float32))
    assert edits.flow is None
    return edits.difference


def test_another_target_changes_a_face_as_it_changes_real_ones(learned: Path) -> None:
    editor, crops = TranslationEditor(weights.load(str(learned))), new_faces(*PAIR)
    assert (editor.classes, editor.size, editor.channels) == (list(PAIR), 48, 1)
    real = crops[:15].mean(0) - crops[15:].mean(0)
    along = ((proposed(editor, crops, 0) - proposed(editor, crops, 1)) * real).sum((1, 2))
    assert (along > 0).mean() > 0.9
    again = proposed(editor, crops[3:4], 1)
    assert np.abs(again - proposed(editor, crops, 1)[3:4]).max() < 1e-5  # a face does not depend on its batch


def test_its_weights_vary_photos_of_another_size_in_colour(
    learned: Path, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    src = write_tree(tmp_path / "faces", dict.fromkeys(PAIR, 6), size=61, mode="RGB", first_person=700)
    flags = ("--generator", learned, "--expressions", "all", "--identity", "off", "--workers", 1)
    ended = facesynth("augment", src, *flags, "--max-attempts", 3)
    assert ended.code in (0, 3), ended.err  # the gates take what they take
    rows = made(tmp_path / "faces-augmented")
    assert len(rows) >= 4
    for row in rows:
        assert row["generator"] == f"model@{weights.file_digest(learned)}"
        edited = np.asarray(Image.open(tmp_path / "faces-augmented" / row["file_name"])).astype(float)
        source = np.asarray(Image.open(src / row["source"])).astype(float)
        assert edited.shape == (61, 61, 3)
        assert 1 < np.abs(edited - source).mean() < 80
        gray = (edited - source)[(edited.max(2) < 255) & (edited.min(2) > 0)]
        assert np.abs(gray - gray.mean(1, keepdims=True)).max() <= 1  # a gray translator leaves the colours alone


def made(out: Path) -> list[dict[str, str]]:
    """Rows of the synthetic images of an output."""
    with (out / "metadata.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["synthetic"] == "true"]


# --- several groups -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lit(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair with a column `light` in metadata.csv, which every tenth face leaves open."""
    src = tmp_path_factory.mktemp("lit") / "faces"
    rows = ["file_name,light"]
    for number, path in enumerate(sorted(pair.rglob("*.png"))):
        name, light = path.relative_to(pair), ("dim", "bright")[number // 2 % 2]
        face = np.asarray(Image.open(path)) * 0.5 + (0 if light == "dim" else 120)
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face.astype(np.uint8)).save(src / name)
        rows.append(f"{name.as_posix()},{'' if number % 10 == 9 else light}")
    (src / "metadata.csv").write_text("\n".join(rows) + "\n")
    return src


def load_small(src: Path, *also: str, colour: bool = False, **settings: Any) -> LabelledFaces:
    """A dataset as stargan-48 reads it."""
    return load_labelled(src, also, TranslatorSettings(network="stargan-48", **settings), "cpu", 48, colour)


def test_columns_of_metadata_become_groups(lit: Path) -> None:
    faces = load_small(lit, columns=("light",))
    assert faces.groups == (Group("class", PAIR), Group("light", ("bright", "dim")))
    assert torch.equal(faces.values[:, :2].argmax(1), faces.labels)
    light = faces.crops.float().mean((1, 2)) > 110
    known = faces.values[:, 2:].any(1)
    assert (~known).sum() == 12
    assert torch.equal(faces.values[known, 2] == 1, light[known])
    with pytest.raises(UsageError, match=r"no column 'ligth' .* Did you mean 'light'\?"):
        load_small(lit, columns=("ligth",))


def test_a_column_of_numbers_is_no_group(pair: Path, tmp_path: Path) -> None:
    rows = [f"{path.relative_to(pair).as_posix()},{k}" for k, path in enumerate(sorted(pair.rglob("*.png")))]
    for label in PAIR:
        (tmp_path / label).symlink_to(pair / label)
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,number", *rows]))
    with pytest.raises(UsageError, match="has 120 different values; a translator learns from 2 to 50"):
        load_small(tmp_path, columns=("number",))


def test_some_groups_are_not_asked_for_where_there_are_several(lit: Path, asked: list[torch.Tensor]) -> None:
    def left(**told: Any) -> torch.Tensor:
        """The share of faces for which the class, and the light, is left open: the way there, then the way back."""
        asked.clear()
        _, loop = recipe_of(lit, critic_steps=1, **told)
        for _ in range(40):
            loop.step()
        there, back = torch.cat(asked[1::3]), torch.cat(asked[2::3])
        return torch.stack([(way.unflatten(1, (-1, 2)) == 0).all(2).float().mean(0) for way in (there, back)])

    some = left(columns=["light"], leave=0.4)
    assert (some[0] - torch.tensor([0.4, 0.46])).abs().max() < 0.12  # of a tenth the light is not known
    assert some[1, 0] == 0
    assert left(columns=["light"], leave=0)[0, 0] == 0
    assert not left(leave=0.4).any()


def test_a_face_is_asked_for_in_one_group_and_left_alone_in_the_other(lit: Path, tmp_path: Path) -> None:
    told = {"columns": ["light"], "identity_critic": True}
    loaded = weights.load(str(learn(lit, tmp_path, 1600, translator=told)))
    crops = new_faces(*PAIR) * np.float32(0.5)
    crops[::2] += 0.47  # every other face is bright
    light = {"dim": -1, "bright": 1}
    shift = {name: proposed(TranslationEditor(loaded, "cpu", {"light": name}), crops, 1).mean((1, 2)) for name in light}
    assert (shift["bright"] - shift["dim"] > 0.2).mean() > 0.9
    left = proposed(TranslationEditor(loaded), crops, 1).mean((1, 2))
    between = (left - shift["dim"]) / (shift["bright"] - shift["dim"])
    assert between[::2].mean() > 0.85  # bright ones stay bright
    assert between[1::2].mean() < 0.15


# --- several datasets, and CelebA ---------------------------------------------------------------------------------------


def test_celeba_is_read_with_its_attributes_and_splits(tmp_path: Path) -> None:
    src = write_celeba(tmp_path / "celeba")
    faces = load_small(src, colour=True, attributes=("Young", "Smiling"))
    assert faces.groups == (Group("Young", ("no", "yes"), "switch"), Group("Smiling", ("no", "yes"), "switch"))
    assert faces.crops.shape == (30, 48, 48, 3)  # the test images are not read
    training, held = ([k for k in range(40) if k % 4 in part] for part in ((0, 3), (1,)))
    assert faces.held.tolist() == list(range(20, 30))
    expected = [[1.0 if k % 3 else -1, 1.0 if k < 20 else -1] for k in training + held]
    assert faces.values.tolist() == expected
    first = draw("happy", 0, 178, colour=True).astype(float)
    assert np.abs(faces.crops[0].numpy().mean((0, 1)) - first.mean((0, 1))).max() < 1.5  # nothing of the border
    with pytest.raises(
        UsageError, match=r"no attribute 'Smilling'.* Did you mean 'Smiling'\? Attributes: Smiling, Young"
    ):
        load_small(src, attributes=("Smilling",))
    (src / "img_align_celeba/000001.png").unlink()
    assert len(load_small(src, attributes=("Young",)).crops) == 29
    whole = load_small(write_celeba(tmp_path / "whole", split=False), attributes=("Young",))
    assert len(whole.crops) == 40
    assert 0 < len(whole.held) < 20


def test_beside_tight_faces_celeba_is_cut_as_tightly(pair: Path, tmp_path: Path) -> None:
    celeba = write_celeba(tmp_path / "celeba")
    faces = load_small(pair, str(celeba), attributes=("Young",))
    assert faces.view == "tight"
    assert load_small(celeba, attributes=("Young",)).view == "celeba"
    image = Image.open(celeba / "img_align_celeba/000001.png").convert("L")
    # Eyes, nose and mouth lie so that a tight crop is 106 pixels wide.
    tight = np.asarray(image.resize((48, 48), Image.Resampling.BOX, (34, 70, 141, 176)))
    assert np.corrcoef(faces.also[0].crops[0].numpy().ravel(), tight.ravel())[0, 1] > 0.9


@pytest.mark.real
def test_an_editor_sees_as_much_of_a_photo_as_in_its_training(
    smiles: Path, pack: Path, lfw350: Path, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    for k, path in enumerate(sorted(lfw350.glob("happy/*.jpg"))[:4]):
        photo = tmp_path / "src" / ("happy" if k == 0 else "neutral") / path.name
        photo.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.expand(Image.open(path), 200, "white").save(photo)  # a face with much around it
    loaded = weights.load(str(smiles))
    with torch.no_grad():
        loaded.module.layers[-2].weight.zero_()  # all that it sees turns gray

    def grayed(view: str) -> float:
        """Share of the photo that changes."""
        weights.save(tmp_path / f"{view}.safetensors", "translator", loaded.module, loaded.info | {"view": view})
        flags = ("--generator", tmp_path / f"{view}.safetensors", "--attributes", "Smiling=yes")
        flags += ("--intensity", "0.5,0.5", "--max-attempts", 1)
        common = ("--identity-model", pack, "--workers", 1, "--out", tmp_path / view)
        ended = facesynth("augment", tmp_path / "src", *flags, *common)
        assert ended.code in (0, 3), ended.err
        (made,) = (tmp_path / f"{view}.facesynth").glob("wave-00/*/happy/*.jpg")  # no gate lets it pass
        before, after = (
            np.asarray(Image.open(path).convert("L")).astype(float)
            for path in (next((tmp_path / "src/happy").iterdir()), made)
        )
        return float((np.abs(after - before) > 8).mean())

    assert loaded.info["view"] == "celeba"
    wide, tight = grayed("celeba"), grayed("tight")
    assert 0.05 < tight < 0.5 * wide


def test_crops_beyond_the_memory_are_read_from_disk(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = load_small(pair)
    monkeypatch.setattr(training_data, "IN_MEMORY", 0)
    beyond = load_small(pair)
    assert torch.equal(beyond.crops, within.crops)
    assert isinstance(training_data.room((3, 4)), np.memmap)


def test_datasets_with_other_labels_take_turns(pair: Path, tmp_path: Path, asked: list[torch.Tensor]) -> None:
    celeba = write_celeba(tmp_path / "celeba")
    recipe, loop = recipe_of(pair, also=(str(celeba),), attributes=("Smiling", "Young"), critic_steps=1)
    for number in range(4):
        asked.clear()
        loop.step()
        for conditions in asked:  # two classes, two attributes, the mask
            assert conditions[:, 4:].tolist() == [[1 - number % 2, number % 2]] * 4
            assert not conditions[:, (2, 0)[number % 2] :][:, :2].any()
    assert recipe.critics["realism"].labels.out_channels == 4


def test_each_dataset_is_asked_for_what_it_knows(pair: Path, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "other", {"fear": 40, "happy": 40})
    celeba = write_celeba(tmp_path / "celeba")
    told: dict[str, Any] = {"also": [str(other), str(celeba)], "translator": {"attributes": ["Smiling", "Young"]}}
    loaded = weights.load(str(learn(pair, tmp_path / "out", 24, **told)))
    crops = new_faces("sad", each=3)
    faces = torch.from_numpy(crops)[:, None] * 2 - 1

    def by_hand(*conditions: list[float]) -> np.ndarray:
        edited = faces
        for condition in conditions:
            edited = loaded.module(edited, torch.tensor([condition]).repeat(3, 1))
        return ((edited - faces) / 2)[:, 0].numpy()

    own, fear = [1.0, 0, 0, 0, 0, 0, 1, 0, 0], [0.0, 0, 1, 0, 0, 0, 0, 1, 0]
    young = [0.0, 0, 0, 0, 0, -1, 0, 0, 1]
    editor = TranslationEditor(loaded)
    assert editor.classes == ["happy", "neutral", "fear"]  # happy is asked of the first dataset that knows it
    np.testing.assert_allclose(proposed(editor, crops, 0), by_hand(own), atol=1e-5)
    np.testing.assert_allclose(proposed(editor, crops, 2), by_hand(fear), atol=1e-5)
    both = TranslationEditor(loaded, "cpu", {"Young": "no"})
    np.testing.assert_allclose(proposed(both, crops, 2, 0.5), by_hand(fear, young) / 2, atol=1e-5)


@pytest.fixture(scope="module")
def smiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that know attributes alone."""
    folder = tmp_path_factory.mktemp("smiles")
    return learn(write_celeba(folder / "celeba"), folder / "out", 24, translator={"attributes": ["Smiling", "Young"]})


def test_attributes_alone_keep_the_expression(smiles: Path, tmp_path: Path, facesynth: Callable[..., Ended]) -> None:
    src = write_tree(tmp_path / "faces", {"happy": 4, "surprise": 4}, first_person=700)
    common = ("--generator", smiles, "--identity", "off", "--workers", 1, "--max-attempts", 1, "--intensity", "0.1,0.2")
    for command, *flags in (("balance", "--target", "uniform:6"), ("augment", "--expressions", "all"), ("augment",)):
        refused = facesynth(command, src, *common, *flags)
        assert refused.code == 2
        assert "changes attributes and no expressions; use it by facesynth augment" in refused.err
    ended = facesynth("augment", src, *common, "--attributes", "Smiling=yes, Young=no")
    assert ended.code in (0, 3), ended.err
    assert json.loads((tmp_path / "faces-augmented.facesynth/run.json").read_text())
    rows = made(tmp_path / "faces-augmented")
    assert all(row["label"] == row["source_label"] for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--attributes", "Smilin=yes"), r"Did you mean 'Smiling'\? It knows Smiling=no\|yes; Young=no\|yes"),
        (("--attributes", "Smiling=maybe"), "does not know it"),
        (("--attributes", "Smiling"), "give NAME=VALUE with commas between"),
        (("--attributes", "Smiling=yes", "--generator", "editor-48"), "editor-48 knows no attributes"),
        (("--attributes", "Smiling=yes", "--method", "classic"), "classic augmentation changes none"),
    ],
)
def test_attributes_that_are_not_known_are_refused(
    flags: tuple[str, ...], message: str, smiles: Path, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    src = write_tree(tmp_path / "faces", {"happy": 2, "surprise": 2})
    ended = facesynth("augment", src, "--generator", smiles, "--identity", "off", *flags)
    assert ended.code == 2
    assert re.search(message, " ".join(ended.err.split()))


def test_weights_that_were_always_told_everything_have_to_be(tmp_path: Path) -> None:
    told = {"attributes": ["Smiling", "Young"], "leave": 0}
    loaded = weights.load(str(learn(write_celeba(tmp_path / "celeba"), tmp_path / "out", 24, translator=told)))
    with pytest.raises(UsageError, match=r"leave 0, so that it has to be told all attributes: Smiling=no\|yes; Young"):
        TranslationEditor(loaded, "cpu", {"Smiling": "yes"})
    TranslationEditor(loaded, "cpu", {"Smiling": "yes", "Young": "no"})


def test_the_command_learns_from_further_datasets(pair: Path, tmp_path: Path, facesynth: Callable[..., Ended]) -> None:
    (tmp_path / "my.yaml").write_text(
        "recipe: translator\nimages: 12\ntranslator: {network: stargan-48, width: 2, critic_steps: 1}\n"
    )
    others = [write_tree(tmp_path / name, {name: 40, "angry": 40}) for name in ("sad", "fear")]
    flags = (
        "--preset",
        tmp_path / "my.yaml",
        "--out",
        tmp_path / "out",
        "--batch-size",
        6,
        "--device",
        "cpu",
        "--json",
    )
    ended = facesynth("train", pair, *flags, "--also", others[0], "--also", others[1])
    assert ended.code == 0, ended.err
    classes = TranslationEditor(weights.load(json.loads(ended.out)["weights"])).classes
    assert classes == ["happy", "neutral", "angry", "sad", "fear"]
