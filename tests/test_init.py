"""Fine-tuning: `--init` with the same classes, with new ones and without old ones, frozen layers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended, Tiny
from faces import draw, write_tree

from facesynth import console, train, weights
from facesynth.console import UsageError
from facesynth.expression import load_judge
from facesynth.generators.gan import GanRecipe
from facesynth.weights import load

STILL: dict[str, Any] = {"learning_rate": 1e-30, "warmup_images": 0}
"""A training that leaves parameters where they are."""

SMALL: dict[str, dict[str, Any]] = {
    "judge-48": {"network": {"width": 8, "dropout": 0.0}},
    "embedder-48": {"network": {"width": 4, "size": 8}},
    "editor-48": {"network": {"style": 2, "channels": [8, 8, 8]}, "judge": None, "embedder": None},
    "recognizer": {"network": {"width": 4, "dropout": 0.0}},
    "cgan-48": {"gan": {"network": "conv-48", "condition": "label", "width": 4, "latent": 8}},
    "acgan-48": {"gan": {"network": "conv-48", "condition": "auxiliary", "width": 4, "latent": 8}},
    "faces-48": {"gan": {"network": "residual-48", "loss": "relativistic", "condition": "projection", "width": 8}},
    "dcgan-64": {"gan": {"network": "dcgan-64", "width": 2}},
    "stargan-48": {"translator": {"network": "stargan-48", "width": 2, "critic_steps": 1}},
}
SMALL_NETWORK = {"recognizer": {"network": {"architecture": "small"}}}
CRITICLESS = ("judge-48", "embedder-48", "recognizer")
COMMON: dict[str, Any] = {"images": 24, "batch_size": 6, "device": "cpu", "precision": "fp32", "seed": 3}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are printed once a process; each test hears its own."""
    monkeypatch.setattr(console._State, "said", set())


def settings(preset: str, tiny: Tiny, **more: Any) -> dict[str, Any]:
    guides = {"judge": str(tiny.judge), "embedder": str(tiny.embedder)} if preset == "editor-48" else {}
    return COMMON | SMALL[preset] | guides | more


@pytest.fixture(scope="module")
def trained(drawn: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Weights of a preset, of tiny size, that know the drawn faces' classes."""
    folder = tmp_path_factory.mktemp("trained")

    def weights_of(preset: str) -> Path:
        out = folder / preset
        return (
            out / "model.safetensors" if out.exists() else train(drawn, preset, out, **settings(preset, tiny)).weights
        )

    return weights_of


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(load(str(path)).module.state_dict())


# --- where it starts --------------------------------------------------------------------------------------------------


def test_with_the_same_classes_a_training_starts_where_the_weights_were(
    drawn: Path, tiny: Tiny, tmp_path: Path
) -> None:
    before = load(str(tiny.folder / "judge" / "model.safetensors"))
    frozen = STILL | {"freeze": "trunk"}  # batch norm would follow each batch
    result = train(drawn, "judge-48", tmp_path / "out", init=str(before.path), **COMMON | frozen)
    assert result.figures["held_out_accuracy"] == before.info["held_out_accuracy"] > 0.5
    assert result.figures["thresholds"] == pytest.approx(before.info["thresholds"], abs=0.01)  # the file holds fp16
    now = tensors(result.weights)
    for name, tensor in before.module.state_dict().items():
        assert torch.equal(tensor, now[name]), name


@pytest.mark.parametrize("preset", SMALL)
def test_every_kind_goes_on_from_its_weights_and_learns(
    preset: str, drawn: Path, tiny: Tiny, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """The network is built as the weights were, whatever size the preset says."""
    told = {"judge": str(tiny.judge), "embedder": str(tiny.embedder)} if preset == "editor-48" else {}
    told |= SMALL_NETWORK.get(preset, {})
    still = train(drawn, preset, tmp_path / "still", init=str(trained(preset)), **COMMON | told | STILL)
    at_once = {} if preset in CRITICLESS else {"critic_first": 0}
    learned = train(drawn, preset, tmp_path / "out", init=str(trained(preset)), **COMMON | told | at_once)
    before, same, after = tensors(trained(preset)), tensors(still.weights), tensors(learned.weights)
    learns = {name for name, _ in load(str(still.weights)).module.named_parameters()}
    assert all(torch.equal(before[name], same[name]) for name in learns)
    assert any(not torch.equal(before[name], after[name]) for name in learns)


def test_the_critic_learns_alone_at_first(
    drawn: Path, tiny: Tiny, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = COMMON | {"init": str(trained("faces-48"))}
    alone = train(drawn, "faces-48", tmp_path / "alone", **common | {"critic_first": 24})
    assert "learning rate 0.00013, a third of the preset's" in capsys.readouterr().err
    before = tensors(trained("faces-48"))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(alone.weights).items())
    logs = [json.loads(line) for line in (tmp_path / "alone/log.jsonl").read_text().splitlines()]
    assert logs[0]["gradient/critic"] > 0
    after = tensors(train(drawn, "faces-48", tmp_path / "then", **common | {"critic_first": 12}).weights)
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


# --- classes ----------------------------------------------------------------------------------------------------------


def accuracy(judge: Path, label: str) -> float:
    reader = load_judge(str(judge))
    faces = np.stack([draw(label, person) for person in range(5000, 5040)]) / np.float32(255)
    return float((reader.predict(faces).argmax(axis=1) == reader.classes.index(label)).mean())


def test_a_new_class_is_learned_and_the_old_ones_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    common = COMMON | {"images": 2400, "batch_size": 40, "learning_rate": 0.02}
    two = write_tree(tmp_path / "two", {"happy": 60, "neutral": 60})
    old = train(two, "judge-48", tmp_path / "old", **common | SMALL["judge-48"])
    three = write_tree(tmp_path / "three", {"happy": 60, "neutral": 60, "surprise": 60}, first_person=500)
    for name, spelling in (("happy", "Joy"), ("neutral", "1_neutral"), ("surprise", "0_Surprised")):
        (three / name).rename(three / spelling)
    new = train(three, "judge-48", tmp_path / "new", init=str(old.weights), **common | {"learning_rate": 0.007})
    assert load(str(new.weights)).info["classes"] == ["happy", "neutral", "surprise"]
    assert min(accuracy(new.weights, label) for label in ("happy", "neutral", "surprise")) > 0.6


def test_classes_without_images_stay_as_the_weights_know_them(drawn: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Of happy and contempt alone: neutral and surprise keep their part of the network, and their figures."""
    faces = write_tree(tmp_path / "faces", {"happy": 60, "angry": 60})
    (faces / "angry").rename(faces / "contempt")
    old = load(str(tiny.folder / "judge" / "model.safetensors"))
    result = train(faces, "judge-48", tmp_path / "out", init=str(old.path), weight_decay=0, warmup_images=0, **COMMON)
    new = load(str(result.weights))
    assert new.info["classes"] == ["happy", "neutral", "surprise", "contempt"]
    assert new.info["absent"] == ["neutral", "surprise"]
    assert set(new.info["thresholds"]) == set(new.info["classes"])
    for label, at in (("neutral", 1), ("surprise", 2)):
        assert new.info["thresholds"][label] == old.info["thresholds"][label]
        assert torch.equal(new.module.head.weight[at], old.module.head.weight[at])
    assert not torch.equal(new.module.head.weight[0], old.module.head.weight[0])
    assert "no images of neutral, surprise" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("preset", SMALL)
def test_every_kind_takes_new_classes_and_does_without_old_ones(
    preset: str, drawn: Path, tiny: Tiny, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    faces = write_tree(tmp_path / "faces", {"angry": 60, "happy": 60, "surprise": 60})
    told = COMMON | STILL | SMALL_NETWORK.get(preset, {})
    if preset == "editor-48":
        others = write_tree(tmp_path / "others", dict.fromkeys(("angry", "happy", "sad", "surprise"), 60))
        judge = train(others, "judge-48", tmp_path / "judge", **COMMON | SMALL["judge-48"]).weights
        told |= {"judge": str(judge), "embedder": str(tiny.embedder)}
    result = train(faces, preset, tmp_path / "out", init=str(trained(preset)), **told)
    old, new = load(str(trained(preset))), load(str(result.weights))
    if preset in ("dcgan-64", "embedder-48"):  # they know no classes
        assert new.info["classes"] == ["angry", "happy", "surprise"]
        return
    assert new.info["classes"] == ["happy", "neutral", "surprise", "angry"]
    assert new.info["absent"] == ["neutral"]
    for name, (axis, first) in old.module.class_axes.items():
        before, after = (loaded.module.state_dict()[name] for loaded in (old, new))
        assert after.shape[axis] == before.shape[axis] + 1
        known, added = after.narrow(axis, 0, first + 3), after.select(axis, first + 3)
        assert torch.equal(known, before.narrow(axis, 0, first + 3))
        torch.testing.assert_close(added, before.narrow(axis, first, 3).mean(axis), atol=1e-3, rtol=1e-3)


def test_a_translator_takes_new_labels_and_groups_beside_those_that_it_knows(
    drawn: Path, tiny: Tiny, tmp_path: Path
) -> None:
    def labelled(folder: Path, classes: tuple[str, ...], columns: dict[str, tuple[str, ...]]) -> Path:
        write_tree(folder, dict.fromkeys(classes, 40))
        names = [f"{label}/im{k}.png" for label in classes for k in range(40)]
        rows = [",".join([name, *(said[k % len(said)] for said in columns.values())]) for k, name in enumerate(names)]
        (folder / "metadata.csv").write_text("\n".join([",".join(["file_name", *columns]), *rows]) + "\n")
        return folder

    small = {"network": "stargan-48", "width": 2, "critic_steps": 1}
    first = labelled(tmp_path / "first", ("happy", "sad"), {"pose": ("left", "right")})
    told = COMMON | {"translator": small | {"columns": ["pose"]}, "also": (str(drawn),)}
    old = load(str(train(first, "stargan-48", tmp_path / "old", **told).weights))
    then = labelled(tmp_path / "then", ("fear", "happy"), {"age": ("old", "young"), "pose": ("left", "up")})
    told = COMMON | STILL | {"translator": small | {"columns": ["age", "pose"]}, "init": str(old.path)}
    new = load(str(train(then, "stargan-48", tmp_path / "new", **told).weights))
    groups, elsewhere = new.info["vocabulary"]
    assert {group["name"]: group["labels"] for group in groups} == {
        "class": ["happy", "sad", "fear"],
        "pose": ["left", "right", "up"],
        "age": ["old", "young"],
    }
    assert elsewhere == old.info["vocabulary"][1]
    assert new.info["absent"] == ["happy", "neutral", "surprise", "sad", "right"]
    before, after = (loaded.module.layers[0].weight[:, 1:] for loaded in (old, new))
    # before: happy sad | left right | happy neutral surprise | mask of two; after: happy sad fear | left right up | age ...
    kept = [0, 1, 3, 4, 8, 9, 10, 11, 12]
    assert torch.equal(after[:, kept], before)
    torch.testing.assert_close(after[:, 2], before[:, :2].mean(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after[:, 5], before[:, 2:4].mean(1), atol=1e-3, rtol=1e-3)
    assert not after[:, 6:8].any()


def test_two_classes_that_the_weights_know_as_one_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    faces = write_tree(tmp_path / "faces", {"happy": 60, "neutral": 60})
    (faces / "neutral").rename(faces / "joy")
    with pytest.raises(UsageError, match="classes 'happy' and 'joy' are both 'happy'"):
        train(faces, "judge-48", tmp_path / "out", init=str(tiny.judge), **COMMON)


# --- frozen layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "frozen"),
    [("judge-48", "trunk"), ("editor-48", "stem,down24,to12,core"), ("cgan-48", "layers.0,layers.2")],
)
def test_frozen_layers_keep_their_bytes_and_others_learn(
    preset: str, frozen: str, drawn: Path, tiny: Tiny, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    told = settings(preset, tiny) | {"weight_decay": 0.5, "init": str(trained(preset)), "freeze": frozen}
    told |= {} if preset in CRITICLESS else {"critic_first": 0}
    before, after = tensors(trained(preset)), tensors(train(drawn, preset, tmp_path / "out", **told).weights)
    held = {name for name in before if any(name == key or name.startswith(f"{key}.") for key in frozen.split(","))}
    assert held
    assert all(torch.equal(before[name], after[name]) for name in held)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - held)


def test_a_layer_that_is_not_there_is_named(
    drawn: Path, tiny: Tiny, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    told = COMMON | {"init": str(tiny.judge)}
    with pytest.raises(UsageError, match=r"no such layer. Did you mean 'trunk'\? Layers: trunk, head\."):
        train(drawn, "judge-48", tmp_path / "out", freeze="trnk", **told)
    with pytest.raises(UsageError, match=r"Layers: layers\.0, layers\.2, layers\.4"):
        train(drawn, "cgan-48", tmp_path / "out", freeze="core", **COMMON | {"init": str(trained("cgan-48"))})
    with pytest.raises(UsageError, match="leaves nothing to learn"):
        train(drawn, "judge-48", tmp_path / "out", freeze="trunk,head", **told)
    with pytest.raises(UsageError, match="freeze belongs to init"):
        train(drawn, "judge-48", tmp_path / "out", freeze="trunk", **COMMON)
    train(
        drawn, "judge-48", tmp_path / "out", freeze="head", **told
    )  # nothing was left behind that would be in the way


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "init", "more", "said"),
    [
        ("cgan-48", "judge-48", {}, "is a classifier, but recipe gan trains a generator"),
        ("faces-48", "cgan-48", {}, "is of network conv-48, but residual-48 is to be trained"),
        ("recognizer", "judge-48", {}, "is of network small, but resnet18 is to be trained"),
        ("cgan-48", "dcgan-64", {"gan": {"network": "dcgan-64", "condition": "label"}}, "knows no classes, but"),
        ("judge-48", "judge-48", {"network": {"width": 16}}, r"width 8, but network\.width 16 is given"),
        ("judge-48", "judge-48", {"network": {"widht": 8}}, "no argument widht. Did you mean 'width'"),
        ("stargan-48", "stargan-48", {"translator": {"network": "stargan-48", "width": 4}}, "built with width 2"),
        ("judge-48", "judge-48", {"critic_first": 100}, "recipe judge, which has no critic"),
    ],
)
def test_weights_of_another_network_are_refused(
    preset: str, init: str, more: dict[str, Any], said: str, drawn: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        train(drawn, preset, tmp_path / "out", init=str(trained(init)), **COMMON | more)
    assert not (tmp_path / "out").exists()


def test_what_no_weight_hangs_on_may_be_another(drawn: Path, tiny: Tiny, tmp_path: Path) -> None:
    result = train(drawn, "judge-48", tmp_path / "out", init=str(tiny.judge), network={"dropout": 0.4}, **COMMON)
    assert load(str(result.weights)).module.config == load(str(tiny.judge)).module.config | {"dropout": 0.4}


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_fine_tuning_that_was_stopped_goes_on_to_the_same_bytes_without_its_init(
    drawn: Path, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = write_tree(tmp_path / "faces", {"happy": 60, "surprise": 60, "angry": 60})
    init = tmp_path / "init.safetensors"
    shutil.copy(trained("cgan-48"), init)
    told = COMMON | {"init": str(init), "freeze": "layers.0", "critic_first": 6, "checkpoint_minutes": 1e-9}
    whole = train(faces, "cgan-48", tmp_path / "whole", **told)
    step = GanRecipe.step

    def stopped(self: Any, rng: Any, number: int, descend: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, rng, number, descend)

    with monkeypatch.context() as patch:
        patch.setattr(GanRecipe, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(faces, "cgan-48", tmp_path / "parts", **told)
    init.unlink()
    with pytest.raises(UsageError, match=r"other settings \(freeze\)"):
        train(faces, "cgan-48", tmp_path / "parts", resume=True, **told | {"freeze": "layers.2"})
    parts = train(faces, "cgan-48", tmp_path / "parts", resume=True, **told)
    assert parts.weights.read_bytes() == whole.weights.read_bytes()


def test_the_command_fine_tunes(drawn: Path, tiny: Tiny, tmp_path: Path, facesynth: Callable[..., Ended]) -> None:
    flags = (
        "--preset",
        "judge-48",
        "--init",
        "judge-48",
        "--freeze",
        "trunk.0,trunk.3",
        "--images",
        12,
        "--batch-size",
        6,
    )
    ended = facesynth("train", drawn, *flags, "--device", "cpu", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "fine-tuning judge-48: learning rate 0.00033, a third of the preset's." in ended.err
    told = json.loads((tmp_path / "out/settings.json").read_text())
    assert (told["init"], told["freeze"], told["network"]["width"]) == ("judge-48", ["trunk.0", "trunk.3"], 8)
    assert "began with the weights `judge-48`" in (tmp_path / "out/README.md").read_text()
    ended = facesynth("train", drawn, *flags, "--learning-rate", 1e-3, "--device", "cpu", "--out", tmp_path / "own")
    assert "a third" not in ended.err
    assert weights.load(str(tmp_path / "own")).info["recipe"]["learning_rate"] == 1e-3
