"""The recogniser: which faces it trains on, and what `train --preset recognizer` leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faces import draw, write_tree
from PIL import Image

from facesynth import train, weights
from facesynth.console import UsageError
from facesynth.expression import load_judge
from facesynth.generators.networks import Classifier
from facesynth.loop import Loop
from facesynth.output import write_metadata
from facesynth.recipe import RecognizerSettings, TrainConfig
from facesynth.recognizer import Examples, Mixer, Recognizer, read
from facesynth.training_data import load_examples

CLASSES = ("angry", "happy", "sad")
REAL = (4, 20, 10)
MADE = (12, 6, 0)


def examples(weight: float = 1.0) -> Examples:
    """Blank faces: real ones 4, 20 and 10 of a class, synthetic ones 12, 6 and 0."""
    labels = torch.tensor([k for counts in (REAL, MADE) for k, count in enumerate(counts) for _ in range(count)])
    synthetic = torch.arange(len(labels)) >= sum(REAL)
    weights = torch.where(synthetic, weight, 1.0)
    return Examples(torch.zeros(len(labels), 48, 48, dtype=torch.uint8), labels, synthetic, weights, CLASSES)


def drawn(mixer: Mixer, faces: Examples, progress: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Shares of all loss weight by class (K,), and of synthetic images within each class (K,)."""
    rows, weights = mixer.draw(20_000, progress, torch.Generator().manual_seed(0))
    by_class = torch.bincount(faces.labels[rows], weights, minlength=3)
    made = torch.bincount(faces.labels[rows], weights * faces.synthetic[rows], minlength=3)
    return (by_class / by_class.sum()).numpy(), (made / by_class).numpy()


@pytest.mark.parametrize(
    ("settings", "classes", "synthetic"),
    [
        ({}, [4 / 34, 20 / 34, 10 / 34], [0, 0, 0]),
        ({"sampling": "balanced"}, [1 / 3] * 3, [0, 0, 0]),
        ({"synthetic": "rare"}, [16 / 46, 20 / 46, 10 / 46], [0.75, 0, 0]),
        ({"synthetic": "rare", "synthetic_weight": 0.5}, [10 / 40, 20 / 40, 10 / 40], [0.6, 0, 0]),
        ({"synthetic": "duplicates"}, [16 / 46, 20 / 46, 10 / 46], [0, 0, 0]),
        ({"synthetic": "duplicates", "synthetic_weight": 0.5}, [10 / 40, 20 / 40, 10 / 40], [0, 0, 0]),
        ({"synthetic": "share", "synthetic_share": 0.3}, [4 / 34, 20 / 34, 10 / 34], [0.3, 0.3, 0]),
        ({"synthetic": "share", "sampling": "balanced"}, [1 / 3] * 3, [0.5, 0.5, 0]),
        ({"synthetic": "share", "sampling": "balanced", "synthetic_weight": 0.5}, [1 / 3] * 3, [1 / 3, 1 / 3, 0]),
        ({"synthetic": "only"}, [12 / 18, 6 / 18, 0], [1, 1, np.nan]),
        ({"synthetic": "only", "sampling": "balanced"}, [1 / 2, 1 / 2, 0], [1, 1, np.nan]),
    ],
)
def test_faces_are_mixed_as_the_settings_say(
    settings: dict[str, Any], classes: list[float], synthetic: list[float]
) -> None:
    faces = examples()
    found = drawn(Mixer(faces, RecognizerSettings(**settings)), faces)
    assert found[0] == pytest.approx(classes, abs=0.02)
    assert found[1] == pytest.approx(synthetic, abs=0.03, nan_ok=True)


def test_synthetic_first_means_real_alone_at_the_end() -> None:
    faces = examples()
    mixer = Mixer(faces, RecognizerSettings(synthetic="first", sampling="balanced", synthetic_share=1.0))
    shares = [drawn(mixer, faces, progress)[1][0] for progress in (0.0, 0.3, 0.6, 0.9)]
    assert shares == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=0.03)


def test_an_image_s_own_weight_counts() -> None:
    faces = examples(weight=0.5)
    found = drawn(Mixer(faces, RecognizerSettings(synthetic="rare", synthetic_weight=0.5)), faces)
    assert found[1] == pytest.approx([3 / 7, 0, 0], abs=0.03)


def test_arms_with_and_without_synthetic_images_draw_the_same_real_ones() -> None:
    faces = examples()
    rows = {}
    for kind in ("none", "share"):
        mixer = Mixer(faces, RecognizerSettings(synthetic=kind, sampling="balanced"))  # type: ignore[arg-type]
        rows[kind] = mixer.draw(500, 0.0, torch.Generator().manual_seed(1))[0]
    real = ~faces.synthetic[rows["share"]]
    assert 0 < int(real.sum()) < 500
    assert torch.equal(rows["share"][real], rows["none"][real])
    assert torch.equal(faces.labels[rows["share"]], faces.labels[rows["none"]])


def test_a_mixture_needs_its_images() -> None:
    faces = examples()
    real = Examples(*(getattr(faces, name)[:34] for name in ("crops", "labels", "synthetic", "weights")), CLASSES)
    for kind in ("share", "only"):
        with pytest.raises(UsageError, match=f"no image to train on with synthetic: {kind}"):
            Mixer(real, RecognizerSettings(synthetic=kind))  # type: ignore[arg-type]


def test_soft_labels_teach_what_the_judge_reads() -> None:
    crops = np.stack([draw(CLASSES[k % 3], k) for k in range(150)])
    meant = torch.arange(150) % 3
    wrong = (meant + 1) % 3
    faces = Examples(
        torch.from_numpy(crops), wrong, torch.arange(150) >= 100, torch.ones(150), CLASSES, F.one_hot(meant).float()
    )
    settings = {"images": 2400, "batch_size": 32, "learning_rate": 0.01, "device": "cpu", "warmup_images": 300}
    for share, taught in ((0.9, meant), (0.1, wrong)):
        config = TrainConfig(
            recipe="recognizer", network={"width": 8}, recognizer=RecognizerSettings(soft_labels=share), **settings
        )
        torch.manual_seed(0)
        recipe = Recognizer(config, faces)
        loop = Loop(recipe, config, Path())
        while loop.images < config.images:
            loop.step()
        assert np.mean(read(loop.ema["model"], crops, config).argmax(axis=1) == taught.numpy()) > 0.7
    with pytest.raises(UsageError, match="soft_labels needs a judge"):
        Recognizer(config, replace(faces, probabilities=None))


# --- train --preset recognizer ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A balanced dataset: 40 real faces a class, 10 synthetic angry ones made of the first real ones, and a test split."""
    root = tmp_path_factory.mktemp("balanced")
    write_tree(root / "train", dict.fromkeys(CLASSES, 40))
    write_tree(root / "test", dict.fromkeys(CLASSES, 10), first_person=500)
    copied = sorted((root / "train/happy").iterdir())[0]
    (root / "test/happy/copy.png").write_bytes(copied.read_bytes())
    table = []
    for k, source in enumerate(sorted((root / "train/happy").iterdir())[:10]):
        Image.fromarray(draw("angry", 900 + k)).save(root / f"train/angry/synthetic-{k}.png")
        made = {"file_name": f"angry/synthetic-{k}.png", "synthetic": "true", "source": f"happy/{source.name}"}
        table.append(made | {"weight": 0.25 if k else ""})
    write_metadata(root / "train/metadata.csv", ["file_name", "synthetic", "source", "weight"], table)
    return root


def test_held_out_faces_are_real_and_their_children_are_not_trained_on(balanced: Path) -> None:
    faces = load_examples(balanced, "cpu")
    assert faces.origins is not None
    origins, training, held = faces.origins, faces.training.tolist(), faces.held.tolist()
    assert origins.synthetic.sum() == 10
    assert sorted(set(origins.weights[origins.synthetic].tolist())) == [0.25, 1.0]
    assert not origins.synthetic[held].any()
    names = {origins.names[row] for row in held}
    used = {origins.sources[row] for row in training if origins.synthetic[row]}
    assert used == {source for source in origins.sources if source} - names


def test_a_val_split_is_what_is_held_out(balanced: Path, tmp_path: Path) -> None:
    shutil.copytree(balanced, tmp_path / "faces")
    write_tree(tmp_path / "faces/val", dict.fromkeys(CLASSES, 3), first_person=700)
    faces = load_examples(tmp_path / "faces", "cpu")
    assert (len(faces.held), len(faces.training)) == (9, 130)


def test_the_preset_trains_a_recogniser_that_can_judge(balanced: Path, tmp_path: Path) -> None:
    settings = {"images": 3200, "batch_size": 32, "learning_rate": 0.01, "device": "cpu", "warmup_images": 300}
    network = {"width": 8, "dropout": 0.0}
    result = train(balanced, "recognizer", tmp_path, network=network, **settings)
    figures = result.figures
    assert figures["trained_on"]["synthetic"] > 0
    assert figures["test"]["accuracy"] > 0.6  # chance is a third
    assert sum(map(sum, figures["test"]["confusion"])) == 31
    assert sum(map(sum, figures["test_no_copies"]["confusion"])) == 30
    assert set(figures["test"]["per_class"]) == set(CLASSES)
    for picture in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0 <= lines[-1]["held_out_accuracy"] <= 1
    judge = load_judge(str(tmp_path))
    assert judge.classes == list(CLASSES)
    faces = np.stack([draw("happy", person) for person in range(500, 510)]) / np.float32(255)
    assert np.mean(judge.predict(faces).argmax(axis=1) == 1) > 0.5
    soft: dict[str, Any] = {"network": network, "recognizer": {"soft_labels": 0.7}, **settings, "images": 320}
    train(balanced, "recognizer", tmp_path / "taught", judge=str(tmp_path), **soft)
    train(balanced, "recognizer", tmp_path / "alone", **{**soft, "recognizer": {"soft_labels": 0.0}})
    taught, alone = (load_judge(str(tmp_path / name)).predict(faces) for name in ("taught", "alone"))
    assert np.abs(taught - alone).max() > 0.001


def test_the_preset_leaves_out_what_a_dataset_does_not_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = write_tree(tmp_path / "faces", dict.fromkeys(CLASSES, 40))
    (src / "happy").rename(src / "amused")
    settings = {"images": 64, "batch_size": 32, "device": "cpu", "network": {"width": 8}}
    result = train(src, "recognizer", tmp_path / "out", **settings)
    assert result.figures["trained_on"] == {"real": 103, "synthetic": 0}
    said = capsys.readouterr().err
    assert "no synthetic image is there" in said
    assert "judge-48 does not know all classes: labels stay as they are" in said


def test_a_resnet_travels_as_weights(tmp_path: Path) -> None:
    model = Classifier(list(CLASSES), architecture="resnet18").eval()
    weights.save(tmp_path / "model.safetensors", "classifier", model, {})
    faces = torch.rand(2, 1, 48, 48)
    loaded = weights.load(str(tmp_path), "classifier").module
    assert loaded.trunk(faces).shape == (2, 512)
    assert torch.allclose(loaded(faces), model(faces), atol=0.05)
