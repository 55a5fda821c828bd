from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ended, Tiny
from faces import draw, write_tree
from PIL import Image

from facesynth import config, train
from facesynth.console import UsageError
from facesynth.expression import JudgeRecipe, load_judge
from facesynth.generators.diffusion import DiffusionRecipe
from facesynth.generators.editor import EditorRecipe
from facesynth.generators.embedder import EmbedderRecipe
from facesynth.generators.gan import GanRecipe
from facesynth.generators.joint import JointRecipe
from facesynth.generators.translator import TranslatorRecipe
from facesynth.recognizer import RecognizerRecipe
from facesynth.weights import WeightsError, load

FILES = [path for folder in config.PRESET_FOLDERS for path in folder.glob("*.yaml")]
PRESETS = sorted(path.stem for path in FILES if "recipe" in config.read_yaml(path))
GANS = {"dcgan-64": 64, "dcgan-128": 128, "wgan-64": 64, "wgan-gp-64": 64} | dict.fromkeys(
    ("cgan-48", "acgan-48", "faces-48", "fesgan-48"), 48
)
TRANSLATORS = {"stargan-48": 48, "stargan-128": 128, "stargan-256": 256, "stargan-rd": 128, "ganimation": 128}
SHEETS = {"editor-48": (4 * 48, 6 * 48)}  # a source and its edits into each class, two rows a class
SHEETS["diffusion-48"] = ((8 + 4) * 48, 3 * 48)  # in each class eight from noise, then a source and its edits
SHEETS |= {
    name: (8 * size, (3 if size == 48 else 8) * size) for name, size in GANS.items()
}  # a row a class, or a square
SHEETS |= {name: (4 * size, 6 * size) for name, size in TRANSLATORS.items()}  # as those of editors
RECIPES: dict[str, Any] = {
    **dict.fromkeys(GANS, GanRecipe),
    **dict.fromkeys(TRANSLATORS, TranslatorRecipe),
    "fesgan-48": JointRecipe,
    "judge-48": JudgeRecipe,
    "embedder-48": EmbedderRecipe,
    "editor-48": EditorRecipe,
    "recognizer": RecognizerRecipe,
    "diffusion-48": DiffusionRecipe,
}
SMALLEST = {"width": 2, "critic_steps": 1, "columns": []}
SMALL: dict[str, Any] = {
    **{
        name: {"translator": config.read_yaml(config.preset_path(name))["translator"] | SMALLEST}
        for name in TRANSLATORS
    },
    **{name: {"gan": config.read_yaml(config.preset_path(name))["gan"] | {"width": 8}} for name in GANS},
    "fesgan-48": {
        "gan": config.read_yaml(config.preset_path("fesgan-48"))["gan"] | {"width": 8, "transition": [0, 6]},
        "joint": {"from_images": 6},
        "network": {"width": 4, "dropout": 0.2},
    },
    "judge-48": {"network": {"width": 4, "dropout": 0.2}},
    "embedder-48": {"network": {"width": 4, "size": 8}},
    "editor-48": {"network": {"style": 2, "channels": [8, 8, 8]}},
    "diffusion-48": {"diffusion": {"width": 8, "multiples": [1, 2], "steps": 3}},
    "recognizer": {"network": {"width": 4, "dropout": 0.2}},
}


def short(preset: str, tiny: Tiny, **settings: Any) -> dict[str, Any]:
    """Settings for a training of a preset that takes a second or two."""
    guides = {"judge": str(tiny.judge), "embedder": str(tiny.embedder)} if preset == "editor-48" else {}
    return {"images": 24, "batch_size": 6, "device": "cpu", "seed": 3} | SMALL[preset] | guides | settings


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_leaves_weights_logs_and_a_checkpoint(
    preset: str, drawn: Path, tiny: Tiny, tmp_path: Path
) -> None:
    result = train(drawn, preset, tmp_path / "out", **short(preset, tiny))
    loaded = load(str(tmp_path / "out"))
    assert result.weights == loaded.path
    assert result.images == loaded.info["images"] == 24
    assert loaded.info["recipe"]["seed"] == 3
    assert result.figures.items() <= loaded.info.items()
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert lines[-1]["images"] == 24
    assert all(np.isfinite(value) for value in lines[-1].values())
    assert list((tmp_path / "out/tensorboard").glob("events.*"))
    assert Image.open(tmp_path / "out/losses.png").width > 400
    sheets = list((tmp_path / "out").glob("sheet-*.png"))
    assert [Image.open(sheet).size for sheet in sheets] == ([SHEETS[preset]] if preset in SHEETS else [])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(
    preset: str, drawn: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(drawn, preset, tmp_path / "whole", **short(preset, tiny, checkpoint_minutes=1e-9))
    step = RECIPES[preset].step

    def stopped(self: Any, rng: Any, number: int, descend: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, rng, number, descend)

    settings = short(preset, tiny, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(RECIPES[preset], "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(drawn, preset, tmp_path / "parts", **settings)
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    done: list[int] = []

    def counted(self: Any, rng: Any, number: int, descend: Any) -> Any:
        done.append(number)
        return step(self, rng, number, descend)

    monkeypatch.setattr(RECIPES[preset], "step", counted)
    parts = train(drawn, preset, tmp_path / "parts", resume=True, **settings)
    assert done == [2, 3]
    for path in whole.weights.parent.glob("*.safetensors"):
        assert parts.weights.with_name(path.name).read_bytes() == path.read_bytes()


def test_an_editor_can_be_trained_on_past_its_end(drawn: Path, tiny: Tiny, tmp_path: Path) -> None:
    longer = train(drawn, "editor-48", tmp_path / "longer", **short("editor-48", tiny))
    train(drawn, "editor-48", tmp_path / "more", **short("editor-48", tiny, images=12))
    more = train(drawn, "editor-48", tmp_path / "more", resume=True, **short("editor-48", tiny))
    assert more.weights.read_bytes() == longer.weights.read_bytes()


def test_a_judge_learns_to_read_faces_that_it_has_not_seen(tiny: Tiny) -> None:
    judge = load_judge(str(tiny.judge))
    faces = [(label, draw(label, person)) for label in judge.classes for person in range(2000, 2020)]
    probabilities = judge.predict(np.stack([face for _, face in faces]) / np.float32(255))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    right = [judge.classes[k] == label for k, (label, _) in zip(probabilities.argmax(axis=1), faces, strict=True)]

    assert np.mean(right) > 0.5  # chance is a third


def test_what_is_already_there_is_gone_on_with_only_on_request_and_only_alike(
    drawn: Path, tiny: Tiny, tmp_path: Path
) -> None:
    settings = short("judge-48", tiny)
    train(drawn, "judge-48", tmp_path, **settings)
    with pytest.raises(UsageError, match="already holds a training; go on with it by --resume"):
        train(drawn, "judge-48", tmp_path, **settings)
    with pytest.raises(UsageError, match=r"other settings \(batch_size, seed\)"):
        train(drawn, "judge-48", tmp_path, resume=True, **settings | {"batch_size": 8, "seed": 4})


def test_an_editor_needs_a_judge_of_the_same_classes(tiny: Tiny, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "faces", {"angry": 20, "sad": 20})
    with pytest.raises(WeightsError, match=r"knows .*happy.*the dataset has .*angry"):
        train(other, "editor-48", tmp_path / "out", **short("editor-48", tiny))


def test_the_command_trains(drawn: Path, tiny: Tiny, tmp_path: Path, facesynth: Callable[..., Ended]) -> None:
    (tmp_path / "small.yaml").write_text("recipe: judge\nimages: 12\nnetwork: {width: 4}\ndevice: cpu\n")
    flags = ("--preset", tmp_path / "small.yaml", "--out", tmp_path / "out", "--batch-size", 6, "--json", "-q")
    ended = facesynth("train", drawn, *flags)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert json.loads(ended.out)["weights"] == str(tmp_path / "out/model.safetensors")
    assert facesynth("train", drawn, *flags, "--resume").code == 0
    again = facesynth("train", drawn, *flags)
    assert (again.code, again.out) == (2, "")
    assert "--resume" in again.err
    (tmp_path / "small.yaml").write_text("recipe: judge\nimages: 12\nwidht: 4\n")
    wrong = facesynth("train", drawn, *flags)
    assert wrong.code == 2
    assert "unknown setting widht" in wrong.err
