"""What classifiers that gated nothing read: GAN-train and GAN-test, and each real image by one that never saw it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesynth.arms import ARMS
from facesynth.evaluation import Recognition
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.significance import recognition
from facesynth.trials import Bench, Trial, UpliftConfig, hold_out, portion

Array = NDArray[Any]

_SETTINGS = {arm.name: arm.settings for arm in ARMS}


@dataclass(frozen=True)
class Readings:
    """What classifiers read that were trained with classes drawn evenly, on one seed each.

    `gan_test`: trained on real images, reads synthetic ones; `gan_train`: trained on synthetic images, reads real ones;
    `real_baseline`: trained on real images, reads the same real ones; `tested_on` names these. `synthetic_probabilities`
    (M, K) are by the classifier of `gan_test`. `real_probabilities` (N, K): each real image read by classifiers that were
    trained neither on it nor on an identical one.
    """

    gan_test: Recognition
    gan_train: Recognition
    real_baseline: Recognition
    tested_on: str
    synthetic_probabilities: Array
    real_probabilities: Array


def take_readings(
    real: ImageSet, synthetic: SyntheticSet, config: UpliftConfig, folder: Path, test: ImageSet | None = None
) -> Readings:
    """Train four classifiers (on real images, on synthetic ones, on either half of the real ones) and let them read.

    The real images to read are `test`, else the test split, else the validation images. Trainings are kept in `folder`, and
    shared with those of `uplift.measure`. Raises UsageError where there is too little to train on.
    """
    tests = real.of("test") if test is None else test
    trial = hold_out(real, synthetic, tests if len(tests) else None)
    halves = _halves(trial)
    seed = config.seed
    bench = Bench(config, folder, sum(bench_images(config, part) for part in (trial, trial, *halves)))
    with bench.progress:
        on_real = bench.read(trial, _SETTINGS["sampler"], seed, trial.test)
        on_synthetic = bench.read(trial, _SETTINGS["synthetic"], seed, trial.test)
        of_synthetic = bench.read(trial, _SETTINGS["sampler"], seed, synthetic)
        by_halves = [_softmax(bench.read(half, _SETTINGS["sampler"], seed, real)) for half in halves]
    return Readings(
        gan_test=recognition(synthetic.labels, of_synthetic.argmax(axis=1), real.classes),
        gan_train=recognition(trial.test.labels, on_synthetic.argmax(axis=1), real.classes),
        real_baseline=recognition(trial.test.labels, on_real.argmax(axis=1), real.classes),
        tested_on=_name(trial, real),
        synthetic_probabilities=_softmax(of_synthetic),
        real_probabilities=_unseen(real, halves, by_halves),
    )


def bench_images(config: UpliftConfig, trial: Trial) -> int:
    """Training images that one training on this trial sees."""
    return config.training(len(trial.real), _SETTINGS["sampler"]).images


def _halves(trial: Trial) -> list[Trial]:
    """The real training images in two halves without an image in common, each to be trained on."""
    real = trial.real
    first = np.isin(real.digests, real.digests[portion(real, 0.5, "half")])
    empty = trial.synthetic.take([])
    return [Trial(real.take(np.flatnonzero(rows)), empty, trial.validation, trial.test, 0) for rows in (first, ~first)]


def _unseen(real: ImageSet, halves: list[Trial], probabilities: list[Array]) -> Array:
    """Of each image the reading by the half that does not hold it, the mean where neither does."""
    seen = np.stack([np.isin(real.digests, half.real.digests) for half in halves])
    weights = (~seen).astype(float)
    weights[:, seen.all(axis=0)] = 1
    return np.einsum("hn,hnk->nk", weights / weights.sum(axis=0), np.stack(probabilities))


def _softmax(logits: Array) -> Array:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _name(trial: Trial, real: ImageSet) -> str:
    if trial.test is trial.validation:
        return "validation images"
    return "test split" if trial.test.dataset.root == real.dataset.root else trial.test.name
