"""Do the synthetic images help? One classifier, trained in every way of `arms`, chosen on validation, told by the test split.

1. All arms are trained on the same division of the images, with the same steps and seeds.
2. The validation images choose: the weight of synthetic images, the class prior that each arm decides with, the parts of
   `remedies` and `combined`, the best arms with and without.
3. The test images are read, once.

An arm decides for the class with the largest log-odds + strength × log(share of the class in the real training images). Evenly
drawn classes make a classifier call rare ones too often, a loss on all images too rarely: with a strength of its own (post-hoc
logit adjustment, Menon et al. 2021, section 4.1) no arm wins or loses by that alone.

An arm may win because of what it does beside using the images. So "helped" is said only where the best arm with synthetic
images beats both the best arm without, and its own `control`: the same training without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesynth import console
from facesynth.arms import COMBINED, CONTROL, SOFT, TOGETHER, Arm, choose, combine, control_of
from facesynth.console import UsageError
from facesynth.evaluation import (
    ArmResult,
    Claim,
    Comparison,
    Point,
    TestSet,
    Uplift,
)
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.recipe import RecognizerSettings
from facesynth.significance import Arm as Drawn
from facesynth.significance import (
    Bootstrap,
    Estimate,
    arm_scores,
    differences,
    mcnemar,
    needed,
    recognition,
    verdict,
    width_note,
)
from facesynth.trials import Bench, Trial, UpliftConfig, divide

Array = NDArray[Any]

WEIGHTS = (0.25, 0.5, 1.0)
"""Loss weights of synthetic images that "auto" tries, on the first seed."""

STRENGTHS = tuple(sorted(np.linspace(-1, 1, 17).tolist(), key=abs))
"""Of the class prior in an arm's decisions, those first that change least."""

_WITHOUT_ANY = {"only": "these classes are not learnt at all", "rare": "these classes have real ones alone"}
"""What it means for an arm that a class has no synthetic images."""

FEW_PASSES = 8
"""Over the real images: shorter trainings are said to be short. On FER2013 small networks go on learning for longer."""


@dataclass(frozen=True)
class Outcome:
    """What an uplift found, and how the best arms read each test image: arm's name → (seeds, T) classes; `labels` (T,)."""

    uplift: Uplift
    labels: Array
    predictions: dict[str, Array]


def measure(
    real: ImageSet,
    synthetic: SyntheticSet,
    config: UpliftConfig,
    folder: Path,
    test: ImageSet | None = None,
    without: Mapping[TestSet, Array] = {},
) -> Outcome:
    """Train and compare the arms; `synthetic` is labelled by the classes of `real`, and so is `test`.

    `test` is another dataset to test on, instead of the test split of `real`; `without` names parts of the test images, and which
    (T,) bool each leaves out: claims are told on the last. Trainings are kept in `folder`: a call that was stopped goes on.
    Raises UsageError where an arm is unknown, or there is nothing to train, choose or test on.
    """
    arms = _possible(choose(config.arms), real, synthetic)
    if not len(synthetic):
        raise UsageError(f"{synthetic.name} has no synthetic image: there is nothing that could help.")
    study = _Study(divide(real, synthetic, config, test), config, folder)
    with study.planned(arms):
        weight = study.choose_weight(arms)
        arms = [arm.weighted(weight) for arm in arms]
        study.validate(arms)
        made = [combine(name, arms, study.validation) for name in study.to_combine]
        study.validate([arm for arm in made if arm])
        best_with = study.best(with_synthetic=True)
        control = study.control(best_with)
        best_without = study.best(with_synthetic=False)
        points = study.train_points(best_with, best_without)
        study.bench.progress.end()
    console.note(f"reading {sum(len(trial.test) for trial in study.trials):,} test images by {len(study.arms)} arms")
    verdicts = _Verdicts(study, without)  # nothing is chosen from here on
    return verdicts.outcome(best_with, best_without, control, points, weight)


def _possible(arms: list[Arm], real: ImageSet, synthetic: SyntheticSet) -> list[Arm]:
    """The arms that there are readings for; raises UsageError where none without synthetic images is left."""
    if real.probabilities is not None and synthetic.probabilities is not None:
        return arms
    left = [arm for arm in arms if arm.name != SOFT]
    if all(arm.uses_synthetic for arm in left):
        raise UsageError(f"--arms {SOFT} needs a judge that knows all classes of {real.name}: give one as --judge.")
    if left != arms:
        console.warn(f"the arm {SOFT} is left out: the judge does not know all classes of {real.name}.")
    return left


class _Study:
    """Trains arms and ranks them on the validation images."""

    def __init__(self, trials: list[Trial], config: UpliftConfig, folder: Path) -> None:
        self.trials, self.config = trials, config
        self.seeds = config.seed_list()
        self.to_combine = [name for name in (TOGETHER, COMBINED) if not config.arms or name in config.arms]
        self.bench = Bench(config, folder)
        self.arms: dict[str, Arm] = {}
        self.validation: dict[str, float] = {}

    def planned(self, arms: Sequence[Arm]) -> Any:
        """The progress bar, for as many trainings as there may be."""
        count = len(arms) + len(self.to_combine) + (COMBINED in self.to_combine)  # and the control of that
        count += 2 * sum(value < 1 for value in (*self.config.fractions, *self.config.ratios))
        count *= len(self.seeds)
        count += (len(WEIGHTS) - 1) * (self.config.synthetic_weight == "auto")
        self.bench.progress.total = count * sum(self.bench.images(trial) for trial in self.trials)
        return self.bench.progress

    def choose_weight(self, arms: Sequence[Arm]) -> float:
        """The loss weight of synthetic images: the user's, or the best of `WEIGHTS` for the first mixing arm there is."""
        if self.config.synthetic_weight != "auto":
            return self.config.synthetic_weight
        probe = next((arm for name in ("share", "rare", "first") for arm in arms if arm.name == name), None)
        if probe is None:
            return 1.0
        scores = {weight: self._macro_f1(probe.weighted(weight), self.seeds[:1]) for weight in WEIGHTS}
        return max(scores, key=lambda weight: scores[weight])

    def validate(self, arms: Sequence[Arm]) -> None:
        """Train arms and score them on the validation images."""
        for arm in arms:
            self.bench.progress.describe(arm.name)
            self.validation[arm.name] = self._macro_f1(arm, self.seeds)
            self.arms[arm.name] = arm

    def _macro_f1(self, arm: Arm, seeds: Sequence[int]) -> float:
        """Mean over trials and seeds."""
        return self._decided(arm, self.trials, seeds)[1]

    def prior_strength(self, arm: Arm, trials: Sequence[Trial]) -> float:
        """With what strength of the class prior the arm decides: the best by the validation images."""
        return self._decided(arm, trials, self.seeds)[0]

    def _decided(self, arm: Arm, trials: Sequence[Trial], seeds: Sequence[int]) -> tuple[float, float]:
        """A strength of the class prior, and the macro-F1 that the validation images of all trials give it.

        The one that changes least among those that are within a standard error of the best (Breiman et al. 1984, section
        3.4.3): a few images of a rare class must not say more than they can.
        """
        read = [[self.bench.read(trial, arm.settings, seed, trial.validation) for seed in seeds] for trial in trials]
        labels = np.concatenate([trial.validation.labels for trial in trials])
        bootstrap = Bootstrap(labels, trials[0].real.classes, resamples=200)
        drawn = {}
        for strength in STRENGTHS:
            decided = [_decide(trial, np.stack(logits), strength) for trial, logits in zip(trials, read, strict=True)]
            drawn[strength] = bootstrap.arm(np.concatenate(decided, axis=1))
        scores = {strength: arm_scores(found).macro_f1.value for strength, found in drawn.items()}
        best = max(scores, key=lambda strength: scores[strength])
        lost = {strength: differences(drawn[best], found)["macro_f1"] for strength, found in drawn.items()}
        chosen = next(strength for strength in STRENGTHS if lost[strength].value <= lost[strength].error)
        return chosen, scores[chosen]

    def best(self, with_synthetic: bool) -> Arm:
        """The arm with or without synthetic images that does best on the validation images."""
        arms = [arm for arm in self.arms.values() if arm.uses_synthetic == with_synthetic]
        return max(arms, key=lambda arm: self.validation[arm.name])

    def control(self, arm: Arm) -> Arm | None:
        """The arm that trains as `arm`, but without synthetic images; made where there is none yet."""
        wanted = control_of(arm)
        if wanted is None:
            return None
        found = next((other for other in self.arms.values() if other.settings == wanted.settings), None)
        if found is None:
            self.validate([wanted])
        return found or wanted

    def train_points(self, *arms: Arm) -> list[tuple[str, float, list[Trial]]]:
        """Train the arms on shares of the images; returns (kind, value, trials) of each point."""
        sweeps = [("fraction", value) for value in self.config.fractions]
        sweeps += [("ratio", value) for value in self.config.ratios]
        points = []
        for kind, value in sweeps:
            trials = self.trials if value >= 1 else [trial.reduced(**{kind: value}) for trial in self.trials]
            self.bench.progress.describe(f"{kind} {value:g}")
            for trial, arm, seed in ((t, a, s) for t in trials for a in arms for s in self.seeds):
                if value < 1:
                    self.bench.train(trial, arm.settings, seed)
            points.append((kind, value, trials))
        return points

    def predict(self, arm: Arm, trials: Sequence[Trial] | None = None) -> Array:
        """(seeds, T) classes that the arm reads in the test images, those of all folds one after the other."""
        trials = trials or self.trials
        strength = self.prior_strength(arm, trials)
        parts = [
            [_decide(trial, self.bench.read(trial, arm.settings, seed, whole.test), strength) for seed in self.seeds]
            for trial, whole in zip(trials, self.trials, strict=True)
        ]
        return np.concatenate(parts, axis=1)


def _decide(trial: Trial, logits: Array, strength: float) -> Array:
    """(...) classes: those of the largest log-odds (..., K), with so much of the class prior."""
    counts = np.bincount(trial.real.labels, minlength=len(trial.real.classes)).clip(min=1)
    return np.asarray(
        (logits + np.float32(strength) * np.log(counts / counts.sum()).astype(np.float32)).argmax(axis=-1)
    )


class _Verdicts:
    """Compares arms on the test images: all of them, and parts of them."""

    def __init__(self, study: _Study, without: Mapping[TestSet, Array]) -> None:
        self.study, self.config = study, study.config
        self.classes = study.trials[0].real.classes
        self.labels = np.concatenate([trial.test.labels for trial in study.trials])
        everything = np.ones(len(self.labels), bool)
        self.rows: dict[TestSet, Array] = {"all": everything}
        self.rows |= {part: ~left_out for part, left_out in without.items() if not left_out.all()}
        self.told_on = list(self.rows)[-1]
        self.bootstraps = {part: Bootstrap(self.labels[rows], self.classes) for part, rows in self.rows.items()}
        self.predictions = {name: study.predict(arm) for name, arm in study.arms.items()}
        self.drawn = {name: self._draw(read) for name, read in self.predictions.items()}

    def _draw(self, predictions: Array) -> dict[TestSet, Drawn]:
        return {part: self.bootstraps[part].arm(predictions[:, rows]) for part, rows in self.rows.items()}

    def outcome(
        self,
        best_with: Arm,
        best_without: Arm,
        control: Arm | None,
        points: list[tuple[str, float, list[Trial]]],
        weight: float,
    ) -> Outcome:
        """All that is told."""
        study, trial = self.study, self.study.trials[0]
        training = self.config.training(len(trial.real), RecognizerSettings())
        uplift = Uplift(
            classifier=_classifier_name(training.network),
            steps=training.images // training.batch_size,
            batch_size=training.batch_size,
            seeds=study.seeds,
            test=_test_name(study),
            test_images={part: int(rows.sum()) for part, rows in self.rows.items()},
            real_images=_mean([len(trial.real) for trial in study.trials]),
            validation_images=_mean([len(trial.validation) for trial in study.trials]),
            synthetic_images=_mean([len(trial.synthetic) for trial in study.trials]),
            best_with=best_with.name,
            best_without=best_without.name,
            synthetic_weight=weight,
            arms=[self._arm_result(arm) for arm in study.arms.values()],
            comparisons=self._comparisons(best_with, best_without),
            claims=self._claims(best_with, best_without, control),
            points=[self._point(kind, value, trials, best_with, best_without) for kind, value, trials in points],
            notes=self._notes(best_with, best_without),
        )
        best = {arm.name: self.predictions[arm.name] for arm in (best_with, best_without)}
        return Outcome(uplift, self.labels, best)

    def _arm_result(self, arm: Arm) -> ArmResult:
        return ArmResult(
            name=arm.name,
            title=arm.title,
            uses_synthetic=arm.uses_synthetic,
            settings=arm.settings.model_dump(mode="json"),
            validation=self.study.validation[arm.name],
            prior_strength=self.study.prior_strength(arm, self.study.trials),
            scores={part: arm_scores(drawn) for part, drawn in self.drawn[arm.name].items()},
            per_seed={
                part: [recognition(self.labels[rows], read[rows], self.classes) for read in self.predictions[arm.name]]
                for part, rows in self.rows.items()
            },
            note=self._arm_note(arm),
        )

    def _arm_note(self, arm: Arm) -> str:
        if not arm.uses_synthetic:
            return ""
        counts = self.study.trials[0].synthetic.counts()
        lacking = [name for name, count in counts.items() if not count]
        if not lacking:
            return ""
        effect = _WITHOUT_ANY.get(arm.settings.synthetic, "there the look of the generator tells what a face is not")
        return f"No synthetic images in {', '.join(lacking)}: {effect}."

    # --- pairs --------------------------------------------------------------------------------------------------------

    def _comparisons(self, best_with: Arm, best_without: Arm) -> list[Comparison]:
        """The best arm with synthetic images against each without, and the best without against each with them."""
        pairs = [(best_with, arm) for arm in self.study.arms.values() if not arm.uses_synthetic]
        pairs += [(arm, best_without) for arm in self.study.arms.values() if arm.uses_synthetic and arm != best_with]
        return [
            comparison
            for arm, against in pairs
            for part in self.rows
            for comparison in self._compare(arm, against, part).values()
        ]

    def _estimates(self, arm: Arm, against: Arm, part: TestSet) -> dict[str, Estimate]:
        return differences(self.drawn[arm.name][part], self.drawn[against.name][part])

    def _compare(self, arm: Arm, against: Arm, part: TestSet) -> dict[str, Comparison]:
        """Metric → comparison."""
        rows = self.rows[part]
        first, second = (self.predictions[a.name][:, rows] for a in (arm, against))
        p_value = mcnemar(self.labels[rows], first, second)
        return {
            metric: Comparison(
                arm=arm.name,
                against=against.name,
                test_set=part,
                metric=metric,
                difference=estimate.interval,
                mcnemar=p_value if metric == "accuracy" else None,
            )
            for metric, estimate in self._estimates(arm, against, part).items()
        }

    # --- claims -------------------------------------------------------------------------------------------------------

    def _claims(self, best_with: Arm, best_without: Arm, control: Arm | None) -> list[Claim]:
        """Macro-F1, accuracy and the rarest class against the best arm without the images; macro-F1 against the control."""
        rarest = min(self._told_classes(), key=lambda name: self.study.trials[0].real.counts()[name])
        metrics = {"macro_f1": "macro-F1", "accuracy": "accuracy", f"f1.{rarest}": f"F1 of {rarest}"}
        claims = [self._claim(best_with, best_without, control, metric, title) for metric, title in metrics.items()]
        if control is not None and control.name != best_without.name:
            claims.append(self._claim(best_with, control, None, "macro_f1", "macro-F1"))
        return claims

    def _told_classes(self) -> list[str]:
        present = np.unique(self.labels[self.rows[self.told_on]])
        return [self.classes[k] for k in present]

    def _claim(self, arm: Arm, against: Arm, control: Arm | None, metric: str, title: str) -> Claim:
        estimate = self._estimates(arm, against, self.told_on)[metric]
        found, missing = verdict(estimate), needed(estimate)
        if found == "helped" and control is not None and control.name != against.name:
            beside = self._estimates(arm, control, self.told_on)[metric]
            if verdict(beside) != "helped":
                found = "cannot be told"
                missing = f"It beats {against.name}, but not surely its own control ({control.title}). {needed(beside)}"
        return Claim(
            sentence=f"Synthetic images raise {title}: {arm.name} ({arm.title}) against {against.name} ({against.title}).",
            verdict=found,
            comparison=self._compare(arm, against, self.told_on)[metric],
            needed=missing.strip(),
        )

    def _point(self, kind: Any, value: float, trials: list[Trial], arm: Arm, against: Arm) -> Point:
        rows, bootstrap = self.rows[self.told_on], self.bootstraps[self.told_on]
        first, second = (bootstrap.arm(self.study.predict(a, trials)[:, rows]) for a in (arm, against))
        return Point(
            kind=kind,
            value=value,
            real_images=_mean([len(trial.real) for trial in trials]),
            synthetic_images=_mean([len(trial.synthetic) for trial in trials]),
            arm=arm.name,
            against=against.name,
            arm_macro_f1=arm_scores(first).macro_f1,
            against_macro_f1=arm_scores(second).macro_f1,
            difference=differences(first, second)["macro_f1"].interval,
        )

    def _notes(self, best_with: Arm, best_without: Arm) -> list[str]:
        trials = self.study.trials
        notes = [width_note(self._estimates(best_with, best_without, self.told_on)["macro_f1"])]
        passes = self.study.bench.images(trials[0]) / max(1, len(trials[0].real))
        if passes < FEW_PASSES:
            notes.append(
                f"Every training was short, {passes:.1f} passes over the real images: with more --steps the arms may order "
                "differently."
            )
        left_out = _mean([trial.left_out for trial in trials])
        if left_out:
            notes.append(
                f"{left_out:,} synthetic images were left out of training: they were made of images that are held out."
            )
        if all(source is None for source in trials[0].synthetic.sources):
            notes.append(
                "It is unknown of which real images the synthetic ones were made: none could be left out for it."
            )
        if self.config.folds:
            notes.append(f"Numbers of images are means over {self.config.folds} folds.")
        if CONTROL in self.study.arms:
            notes.append(f"{CONTROL} trains as {best_with.name} does, but without synthetic images.")
        return notes


def _mean(numbers: Sequence[int]) -> int:
    return round(sum(numbers) / len(numbers))


def _classifier_name(network: dict[str, Any]) -> str:
    return "ResNet-18" if network["architecture"] == "resnet18" else f"small residual network, width {network['width']}"


def _test_name(study: _Study) -> str:
    trial = study.trials[0]
    if study.config.folds:
        return f"{study.config.folds} folds of the training split"
    return "test split" if trial.test.dataset.root == trial.real.dataset.root else trial.test.name
