"""Diffusion: a small model learns what a class looks like, and its edits of real faces show it."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from faces import draw, write_tree
from PIL import Image

from facesynth import augment, config, train, weights
from facesynth.console import UsageError
from facesynth.generators.denoiser import TIMES, Denoiser
from facesynth.generators.diffusion import DiffusionEditor, DiffusionRecipe, denoise
from facesynth.recipe import TrainConfig
from facesynth.synthesis import load_generator
from facesynth.training_data import load_faces

CLASSES = list(Tiny.classes)


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model that was trained for seconds."""
    network: dict[str, Any] = {"width": 16, "multiples": [1, 2], "steps": 10, "guidance": 2.0, "intensity": [0.3, 0.7]}
    settings: dict[str, Any] = {"images": 4000, "batch_size": 40, "learning_rate": 4e-3, "warmup_images": 400}
    out = tmp_path_factory.mktemp("diffusion")
    told = {"device": "cpu", "precision": "fp32", "ema_images": 1000, "diffusion": network}
    result = train(drawn, "diffusion-48", out, **settings, **told)
    assert result.figures["held_out"] < 0.25
    assert all(0.3 < value < 2 for value in result.figures["diversity"].values())
    assert (out / "losses.png").stat().st_size > 5_000
    return result.weights


@pytest.fixture(scope="module")
def editor(trained: Path) -> DiffusionEditor:
    loaded = load_generator(str(trained))
    assert isinstance(loaded, DiffusionEditor)
    return loaded


def edited(editor: DiffusionEditor, crops: np.ndarray, target: int, intensity: float) -> np.ndarray:
    count = len(crops)
    draws = [np.random.default_rng([7, k]) for k in range(count)]
    strength = np.full(count, intensity, np.float32)
    edits = editor.propose(crops, [0] * count, [target] * count, draws, strength)
    assert edits.flow is None
    return crops + edits.difference


@pytest.fixture(scope="module")
def sources() -> np.ndarray:
    """Neutral faces of people that no training has seen."""
    return np.stack([draw("neutral", person) for person in range(3000, 3040)]).astype(np.float32) / 255


def test_an_edit_changes_a_face_as_its_class_differs(editor: DiffusionEditor, drawn: Path, sources: np.ndarray) -> None:
    made = [edited(editor, sources, k, 0.5) for k in range(3)]
    faces = load_faces(drawn, "cpu")
    mean = [faces.crops[faces.labels == k].numpy().mean(axis=0) / 255 for k in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        along = ((made[a] - made[b]) * (mean[a] - mean[b])).sum(axis=(1, 2))
        assert (along > 0).mean() > 0.7  # by chance, a half


def test_intensity_says_how_much_of_the_face_is_left(editor: DiffusionEditor, sources: np.ndarray) -> None:
    changes = [np.abs(edited(editor, sources, 2, intensity) - sources).mean() for intensity in (0, 0.25, 0.5, 1)]
    assert changes[0] == 0
    assert changes == sorted(changes)
    others = np.random.default_rng(0).permutation(sources)
    anew = [edited(editor, faces, 2, 1.0) for faces in (sources, others)]
    assert np.abs(anew[0] - anew[1]).max() < 1e-3  # of the source, nothing


def test_a_face_does_not_depend_on_its_batch(editor: DiffusionEditor, sources: np.ndarray) -> None:
    crops, target = sources[:5], [0, 1, 2, 2, 0]
    strength = np.array([0.3, 0.7, 0.0, 1.0, 0.41], np.float32)

    def proposed(rows: list[int]) -> np.ndarray:
        draws = [np.random.default_rng(k) for k in rows]
        return editor.propose(crops[rows], [1] * len(rows), [target[k] for k in rows], draws, strength[rows]).difference

    together = proposed([0, 1, 2, 3, 4])
    assert np.array_equal(together, proposed([0, 1, 2, 3, 4]))
    assert np.abs(together - np.concatenate([proposed([k]) for k in range(5)])).max() < 1e-5
    other = editor.propose(crops[:1], [1], [0], [np.random.default_rng(99)], strength[:1]).difference
    assert np.abs(other - together[:1]).max() > 0.01


def test_one_that_knows_the_velocity_takes_a_face_back_in_any_number_of_steps() -> None:
    truth = torch.rand(4, 1, 48, 48) * 1.6 - 0.8

    class Knowing(Denoiser):
        def forward(self, noised: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            # The cosine schedule: signal and noise at a time, from its definition (Nichol & Dhariwal 2021, eq. 17).
            angle = ((times + 1) / TIMES + 0.008) / 1.008 * torch.pi / 2
            signal = (torch.cos(angle) / np.cos(0.008 / 1.008 * np.pi / 2)).view(-1, 1, 1, 1)
            noise = (1 - signal**2).sqrt()
            drawn = (noised - signal * truth) / noise
            return signal * drawn - noise * truth

    model = Knowing(CLASSES, width=8, multiples=(1,))
    for steps in (1, 3, 20):
        taken_back = denoise(
            model, torch.zeros(4, 1, 48, 48), torch.randn(4, 1, 48, 48), torch.arange(4) % 3, torch.ones(4), steps, 1.0
        )
        assert (taken_back - truth).abs().max() < 0.01


def test_edits_fill_a_dataset_in_its_own_form(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    src = write_tree(
        tmp_path / "faces", {"happy": 3, "neutral": 3, "surprise": 3}, size=60, mode="RGB", first_person=900
    )
    flags: dict[str, Any] = {"generator": str(trained), "judge": str(tiny.judge), "identity": "off", "workers": 1}
    result = augment(src, 1, expressions="all", out=tmp_path / "out", max_attempts=20, **flags)
    assert sum(result.synthetic.values()) >= 9
    with (tmp_path / "out/metadata.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["synthetic"] == "true"]
    assert Counter(row["label"] for row in rows) == Counter(result.synthetic)
    name = f"model@{weights.file_digest(trained)}"
    for row in rows:
        assert row["generator"] == name
        assert 0.3 <= float(row["intensity"]) <= 0.7
        image = Image.open(tmp_path / "out" / row["file_name"])
        assert (image.mode, image.size) == ("RGB", (60, 60))


def test_labels_are_withheld_from_a_part_of_the_faces(drawn: Path) -> None:
    told = config.load(
        TrainConfig, {"recipe": "diffusion", "images": 96, "diffusion": {"label_dropout": 0.25, "width": 8}}
    )
    recipe = DiffusionRecipe(told, load_faces(drawn, "cpu"))
    seen: list[torch.Tensor] = []
    recipe.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    recipe.step(torch.Generator().manual_seed(0), 0, lambda _, loss: loss(400)[1])
    shares = torch.bincount(seen[0], minlength=4) / 400
    assert shares[3].item() == pytest.approx(0.25, abs=0.08)
    assert all(share.item() == pytest.approx(0.25, abs=0.08) for share in shares[:3])  # however rare the class


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: {width: 8}", r"network is not for recipe diffusion; give diffusion: \{width, multiples\}"),
        ("losses: {denoising: 1}", "recipe diffusion, which has one loss alone"),
        ("diffusion: {step: 5}", r"unknown setting diffusion\.step in .*my\.yaml\. Did you mean 'steps'\?"),
        ("diffusion: {intensity: [0.6, 0.4]}", "0.6 is above 0.4"),
        ("diffusion: {width: 20}", "multiple of 8"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"recipe: diffusion\nimages: 100\n{text}\n")
    with pytest.raises(UsageError, match=message):
        config.load(TrainConfig, {}, preset=str(tmp_path / "my.yaml"))
