"""Planted truths: what an uplift says of images that help, and of images that cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import draw

from facesynth.arms import ARMS, MIXING, combine, control_of
from facesynth.console import UsageError
from facesynth.dataset import Dataset, Sample
from facesynth.imageset import AnySet, ImageSet, SyntheticSet
from facesynth.likeness import describe
from facesynth.readings import take_readings
from facesynth.significance import recognition
from facesynth.training_data import Faces
from facesynth.trials import Bench, UpliftConfig, divide
from facesynth.uplift import measure

CLASSES = ("disgust", "happy", "neutral")
SIZES: dict[str, int] = dict(zip(CLASSES, (3, 5, 5), strict=True))


def pictures(counts: Mapping[str, int], start: int, noise: float = 30) -> tuple[np.ndarray, np.ndarray]:
    """Hard faces: drawn ones under heavy noise; crops (N, 48, 48) uint8 and labels (N,)."""
    crops, labels = [], []
    rng = np.random.default_rng(start)
    for k, name in enumerate(CLASSES):
        for person in range(counts.get(name, 0)):
            face = draw(name, start + 1000 * k + person) + rng.normal(0, noise, (48, 48))
            crops.append(np.clip(face, 0, 255).astype(np.uint8))
            labels.append(k)
    return np.stack(crops), np.array(labels)


def image_set(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str = "real") -> ImageSet:
    """One image set of splits; images of the training split are called CLASS/imN.png."""
    crops = np.concatenate([part[0] for part in parts.values()])
    labels = np.concatenate([part[1] for part in parts.values()])
    samples = [
        Sample(split, f"{CLASSES[k]}/im{row}.png", CLASSES[k])
        for split, part in parts.items()
        for row, k in enumerate(part[1])
    ]
    return ImageSet(
        dataset=Dataset(Path(name), "folder", CLASSES, {}, {}, []),
        samples=tuple(samples),
        classes=CLASSES,
        labels=labels.astype(np.int64),
        crops=crops,
        descriptors=describe(crops / np.float32(255)).astype(np.float16),
        digests=np.array([hashlib.sha256(crop.tobytes()).hexdigest()[:16] for crop in crops], "S16"),
        features={},
        logits={},
    )


def synthetic_set(crops: np.ndarray, labels: np.ndarray, sources: list[str | None] | None = None) -> SyntheticSet:
    """Synthetic images of weight one."""
    images = image_set({"train": (crops, labels)}, "synthetic")
    return SyntheticSet(
        **{name: getattr(images, name) for name in ImageSet.__dataclass_fields__},
        sources=tuple(sources or [None] * len(images)),
        source_labels=(None,) * len(images),
        intensities=np.full(len(images), np.nan),
        weights=np.ones(len(images)),
    )


def real_faces(seed: int, train: Mapping[str, int] = SIZES, val: int = 40, test: int = 80) -> ImageSet:
    """A small imbalanced training split, and balanced others."""
    start = 100_000 * (seed + 1)
    splits = {"train": train, "val": dict.fromkeys(CLASSES, val), "test": dict.fromkeys(CLASSES, test)}
    wanted = [(name, counts, k) for k, (name, counts) in enumerate(splits.items()) if any(counts.values())]
    return image_set({name: pictures(counts, start + 10_000 * k) for name, counts, k in wanted})


def planted(kind: str, real: ImageSet, seed: int, count: int = 80) -> SyntheticSet:
    """Fresh faces, noise, fresh faces under a wrong class, or plain copies of the real training images."""
    counts = dict.fromkeys(CLASSES, count)
    crops, labels = pictures(counts, 100_000 * (seed + 1) + 50_000)
    if kind == "noise":
        crops = np.random.default_rng(seed).integers(0, 256, crops.shape).astype(np.uint8)
    if kind == "mislabelled":
        labels = (labels + 1) % len(CLASSES)
    if kind == "copies":
        train = real.of("train")
        rows = np.concatenate([np.resize(np.flatnonzero(train.labels == k), count) for k in range(len(CLASSES))])
        crops, labels = train.crops[rows], train.labels[rows]
    return synthetic_set(crops, labels)


def with_readings(images: AnySet) -> AnySet:
    """With what a judge reads that doubts a little."""
    sure = np.eye(len(CLASSES), dtype=np.float32)[images.labels]
    return replace(images, probabilities=0.7 * sure + 0.1)


def small(**settings: Any) -> UpliftConfig:
    """An uplift of seconds."""
    defaults: dict[str, Any] = {"seeds": 3, "steps": 100, "batch_size": 32, "width": 8, "learning_rate": 4e-3}
    return UpliftConfig(**{"arms": ("real", "share"), "device": "cpu", **defaults, **settings})


def hurried(**settings: Any) -> UpliftConfig:
    """An uplift of which only the form matters."""
    return small(**{"seeds": 2, "steps": 2, "width": 4, "batch_size": 8} | settings)


def test_fresh_faces_help_and_copies_do_not(tmp_path: Path) -> None:
    real = real_faces(0)
    fresh = measure(real, planted("fresh", real, 0), small(), tmp_path).uplift
    assert (fresh.best_with, fresh.claims[0].verdict) == ("share", "helped")
    assert fresh.claims[0].comparison.difference.low > 0
    copies = measure(real, planted("copies", real, 0), small(), tmp_path).uplift
    assert copies.claims[0].verdict != "helped"
    assert copies.claims[0].comparison.difference.value < 0.1 < fresh.claims[0].comparison.difference.value


@pytest.mark.slow
def test_what_cannot_help_is_never_said_to(tmp_path: Path) -> None:
    verdicts: dict[str, list[str]] = {kind: [] for kind in ("noise", "mislabelled", "copies")}
    for seed in range(20):
        real = real_faces(seed)
        config = small(seed=seed, steps=60, arms=("real", "sampler", "rare", "share"))
        for kind, found in verdicts.items():
            found.append(measure(real, planted(kind, real, seed), config, tmp_path).uplift.claims[0].verdict)
    assert not any("helped" in found for found in verdicts.values())


@pytest.mark.slow
def test_what_helps_is_nearly_always_said_to(tmp_path: Path) -> None:
    verdicts = []
    for seed in range(20):
        real = real_faces(seed)
        config = small(seed=seed, steps=200, seeds=4)
        verdicts.append(measure(real, planted("fresh", real, seed), config, tmp_path).uplift.claims[0].verdict)
    assert verdicts.count("helped") >= 18
    assert "hurt" not in verdicts


def test_an_uplift_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = real_faces(1, val=10, test=20)
    synthetic = planted("fresh", real, 1, count=6)
    config = hurried(arms=("real", "sampler", "rare", "combined"), synthetic_weight="auto")
    whole = measure(real, synthetic, config, tmp_path / "whole")
    train, done = Bench.train, []

    def stopping(self: Bench, *arguments: Any) -> Path:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(train(self, *arguments))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            measure(real, synthetic, config, tmp_path / "parts")
    before = {path: path.stat().st_mtime_ns for path in done}
    parts = measure(real, synthetic, config, tmp_path / "parts")
    assert parts.uplift == whole.uplift
    assert {path: path.stat().st_mtime_ns for path in done} == before


def test_all_arms_are_trained_alike_and_told_with_intervals(tmp_path: Path) -> None:
    real = real_faces(2, val=10, test=30)
    copies = np.arange(90) % 3 == 0
    real, synthetic = (with_readings(images) for images in (real, planted("fresh", real, 2, count=6)))
    found = measure(real, synthetic, hurried(arms=()), tmp_path, without={"no copies": copies})
    uplift = found.uplift
    names = [arm.name for arm in uplift.arms]
    assert names[:13] == [*(arm.name for arm in ARMS), "remedies", "combined"]
    assert uplift.test_images == {"all": 90, "no copies": 60}
    assert {arm.name for arm in uplift.arms if arm.uses_synthetic} == {"synthetic", *MIXING, "combined"}
    assert uplift.best_with == max((a for a in uplift.arms if a.uses_synthetic), key=lambda a: a.validation).name
    for arm in uplift.arms:
        assert len(arm.per_seed["all"]) == 2
        assert arm.scores["all"].accuracy.value == pytest.approx(np.mean([r.accuracy for r in arm.per_seed["all"]]))
    assert uplift.claims[0].comparison.test_set == "no copies"
    assert (uplift.claims[0].comparison.arm, uplift.claims[0].comparison.against) == (
        uplift.best_with,
        uplift.best_without,
    )
    assert {c.metric for c in uplift.comparisons} >= {"accuracy", "macro_f1", "f1.disgust", "recall.happy"}
    assert set(found.predictions) == {uplift.best_with, uplift.best_without}
    assert all(read.shape == (2, 90) for read in found.predictions.values())


def test_the_best_are_combined_with_the_best_remedy_that_they_lack() -> None:
    scores = {"real": 0.9, "sampler": 0.8, "strong": 0.7, "mixup": 0.1, "share": 0.6, "rare": 0.5}
    arms = [arm for arm in ARMS if arm.name in scores]
    combined = combine("combined", arms, scores)
    assert combined is not None  # share draws classes evenly already
    assert (combined.settings.synthetic, combined.settings.augmentation) == ("share", "strong")
    control = control_of(combined)
    assert control is not None
    assert (control.settings.synthetic, control.settings.sampling, control.settings.augmentation) == (
        "none",
        "balanced",
        "strong",
    )
    remedies = combine("remedies", arms, scores)
    assert remedies is not None
    assert (remedies.settings.sampling, remedies.settings.augmentation) == ("balanced", "strong")
    scores |= {"balanced-loss": 0.85}  # which draws classes as they are: with it the sampler would be no sampler
    remedies = combine("remedies", [arm for arm in ARMS if arm.name in scores], scores)
    assert remedies is not None
    assert (remedies.settings.loss, remedies.settings.sampling) == ("logit-adjusted", "natural")
    assert remedies.settings.augmentation == "strong"
    assert combine("combined", [arm for arm in arms if not arm.uses_synthetic], scores) is None
    scores |= {"soft-labels": 0.95}
    combined = combine("combined", [arm for arm in ARMS if arm.name in scores], scores)
    assert combined is not None
    control = control_of(combined)
    assert control is not None
    assert combined.settings.soft_labels == control.settings.soft_labels > 0  # only the images differ


def test_soft_labels_need_a_judge_that_knows_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = real_faces(2, val=4, test=4)
    synthetic = planted("fresh", real, 2, count=3)
    found = measure(real, synthetic, hurried(arms=("real", "soft-labels", "share")), tmp_path)
    assert {arm.name for arm in found.uplift.arms} == {"real", "share", "control"}
    assert "soft-labels is left out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="needs a judge that knows all classes of real"):
        measure(real, synthetic, hurried(arms=("soft-labels", "share")), tmp_path)
    both = with_readings(real), with_readings(synthetic)
    known = {path.name for path in tmp_path.glob("*.safetensors")}
    found = measure(*both, hurried(arms=("real", "soft-labels", "share")), tmp_path)
    assert {arm.name for arm in found.uplift.arms} >= {"real", "soft-labels", "share"}
    assert len({path.name for path in tmp_path.glob("*.safetensors")} - known) == 2  # the others are not trained again


def test_each_arm_decides_with_the_class_prior_that_validation_chose(tmp_path: Path) -> None:
    counts = {"disgust": 4, "happy": 40, "neutral": 40}
    parts = {split: pictures(counts, 1000 * k) for k, split in enumerate(("train", "val", "test"))}
    real, config = image_set(parts), small(arms=("real", "sampler", "share"), seeds=2)
    synthetic = planted("noise", real, 0, count=10)
    uplift = measure(real, synthetic, config, tmp_path).uplift
    (trial,) = divide(real, synthetic, config)
    bench = Bench(config, tmp_path)
    for found in uplift.arms:
        arm = next(arm for arm in ARMS if arm.name == found.name)
        with bench.progress:
            logits = [bench.read(trial, arm.settings, seed, trial.validation) for seed in config.seed_list()]
        plain = [recognition(trial.validation.labels, z.argmax(axis=1), CLASSES).macro_f1 for z in logits]
        assert found.validation >= np.mean(plain)
    strengths = {arm.name: arm.prior_strength for arm in uplift.arms}
    assert strengths["sampler"] > strengths["real"]  # who saw classes evenly calls the rare one too often


def test_children_of_images_that_are_held_out_are_left_out(tmp_path: Path) -> None:
    real = real_faces(3, dict.fromkeys(CLASSES, 20), val=0, test=0)
    train = real.of("train")
    synthetic = synthetic_set(train.crops, train.labels, list(train.names))
    trials = divide(real, synthetic, hurried(folds=3))
    assert sorted(name for trial in trials for name in trial.test.names) == sorted(train.names)
    for trial in trials:
        assert set(trial.synthetic.sources) == set(trial.real.names)
        assert not set(trial.real.names) & {*trial.test.names, *trial.validation.names}
        assert trial.left_out == len(trial.test) + len(trial.validation)
    half = trials[0].reduced(fraction=0.5)
    assert set(half.synthetic.sources) == set(half.real.names) < set(trials[0].real.names)
    assert set(trials[0].reduced(fraction=0.25).real.names) < set(half.real.names)
    fewer = trials[0].reduced(ratio=0.5)
    assert len(fewer.synthetic) < len(trials[0].synthetic)
    assert len(fewer.real) == len(trials[0].real)


def test_validation_is_what_no_training_learns_from(tmp_path: Path) -> None:
    real = real_faces(5, {"disgust": 2, "happy": 60, "neutral": 60}, val=0, test=1)
    train = real.of("train")
    common = train.labels > 0
    faces = Faces(torch.from_numpy(train.crops[common]), torch.from_numpy(train.labels[common] - 1), CLASSES[1:])
    (trial,) = divide(real, planted("noise", real, 0, count=5), hurried())
    chosen, held = {c.tobytes() for c in trial.validation.crops}, {c.tobytes() for c in faces.crops[faces.held].numpy()}
    assert trial.validation.counts()["disgust"] == trial.real.counts()["disgust"] == 1  # whatever the draw was
    assert chosen > held
    assert len(chosen) == len(held) + 1


def test_identical_images_are_on_one_side(tmp_path: Path) -> None:
    crops, labels = pictures(dict.fromkeys(CLASSES, 12), 7)
    twice = image_set({"train": (np.concatenate([crops, crops]), np.concatenate([labels, labels]))})
    for trial in divide(twice, planted("noise", twice, 0), hurried(folds=2)):
        sides = [set(part.digests.tolist()) for part in (trial.real, trial.validation, trial.test)]
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]


def test_folds_and_sweeps_give_points(tmp_path: Path) -> None:
    real = real_faces(4, dict.fromkeys(CLASSES, 12), val=0, test=0)
    config = hurried(folds=2, fractions=(0.5, 1.0), ratios=(0.5,))
    uplift = measure(real, planted("fresh", real, 4, count=6), config, tmp_path).uplift
    assert uplift.test == "2 folds of the training split"
    assert uplift.test_images == {"all": 36}
    assert [(p.kind, p.value, p.synthetic_images) for p in uplift.points] == [
        ("fraction", 0.5, 18),
        ("fraction", 1.0, 18),
        ("ratio", 0.5, 9),
    ]
    assert uplift.points[0].real_images < uplift.points[1].real_images == uplift.real_images
    headline = uplift.claims[0].comparison.difference
    assert uplift.points[1].difference == headline


def test_another_dataset_can_be_the_test(tmp_path: Path) -> None:
    real = real_faces(5, val=10, test=0)
    other = image_set({"test": pictures(dict.fromkeys(CLASSES, 7), 5)}, "elsewhere")
    uplift = measure(real, planted("fresh", real, 5, count=6), hurried(), tmp_path, test=other).uplift
    assert (uplift.test, uplift.test_images) == ("elsewhere", {"all": 21})


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    real = real_faces(6, val=4, test=4)
    synthetic = planted("fresh", real, 6, count=3)
    with pytest.raises(UsageError, match=r"no arm 'shares'\. Did you mean 'share'\?"):
        measure(real, synthetic, hurried(arms=("real", "shares")), tmp_path)
    with pytest.raises(UsageError, match="needs an arm with synthetic images and one without"):
        measure(real, synthetic, hurried(arms=("real", "mixup")), tmp_path)
    with pytest.raises(UsageError, match="has no synthetic image"):
        measure(real, synthetic.take([]), hurried(), tmp_path)
    with pytest.raises(UsageError, match="has no test split: give --folds 5"):
        measure(real.of("train"), synthetic, hurried(), tmp_path)
    with pytest.raises(UsageError, match="smallest class has 3 different training images, too few for 5 folds"):
        measure(real, synthetic, hurried(folds=5), tmp_path)


def test_readings_know_real_from_mislabelled_faces(tmp_path: Path) -> None:
    real = real_faces(7, dict.fromkeys(CLASSES, 50), val=0, test=40)
    synthetic = planted("mislabelled", real, 7, count=20)
    readings = take_readings(real, synthetic, small(steps=100), tmp_path)
    assert readings.tested_on == "test split"
    assert readings.gan_test.accuracy < 0.3 < 0.6 < readings.real_baseline.accuracy
    assert readings.gan_train.accuracy < 0.3
    assert readings.synthetic_probabilities.shape == (60, 3)
    assert readings.real_probabilities.shape == (len(real), 3)
    assert np.allclose(readings.real_probabilities.sum(axis=1), 1, atol=1e-5)
    right = readings.real_probabilities.argmax(axis=1) == real.labels
    assert right[real.splits == "train"].mean() > 0.5
