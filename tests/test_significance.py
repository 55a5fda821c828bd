"""Intervals that cover, verdicts that err as rarely as they say, and plans that hold."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from facesynth.significance import (
    Bootstrap,
    Estimate,
    Labels,
    arm_scores,
    differences,
    mcnemar,
    needed,
    points,
    recognition,
    scores,
    smallest,
    verdict,
    width_note,
)

CLASSES = ["happy", "sad", "disgust"]
SHARES = [0.6, 0.36, 0.04]


def read_faces(
    random: np.random.Generator, labels: Labels, hardness: np.ndarray, seeds: int, skill: float, luck: float
) -> Labels:
    """(S, T) readings of one arm: images differ in hardness, seeds in skill for each class, and all of it has chance."""
    own = hardness + random.normal(0, 0.5, len(labels))  # this way of training has its own easy images
    skills = skill + random.normal(0, luck, (seeds, len(CLASSES)))[:, labels]
    right = skills - own + random.normal(0, 0.5, (seeds, len(labels))) > 0
    return np.where(right, labels, (labels + random.integers(1, len(CLASSES), right.shape)) % len(CLASSES))


def experiment(seed: int, images: int, seeds: int, gain: float = 0.0, luck: float = 0.15) -> dict[str, Estimate]:
    random = np.random.default_rng([seed, images, seeds])
    labels = random.choice(len(CLASSES), images, p=SHARES)
    hardness = random.normal(0, 1.5, images)
    first, second = (read_faces(random, labels, hardness, seeds, 1 + more, luck) for more in (gain, 0.0))
    bootstrap = Bootstrap(labels, CLASSES, resamples=100, seed=seed)
    return differences(bootstrap.arm(first), bootstrap.arm(second))


@pytest.mark.parametrize(("images", "seeds"), [(300, 2), (300, 3), (1000, 3)])
def test_intervals_cover_and_equal_arms_are_seldom_told_apart(images: int, seeds: int) -> None:
    runs = [experiment(seed, images, seeds) for seed in range(120)]
    for metric in ("accuracy", "macro_f1", "f1.disgust", "recall.disgust"):
        intervals = [run[metric].interval for run in runs if metric in run]
        assert np.mean([interval.low <= 0 <= interval.high for interval in intervals]) >= 0.93, metric
        assert np.mean([verdict(run[metric]) == "helped" for run in runs if metric in run]) <= 0.05, metric


def test_intervals_are_not_wider_than_they_must_be() -> None:
    """Without luck in training, chance alone decides: accuracy's interval is near what 3 x 1,000 readings allow."""
    runs = [experiment(seed, 1000, 3, luck=0.0)["accuracy"] for seed in range(60)]
    spread = 1.96 * np.std([run.value for run in runs])
    assert spread < np.mean([run.half_width for run in runs]) < 1.4 * spread


def test_true_gain_is_told_and_its_mirror_is_hurt() -> None:
    gains = [experiment(seed, 1000, 3, gain=0.8)["macro_f1"] for seed in range(12)]
    assert [verdict(gain) for gain in gains] == ["helped"] * 12
    losses = [experiment(seed, 1000, 3, gain=-0.8)["macro_f1"] for seed in range(12)]
    assert [verdict(loss) for loss in losses] == ["hurt"] * 12


def test_plan_holds_when_it_is_carried_out() -> None:
    """A difference that few images could not tell is told in most runs of the planned size."""
    small = replace(experiment(0, 300, 3, gain=0.2)["accuracy"], value=0.04)
    sentence = needed(small)
    assert "would tell a difference of 4.0 points" in sentence
    assert "300 test images and 3 seeds tell" in sentence
    words = sentence.replace(",", "").split()
    images, seeds = int(words[1]), int(words[5])
    assert images > 300
    truth = np.mean([experiment(seed, 4000, 3, gain=0.2)["accuracy"].value for seed in range(10)])
    told = [verdict(experiment(seed, images, seeds, gain=0.2 * 0.04 / truth)["accuracy"]) for seed in range(30)]
    assert np.mean([found == "helped" for found in told]) >= 0.7


def test_one_seed_never_tells_and_says_so() -> None:
    labels = np.arange(300) % 3
    bootstrap = Bootstrap(labels, CLASSES)
    best, worst = bootstrap.arm(labels[None]), bootstrap.arm((labels[None] + 1) % 3)
    difference = differences(best, worst)["accuracy"]
    assert difference.value == 1
    assert verdict(difference) == "cannot be told"
    assert "One seed" in needed(difference)
    assert "leave out" in width_note(difference)


@pytest.mark.parametrize(("lucky", "expected"), [(3, "cannot be told"), (4, "cannot be told"), (9, "helped")])
def test_a_few_lucky_images_of_a_rare_class_tell_nothing(lucky: int, expected: str) -> None:
    """Three of three, or four of four, is what a fair coin does in one of eight or sixteen tries."""
    labels = np.array([0] * 60 + [2] * lucky)
    unlucky = np.zeros_like(labels)
    bootstrap = Bootstrap(labels, CLASSES)
    found = differences(bootstrap.arm(np.stack([labels] * 3)), bootstrap.arm(np.stack([unlucky] * 3)))
    assert found["recall.disgust"].value == 1
    assert verdict(found["recall.disgust"]) == expected
    assert not any(name.endswith(".sad") for name in found)  # no test image, no figure


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 3, 200), random.integers(0, 2, (2, 200))  # disgust is never read
    precision, recall, f1, images = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions[0], zero_division=0
    )
    found = recognition(labels, predictions[0], CLASSES)
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions[0]))
    assert found.macro_f1 == pytest.approx(np.mean(f1))
    assert found.confusion == sklearn_metrics.confusion_matrix(labels, predictions[0]).tolist()
    per_class = [found.per_class[name] for name in CLASSES]
    assert [(c.precision, c.recall, c.f1, c.images) for c in per_class] == [
        pytest.approx(row) for row in zip(precision, recall, f1, images, strict=True)
    ]
    both = [recognition(labels, row, CLASSES) for row in predictions]
    arm = Bootstrap(labels, CLASSES).arm(predictions)
    assert scores(arm)["macro_f1"].value == pytest.approx(np.mean([seed.macro_f1 for seed in both]))
    assert arm_scores(arm).precision["sad"].value == pytest.approx(
        np.mean([s.per_class["sad"].precision for s in both])
    )
    assert np.allclose(arm_scores(arm).confusion, np.mean([seed.confusion for seed in both], axis=0))


def test_draws_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_width(seed: int) -> float:
        labels = np.arange(400) % 3
        predictions = np.random.default_rng(1).integers(0, 3, (3, 400))
        return scores(Bootstrap(labels, CLASSES, resamples=200, seed=seed).arm(predictions))["macro_f1"].half_width

    whole = half_width(0)
    assert half_width(0) == whole != half_width(1)
    monkeypatch.setattr("facesynth.significance.BLOCK", 1000)  # in small blocks, as for a huge test set
    assert half_width(0) == pytest.approx(whole, rel=1e-4)


def test_mcnemar_is_exact_on_majority_votes() -> None:
    labels = np.zeros(20, dtype=int)
    always = np.zeros((3, 20), dtype=int)
    mostly_wrong = always.copy()
    mostly_wrong[:2, :5] = 1  # two of three seeds misread five images
    assert mcnemar(labels, always, mostly_wrong) == pytest.approx(2 * 0.5**5)
    seldom_wrong = always.copy()
    seldom_wrong[1, :5] = 1
    assert mcnemar(labels, always, seldom_wrong) == 1.0


def test_unpaired_arms_are_refused() -> None:
    labels = np.arange(30) % 3
    bootstrap = Bootstrap(labels, CLASSES)
    one, two = bootstrap.arm(labels[None]), bootstrap.arm(np.stack([labels, labels]))
    with pytest.raises(ValueError, match="same seeds"):
        differences(one, two)
    with pytest.raises(ValueError, match="same draws"):
        differences(one, Bootstrap(labels, CLASSES).arm(labels[None]))


def test_sentences_name_sizes() -> None:
    estimate = experiment(3, 300, 2)["macro_f1"]
    assert [points(0.008), points(0.0002)] == ["0.8 points", "0.02 points"]
    assert f"300 test images and 2 seeds) a difference in macro-F1 is known to ±{points(estimate.half_width)}" in (
        width_note(estimate)
    )
    assert points(smallest(estimate)) in needed(replace(estimate, value=1e-5))
    assert "too small for any test set" in needed(replace(estimate, value=1e-5))
    assert smallest(estimate) == pytest.approx(estimate.half_width + NormalDist().inv_cdf(0.8) * estimate.error)
