"""`facesynth evaluate`: are synthetic images good, are they safe to use, and do they help? Measured, told, and drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesynth import (
    __version__,
    console,
    evaluation_page,
    fairness,
    fidelity,
    pictures,
    safety,
    thresholds,
    uplift,
    weights,
)
from facesynth import config as configs
from facesynth.arms import QUICK
from facesynth.config import EvaluateConfig
from facesynth.console import UsageError, printable
from facesynth.device import pick_device
from facesynth.evaluation import Bias, Doubts, Evaluation, Fidelity, Leakage, Safety, TestSet
from facesynth.expression import Judge, load_judge
from facesynth.extractors import open_extractor
from facesynth.groups import NO_GROUPS, Groups, find_groups
from facesynth.identity import LICENCE_SENTENCE, FaceEmbedder, open_embedder
from facesynth.imageset import ImageSet, SyntheticSet, judged, read_real, read_synthetic
from facesynth.output import check_output, write_atomic
from facesynth.readings import Readings, take_readings
from facesynth.runfolder import folder_of
from facesynth.significance import points
from facesynth.synthesis import rows_of_run
from facesynth.trials import UpliftConfig
from facesynth.uplift import Outcome

Array = NDArray[Any]

READING_IMAGES = 40_000
"""Training images that each classifier sees that only reads (GAN-train, GAN-test, label doubts), where no steps are given."""


@dataclass(frozen=True)
class Inputs:
    """What is evaluated: real images of all splits, synthetic ones, and those of `--test` where given, all with REAL's classes.

    `tested` are the images that classifiers are tested on: those of `--test`, else of the test split.
    """

    real: ImageSet
    synthetic: SyntheticSet
    test: ImageSet | None
    features: str
    judge: Judge
    embedder: FaceEmbedder | None

    @property
    def tested(self) -> ImageSet:
        """The images that classifiers are tested on; there may be none."""
        return self.real.of("test") if self.test is None else self.test


def evaluate(real: str | Path, synthetic: str | Path, **settings: Any) -> Evaluation:
    """Evaluate synthetic images against the real dataset they are meant for; writes `out` with report.html and report.json.

    `settings` are the fields of `EvaluateConfig`. Raises UsageError for wrong settings or sets that have nothing in common,
    and FacesynthError when the evaluation cannot go on; trainings that are done are kept for `on_existing="resume"`.
    """
    return run(configs.load(EvaluateConfig, {"real": Path(real), "synthetic": Path(synthetic), **settings}))


def run(config: EvaluateConfig) -> Evaluation:
    """`evaluate` with validated settings."""
    under, over = thresholds.parse(config.fail_under), thresholds.parse(config.fail_over)
    folder = _begin(config)
    config = config.model_copy(update={"judge": weights.pin(config.judge)})
    device, device_note = pick_device(config.device)
    inputs = _read(config, device)
    thresholds.require_known([*under, *over], inputs.real.classes, config.uplift)
    console.note(f"device: {device_note}   features: {inputs.features}   seed: {config.seed}")
    groups = find_groups(inputs.real, inputs.synthetic, config.groups, config.groups_table, inputs.embedder)
    if config.on_existing == "overwrite":
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    leakage = safety.leakage(inputs.real, inputs.synthetic, inputs.test, config.seed)
    inputs = _judged(config, inputs)
    outcome = _measure_uplift(config, inputs, leakage, folder) if config.uplift else None
    readings = _take_readings(config, inputs, folder)
    bias = _bias(config, inputs, groups, readings, outcome)
    found = Safety(
        copies=safety.copies(inputs.real, inputs.synthetic, config.seed),
        leakage=leakage,
        labels=_label_doubts(inputs, readings),
        bias=bias,
        notes=[] if bias else [NO_GROUPS],
    )
    good = _fidelity(config, inputs, readings, device)
    evaluation = Evaluation(
        facesynth=__version__,
        real=inputs.real.name,
        synthetic=inputs.synthetic.name,
        classes=list(inputs.real.classes),
        counts={split: inputs.real.of(split).counts() for split in ("train", "val", "test")}
        | {"synthetic": inputs.synthetic.counts()},
        fidelity=good,
        safety=found,
        uplift=outcome.uplift if outcome else None,
        verdict=_verdict(good, found, outcome, inputs),
        settings=config.model_dump(mode="json", exclude={"out", "on_existing"}),
        warnings=_warnings(inputs),
    )
    _write(config.out, evaluation, inputs)
    return evaluation


def broken_bounds(evaluation: Evaluation, config: EvaluateConfig) -> list[str]:
    """A line for each `--fail-under` and `--fail-over` that does not hold."""
    return thresholds.broken(evaluation, thresholds.parse(config.fail_under), thresholds.parse(config.fail_over))


# --- in ---------------------------------------------------------------------------------------------------------------


def _begin(config: EvaluateConfig) -> Path:
    """The folder of the trainings, not yet made. Raises UsageError where `out` cannot be used; touches no other thing."""
    for source in (config.real, config.synthetic, *([config.test] if config.test else [])):
        check_output(source, config.out)
    folder = config.out / "trainings"
    if config.out.exists() and any(config.out.iterdir()):
        if not folder.is_dir():
            raise UsageError(f"{printable(config.out)} was not made by facesynth evaluate; choose another --out.")
        if config.on_existing == "fail":
            raise UsageError(
                f"{printable(config.out)} exists already; choose --on-existing resume to use the trainings that are there, "
                "--on-existing overwrite to start anew, or another --out."
            )
    return folder


def _read(config: EvaluateConfig, device: str) -> Inputs:
    extractor = open_extractor(config.features, config.judge, device)
    embedder, _ = open_embedder(config.identity, config.identity_model, device)
    real = read_real(config.real, extractor, embedder)
    if len(set(real.of("train").labels.tolist())) < 2:
        raise UsageError(f"{real.name} has training images of one class only: there is nothing to tell apart.")
    synthetic = read_synthetic(config.synthetic, real.classes, extractor, embedder)
    test = None
    if config.test:
        test = _renamed(read_real(config.test, extractor, embedder), config.class_map).in_classes(real.classes)
        test = test.of("test") if len(test.of("test")) else test
    return Inputs(real, synthetic, test, extractor.name, load_judge(config.judge, device), embedder)


def _renamed(images: ImageSet, names: dict[str, str]) -> ImageSet:
    """With classes renamed; a class that is renamed to nothing is left out with its images."""
    unknown = [name for name in names if name not in images.classes]
    if unknown:
        raise UsageError(
            f"--class-map: {images.name} has no class '{printable(unknown[0])}'; it has {', '.join(images.classes)}."
        )
    kept = np.array([names.get(label, label) != "" for label in images.classes])
    images = images.take(np.flatnonzero(kept[images.labels]))
    return replace(images, classes=tuple(names.get(label, label) or label for label in images.classes))


# --- measured ---------------------------------------------------------------------------------------------------------


def _judged(config: EvaluateConfig, inputs: Inputs) -> Inputs:
    """With what the judge reads in the real images, and for an uplift in the synthetic ones."""
    synthetic = judged(inputs.synthetic, inputs.judge) if config.uplift else inputs.synthetic
    return replace(inputs, real=judged(inputs.real, inputs.judge), synthetic=synthetic)


def _uplift_config(config: EvaluateConfig) -> UpliftConfig:
    return UpliftConfig(
        seeds=config.seeds or (2 if config.quick else 3),
        steps=config.steps,
        batch_size=config.batch_size,
        network=config.network,
        arms=config.arms or (QUICK if config.quick else ()),
        synthetic_weight=config.synthetic_weight,
        folds=config.folds,
        fractions=config.fraction,
        ratios=config.ratio,
        quick=config.quick,
        device=config.device,
        seed=config.seed,
    )


def _measure_uplift(config: EvaluateConfig, inputs: Inputs, leakage: Leakage, folder: Path) -> Outcome:
    # With folds, identical images lie in one fold: there are no copies to leave out.
    copied: dict[TestSet, list[str]] = {
        "no copies": leakage.identical_test_copies,
        "no near-copies": leakage.test_copies,
    }
    without = {} if config.folds else {part: np.isin(inputs.tested.names, names) for part, names in copied.items()}
    return uplift.measure(inputs.real, inputs.synthetic, _uplift_config(config), folder, inputs.test, without)


def _take_readings(config: EvaluateConfig, inputs: Inputs, folder: Path) -> Readings:
    settings = _uplift_config(config)
    if not config.uplift and not config.steps and not config.quick:
        settings = settings.model_copy(update={"steps": READING_IMAGES // settings.batch_size})
    return take_readings(inputs.real, inputs.synthetic, settings, folder, inputs.test)


def _fidelity(config: EvaluateConfig, inputs: Inputs, readings: Readings, device: str) -> Fidelity:
    measured = fidelity.measure(inputs.real, inputs.synthetic, inputs.features, device=device, seed=config.seed)
    return measured.model_copy(
        update={
            "gan_test": readings.gan_test,
            "gan_train": readings.gan_train,
            "real_baseline": readings.real_baseline,
            "intensity": fidelity.intensity(inputs.synthetic, readings.synthetic_probabilities),
            "notes": [*measured.notes, f"GAN-train and the real baseline read the {readings.tested_on}."],
        }
    )


def _label_doubts(inputs: Inputs, readings: Readings) -> Doubts | None:
    """By classifiers that did not see the image, and by the judge; None where the judge knows other classes."""
    by_judge = inputs.real.probabilities
    return None if by_judge is None else safety.label_doubts(inputs.real, readings.real_probabilities, by_judge)


def _bias(
    config: EvaluateConfig, inputs: Inputs, groups: Groups | None, readings: Readings, outcome: Outcome | None
) -> Bias | None:
    """By the readings of the best arms where they were tested on REAL's test split, else of one independent classifier."""
    if groups is None:
        return None
    before = readings.real_probabilities[inputs.real.splits == "test"].argmax(axis=1)
    after = None
    if outcome and not config.folds and not config.test:
        before, after = (
            outcome.predictions[name][0] for name in (outcome.uplift.best_without, outcome.uplift.best_with)
        )
    tried = rows_of_run(folder_of(inputs.synthetic.dataset.root))
    return fairness.bias(inputs.real, inputs.synthetic, groups, tried, before if len(before) else None, after)


# --- out --------------------------------------------------------------------------------------------------------------


def _verdict(good: Fidelity, safe: Safety, outcome: Outcome | None, inputs: Inputs) -> list[str]:
    """One sentence on each question."""
    return [_good(good), _safe(safe, inputs), _helps(outcome)]


def _good(good: Fidelity) -> str:
    said = []
    if good.gan_test and good.real_baseline:
        said.append(
            f"a classifier that gated nothing reads {good.gan_test.accuracy:.0%} of them as their class "
            f"(of real images {good.real_baseline.accuracy:.0%})"
        )
    coverage = good.overall["coverage"]
    if coverage.value is not None:
        floor = f" (other real ones: {coverage.floor:.0%})" if coverage.floor is not None else ""
        said.append(f"they lie near {coverage.value:.0%} of the real images{floor}")
    if good.identity:
        said.append(f"{good.identity.same_person:.0%} still show the person of their source")
    return f"Good? {_sentence('; '.join(said) or 'too few images to say')}"


def _safe(safe: Safety, inputs: Inputs) -> str:
    said = [
        f"{safe.copies.copies:,} of {safe.copies.images:,} are near-copies of real images",
        f"{safe.leakage.of_synthetic:,} images or sources are near-copies of validation or test images",
    ]
    if safe.leakage.test_copies:
        said.append(
            f"{len(safe.leakage.test_copies):,} of {len(inputs.tested):,} test images are themselves near-copies of real "
            f"training images, {len(safe.leakage.identical_test_copies):,} of them pixel by pixel"
        )
    return f"Safe? {_sentence('; '.join(said))}"


def _helps(outcome: Outcome | None) -> str:
    if outcome is None:
        return "Do they help? Not measured: add --uplift."
    claim = outcome.uplift.claims[0]
    difference = claim.comparison.difference
    change = (
        f"{points(abs(difference.value))} of macro-F1 {'above' if difference.value >= 0 else 'below'} the best arm without "
        f"them ({claim.comparison.arm} against {claim.comparison.against}; 95 % interval "
        f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    )
    word = {"helped": "They helped", "hurt": "They hurt", "cannot be told": "It cannot be told"}[claim.verdict]
    return f"Do they help? {word}: {change}. {claim.needed}".strip()


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _warnings(inputs: Inputs) -> list[str]:
    said = [
        f"{images.unreadable:,} images of {images.name} cannot be read and were left out."
        for images in (inputs.real, inputs.synthetic)
        if images.unreadable
    ]
    if (inputs.synthetic.identity_model or "").startswith("insightface"):
        said.append(LICENCE_SENTENCE)
    judge = inputs.judge
    if judge.trained_with and judge.full_name == inputs.features:
        said.append(
            f"The features are those of {printable(judge.name)}, which was trained together with a {judge.trained_with} that "
            "learned to suit it: where the synthetic images are of that one, give other --features or another --judge."
        )
    return said


def _write(out: Path, evaluation: Evaluation, inputs: Inputs) -> None:
    schema = json.dumps(Evaluation.model_json_schema(), indent=1)
    write_atomic(out / "report.schema.json", schema.encode())
    write_atomic(out / "report.json", evaluation.model_dump_json(indent=1).encode("utf-8", "backslashreplace"))
    shown = pictures.collect(inputs.real, inputs.synthetic, inputs.test, evaluation.safety)
    evaluation_page.write_page(out / "report.html", evaluation, shown)
