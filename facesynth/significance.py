"""Can a difference between two classifiers be told from chance? Intervals over test images and seeds, and verdicts.

A score varies for two reasons: other test images could have been drawn, and other seeds could have been used for training.

- Images: Bayesian bootstrap (Rubin 1981). A draw gives each test image a random weight, so that no class is ever absent
  from a draw; all seeds and all arms see the same draws. To each class is added one image that is read rightly and one that
  is read wrongly (the other way round for the second arm of a pair), as Bonett & Price (2012) do for paired proportions:
  without them, two or three lucky images of a rare class would look like certainty.
- Seeds: Student's t. The variance between seeds of a difference is that of the paired differences, or the sum of both
  arms' variances where this is larger: two to five pairs alone are too few to estimate it from.
- Together: squared half-widths add (MOVER, Zou & Donner 2008), which covers with two or three seeds where Satterthwaite's t
  does not. Each seed also reads the doubtful images its own way: that part of the variance is counted with the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from facesynth.evaluation import ArmScores, ClassScores, Interval, Recognition, Verdict

Labels = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]

LEVEL = 0.95
POWER = 0.80
"""A difference "can be told" at a size where this share of repetitions would tell it."""

SEED_CHOICES = (3, 5, 10, 20)
MOST_IMAGES = 200_000  # no test set of expressions is larger

BLOCK = 16_000_000  # weights drawn at once: 64 MB


# --- scores of one run ------------------------------------------------------------------------------------------------


def recognition(labels: Labels, predictions: Labels, classes: Sequence[str]) -> Recognition:
    """Scores of one classifier: `labels` and `predictions` are (T,) indices into `classes`.

    Definitions are scikit-learn's with `zero_division=0`; macro-F1 is the mean over the classes that have test images.
    """
    confusion = confusion_counts(labels, predictions, len(classes))
    precision, recall, f1 = _class_scores(confusion.astype(float))
    images = confusion.sum(axis=1)
    return Recognition(
        accuracy=float(confusion.trace() / max(1, images.sum())),
        macro_f1=float(f1[images > 0].mean()) if images.any() else 0.0,
        per_class={
            name: ClassScores(
                precision=float(precision[i]), recall=float(recall[i]), f1=float(f1[i]), images=int(images[i])
            )
            for i, name in enumerate(classes)
        },
        confusion=confusion.tolist(),
    )


def confusion_counts(labels: Labels, predictions: Labels, classes: int) -> npt.NDArray[np.int64]:
    """(K, K) counts: row the true class, column the class that was read."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def _class_scores(confusion: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1, each (..., K), of (..., K, K) confusion matrices."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    images, read = confusion.sum(axis=-1), confusion.sum(axis=-2)

    def ratio(part: Floats, whole: Floats) -> Floats:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    return ratio(right, read), ratio(right, images), ratio(2 * right, images + read)


# --- estimates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with what makes it uncertain.

    Of the variance of one seed's score, `image_variance` is over test images and shared by all seeds, `chance` is over test
    images too but of each seed's own, and `seed_variance` is that between seeds, `chance` with it. With one seed the latter
    two are 0 because they are unknown: the interval is then too narrow. `image_freedom` and `seed_freedom` are degrees of
    freedom; `bounds` is the range that the score can take. `center` is the value with the added images, which draw the
    interval of a rare class toward the middle (Agresti & Coull 1998).
    """

    value: float
    center: float
    image_variance: float
    image_freedom: float
    chance: float
    seed_variance: float
    seed_freedom: float
    images: int
    seeds: int
    bounds: tuple[float, float]

    @property
    def error(self) -> float:
        """Standard error of `value`."""
        return math.sqrt(self.image_variance + max(self.seed_variance, self.chance) / self.seeds)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval: never less than the bootstrap over images alone gives."""
        over_images = _student(self.image_freedom) * math.sqrt(self.image_variance + self.chance / self.seeds)
        image_part = _student(self.image_freedom) * math.sqrt(self.image_variance)
        seed_part = _student(self.seed_freedom) * math.sqrt(self.seed_variance / self.seeds)
        return max(over_images, math.hypot(image_part, seed_part))

    @cached_property
    def interval(self) -> Interval:
        """The value with its 95 % interval."""
        low = max(self.bounds[0], self.center - self.half_width)
        high = min(self.bounds[1], self.center + self.half_width)
        return Interval(value=self.value, low=min(low, self.value), high=max(high, self.value))


def _student(freedom: float) -> float:
    """Half-width of the 95 % interval in standard errors."""
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


class Arm:
    """What the seeds of one arm read, as confusion matrices: `counts` (S, K, K) and, under B draws, `drawn` (B, S, K, K)."""

    def __init__(self, counts: Floats, drawn: Floats, bootstrap: Bootstrap) -> None:
        self.counts, self.drawn, self.bootstrap = counts, drawn, bootstrap

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len(self.counts)


class Bootstrap:
    """Draws of the test images, the same for every arm."""

    def __init__(self, labels: Labels, classes: Sequence[str], resamples: int = 1000, seed: int = 0) -> None:
        """`labels` are (T,) indices into `classes`, T > 0."""
        self.classes = list(classes)
        self.resamples = resamples
        self._seed = seed
        self._order = np.argsort(labels, kind="stable")
        self.images = np.bincount(labels, minlength=len(classes))
        """(K,) test images of each class."""
        self.present = np.flatnonzero(self.images)

    def arm(self, predictions: Labels) -> Arm:
        """`predictions` is (S, T): what S seeds of one arm read, as indices into `classes`."""
        classes = len(self.classes)
        read = np.eye(classes, dtype=np.float32)[np.asarray(predictions)[:, self._order]]  # (S, T, K)
        drawn = np.empty((self.resamples, len(read), classes, classes), dtype=np.float32)
        counts = np.zeros((len(read), classes, classes))
        ends = np.cumsum(self.images)
        for k, (start, end) in enumerate(zip(ends - self.images, ends, strict=True)):
            of_class = read[:, start:end].transpose(1, 0, 2).reshape(end - start, len(read) * classes)
            counts[:, k] = of_class.sum(axis=0).reshape(len(read), classes)
            drawn[:, :, k] = self._weigh(k, of_class).reshape(self.resamples, len(read), classes)
        return Arm(counts, drawn, self)

    def _weigh(self, k: int, values: Floats) -> Floats:
        """(B, M): sums of the (N, M) values of the images of class k under the weights of each draw."""
        random = np.random.default_rng([self._seed, k])
        rows = max(1, BLOCK // max(1, len(values)))
        blocks = [min(rows, self.resamples - start) for start in range(0, self.resamples, rows)]
        return np.concatenate(
            [random.standard_exponential((size, len(values)), dtype=np.float32) @ values for size in blocks]
        )

    @cached_property
    def added(self) -> Floats:
        """(2, B, 1, K, K): the images added to each class, one read rightly and one wrongly, for the first and the second
        arm of a pair. A wrong reading is spread evenly over the other classes."""
        classes = len(self.classes)
        random = np.random.default_rng([self._seed, classes])
        weights = random.standard_exponential((2, self.resamples, 1, classes, 1), dtype=np.float32)
        weights[..., self.images == 0, :] = 0
        right = np.eye(classes, dtype=np.float32)
        wrong = (1 - right) / max(1, classes - 1)
        return np.stack([weights[0] * right + weights[1] * wrong, weights[1] * right + weights[0] * wrong])


def scores(arm: Arm) -> dict[str, Estimate]:
    """Metric → its mean over the seeds: accuracy, macro_f1, and f1.CLASS, precision.CLASS and recall.CLASS of every class
    that has test images."""
    present = arm.bootstrap.present
    drawn = _metrics(arm.drawn + arm.bootstrap.added[0], present)
    values = _metrics(arm.counts, present)
    seed_spread = Spread(_variance(values), arm.seeds - 1)
    return _estimates(arm, values, drawn, seed_spread, bounds=(0.0, 1.0))


def differences(first: Arm, second: Arm) -> dict[str, Estimate]:
    """Metric → the first arm's score minus the second's, paired over test images and seeds; both from one Bootstrap.

    Raises ValueError where the arms differ in their number of seeds or come from two Bootstraps.
    """
    if first.bootstrap is not second.bootstrap or first.seeds != second.seeds:
        raise ValueError("paired arms need the same draws of test images and the same seeds")
    present, added = first.bootstrap.present, first.bootstrap.added
    first_values, second_values = _metrics(first.counts, present), _metrics(second.counts, present)
    drawn = _metrics(first.drawn + added[0], present) - _metrics(second.drawn + added[1], present)
    paired, unpaired = _variance(first_values - second_values), _variance(first_values) + _variance(second_values)
    seed_spread = Spread(np.maximum(paired, unpaired), 2 * (first.seeds - 1))
    return _estimates(first, first_values - second_values, drawn, seed_spread, bounds=(-1.0, 1.0))


def _metrics(confusion: Floats, present: Labels) -> Floats:
    """(..., 2 + 3 P) scores of (..., K, K) confusion matrices: accuracy, macro-F1, then F1, precision, recall of P classes."""
    precision, recall, f1 = (part[..., present] for part in _class_scores(confusion))
    accuracy = np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))
    return np.concatenate([accuracy[..., None], f1.mean(axis=-1)[..., None], f1, precision, recall], axis=-1)


class Spread(NamedTuple):
    """(M,) variances of M metrics between seeds, and their degrees of freedom."""

    variance: Floats
    freedom: int


def _variance(values: Floats) -> Floats:
    """(M,) variances over S seeds of (S, M) values; zero with one seed."""
    return values.var(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _estimates(
    arm: Arm, values: Floats, drawn: Floats, seed_spread: Spread, bounds: tuple[float, float]
) -> dict[str, Estimate]:
    """Estimates of M metrics from their (S, M) values and (B, S, M) values under the draws."""
    bootstrap, seeds = arm.bootstrap, len(values)
    over_images = drawn.mean(axis=1).var(axis=0, ddof=1)
    centers = drawn.mean(axis=(0, 1))
    chance = np.zeros_like(over_images)
    if seeds > 1:
        chance = np.maximum(drawn.var(axis=0, ddof=1).mean(axis=0) - over_images, 0) * seeds / (seeds - 1)
    freedoms = _freedoms(bootstrap, over_images[2 : 2 + len(bootstrap.present)])
    return {
        name: Estimate(
            value=float(values[:, i].mean()),
            center=float(centers[i]),
            image_variance=max(0.0, float(over_images[i] - chance[i] / seeds)),
            image_freedom=freedom,
            chance=float(chance[i]),
            seed_variance=float(seed_spread.variance[i]),
            seed_freedom=float(max(1, seed_spread.freedom)),
            images=int(bootstrap.images.sum()),
            seeds=seeds,
            bounds=bounds,
        )
        for i, (name, freedom) in enumerate(freedoms.items())
    }


def _freedoms(bootstrap: Bootstrap, f1_variance: Floats) -> dict[str, float]:
    """Metric → degrees of freedom of its variance over test images: few where few images decide."""
    of_class = bootstrap.images[bootstrap.present] + 1.0  # with the two added images, less one
    spread = (f1_variance**2 / of_class).sum()
    macro = float(f1_variance.sum() ** 2 / spread) if spread > 0 else float(of_class.min())
    freedoms = {"accuracy": float(bootstrap.images.sum() + 1), "macro_f1": macro}
    names = [bootstrap.classes[k] for k in bootstrap.present]
    for metric in ("f1", "precision", "recall"):
        freedoms |= {f"{metric}.{name}": float(freedom) for name, freedom in zip(names, of_class, strict=True)}
    return freedoms


def arm_scores(arm: Arm) -> ArmScores:
    """The arm's scores as report.json holds them; classes without test images have none."""
    intervals = {name: estimate.interval for name, estimate in scores(arm).items()}

    def of(metric: str) -> dict[str, Interval]:
        prefix = f"{metric}."
        return {name.removeprefix(prefix): found for name, found in intervals.items() if name.startswith(prefix)}

    return ArmScores(
        accuracy=intervals["accuracy"],
        macro_f1=intervals["macro_f1"],
        precision=of("precision"),
        recall=of("recall"),
        f1=of("f1"),
        confusion=arm.counts.mean(axis=0).tolist(),
    )


# --- what can be said -------------------------------------------------------------------------------------------------


def mcnemar(labels: Labels, first: Labels, second: Labels) -> float:
    """p-value of McNemar's exact test on the majority votes over the seeds of two arms, (S, T) each."""
    first_right, second_right = _majority(first) == labels, _majority(second) == labels
    gained, lost = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _majority(predictions: Labels) -> Labels:
    """(T,) class that most of the S seeds read; the first seed decides between equals."""
    votes = np.eye(int(predictions.max()) + 1, dtype=np.float32)[predictions]
    return np.argmax(votes.sum(axis=0) + 0.5 * votes[0], axis=-1)


def verdict(difference: Estimate) -> Verdict:
    """Helped or hurt where the interval excludes zero; never with one seed, for which luck of training is unknown."""
    interval = difference.interval
    if difference.seeds > 1 and interval.low > 0:
        return "helped"
    if difference.seeds > 1 and interval.high < 0:
        return "hurt"
    return "cannot be told"


def smallest(difference: Estimate) -> float:
    """The smallest true difference that this size tells in four of five repetitions."""
    return difference.half_width + float(special.ndtri(POWER)) * difference.error


def needed(difference: Estimate) -> str:
    """How much data would tell a true difference of the size that was seen; empty where the verdict is told.

    Supposes that the test set keeps its shares of the classes, and that errors shrink with the root of its size.
    """
    if verdict(difference) != "cannot be told":
        return ""
    if difference.seeds < 2:
        return "One seed cannot tell a gain from luck in training: train three or more."
    size = points(abs(difference.value))
    here = (
        f"{difference.images:,} test images and {difference.seeds} seeds tell {points(smallest(difference))} or more."
    )
    plan = _plan(difference)
    if plan is None:
        return f"A difference of {size} is too small for any test set in use to tell; {here}"
    images, seeds = plan
    return f"About {images:,} test images and {seeds} seeds would tell a difference of {size}; {here}"


def points(share: float) -> str:
    """A share as percentage points: "0.8 points"."""
    return f"{100 * share:.2f} points" if abs(share) < 0.001 else f"{100 * share:.1f} points"


def _plan(difference: Estimate) -> tuple[int, int] | None:
    """Test images and seeds that would tell a true difference of this size: the least work, images times seeds."""
    plans = []
    for seeds in sorted({difference.seeds, *(choice for choice in SEED_CHOICES if choice > difference.seeds)}):
        for images in np.geomspace(difference.images, max(difference.images, MOST_IMAGES), 300):
            if smallest(_resized(difference, images, seeds)) <= abs(difference.value):
                plans.append((_rounded_up(images), seeds))
                break
    return min(plans, key=lambda plan: plan[0] * plan[1], default=None)


def _resized(difference: Estimate, images: float, seeds: int) -> Estimate:
    """The same difference as another number of test images and seeds would estimate it."""
    grown = images / difference.images
    chance = difference.chance / grown
    return replace(
        difference,
        image_variance=difference.image_variance / grown,
        image_freedom=difference.image_freedom * grown,
        chance=chance,
        seed_variance=max(0.0, difference.seed_variance - difference.chance) + chance,
        seed_freedom=difference.seed_freedom * (seeds - 1) / (difference.seeds - 1),
        images=round(images),
        seeds=seeds,
    )


def _rounded_up(number: float) -> int:
    """To two figures: a plan is no more precise."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def width_note(difference: Estimate, metric: str = "macro-F1") -> str:
    """One sentence on how wide the interval of a difference is: what a small run can tell at all."""
    size = f"{difference.images:,} test images and {difference.seeds} seed{'' if difference.seeds == 1 else 's'}"
    if difference.seeds < 2:
        return f"{size}: intervals leave out how much results vary from training to training."
    return (
        f"At this size ({size}) a difference in {metric} is known to ±{points(difference.half_width)}: "
        f"only true differences of {points(smallest(difference))} or more are told reliably."
    )
