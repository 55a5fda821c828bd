"""`--fail-under` and `--fail-over`: the figures of an evaluation by name, and which of them break a bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from facesynth.console import UsageError, did_you_mean, printable
from facesynth.evaluation import METRICS, Evaluation, Fidelity, Recognition, Safety, Uplift


def parse(bounds: Iterable[str]) -> dict[str, float]:
    """Read bounds like 'coverage.disgust=0.5', several in one text with commas. Raises UsageError for one that is none."""
    parsed: dict[str, float] = {}
    for bound in (part.strip() for text in bounds for part in text.split(",")):
        name, equals, value = bound.partition("=")
        try:
            parsed[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip() or not math.isfinite(parsed[name.strip()]):
            raise UsageError(f"'{printable(bound)}' is no bound: give NAME=NUMBER, for example coverage.disgust=0.5.")
    return parsed


def require_known(names: Iterable[str], classes: Iterable[str], uplift: bool) -> None:
    """Raise UsageError for a name that no evaluation of these classes has; before hours are spent on it."""
    known = known_names(list(classes), uplift)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or ("" if uplift or not name.startswith("uplift") else " Add --uplift.")
            raise UsageError(f"no figure is called '{printable(name)}'.{hint} Figures: {', '.join(sorted(known))}.")


def known_names(classes: list[str], uplift: bool) -> set[str]:
    """The names that bounds can use, whether or not an evaluation could measure the figure."""
    overall = {*METRICS, "gan_test", "gan_train", "same_person"}
    names = overall | {f"{name}.{label}" for name in overall for label in classes}
    names |= {"copies", "copies_share", "leaks", "test_copies", "label_doubts"}
    if uplift:
        names |= {f"uplift.{name}{end}" for name in ("macro_f1", "accuracy") for end in ("", ".low")}
        names |= {f"uplift.f1.{label}{end}" for label in classes for end in ("", ".low")}
    return names


def figures(evaluation: Evaluation) -> dict[str, float | None]:
    """Every figure that bounds can name; None where it could not be measured.

    `gan_test.CLASS` and `gan_train.CLASS` are recalls; `uplift.X` is the headline's arm minus its rival without copies in the
    test set, `uplift.X.low` the lower end of its interval.
    """
    found = dict(_of_fidelity(evaluation.fidelity)) | dict(_of_safety(evaluation.safety))
    return found | (dict(_of_uplift(evaluation.uplift)) if evaluation.uplift else {})


def _of_fidelity(fidelity: Fidelity) -> Iterator[tuple[str, float | None]]:
    for name, metric in fidelity.overall.items():
        yield name, metric.value
    for label, metrics in fidelity.per_class.items():
        for name, metric in metrics.items():
            yield f"{name}.{label}", metric.value
    yield from _of_recognition("gan_test", fidelity.gan_test)
    yield from _of_recognition("gan_train", fidelity.gan_train)
    if fidelity.identity:
        yield "same_person", fidelity.identity.same_person
        for label, share in fidelity.identity.per_class.items():
            yield f"same_person.{label}", share


def _of_recognition(name: str, recognition: Recognition | None) -> Iterator[tuple[str, float | None]]:
    if recognition:
        yield name, recognition.accuracy
        for label, scores in recognition.per_class.items():
            yield f"{name}.{label}", scores.recall


def _of_safety(safety: Safety) -> Iterator[tuple[str, float | None]]:
    yield "copies", safety.copies.copies
    yield "copies_share", safety.copies.share
    yield "leaks", safety.leakage.of_synthetic
    yield "test_copies", len(safety.leakage.test_copies)
    if safety.labels:
        yield "label_doubts", sum(safety.labels.counts.values())


def _of_uplift(uplift: Uplift) -> Iterator[tuple[str, float | None]]:
    headline = uplift.claims[0].comparison
    for comparison in uplift.comparisons:
        pair = (comparison.arm, comparison.against, comparison.test_set)
        if pair == (headline.arm, headline.against, headline.test_set):
            yield f"uplift.{comparison.metric}", comparison.difference.value
            yield f"uplift.{comparison.metric}.low", comparison.difference.low


def broken(evaluation: Evaluation, under: dict[str, float], over: dict[str, float]) -> list[str]:
    """A line for each bound that does not hold, and for each figure with a bound that could not be measured."""
    found = figures(evaluation)
    lines = []
    for bounds, word, sign in ((under, "under", -1), (over, "over", 1)):
        for name, bound in bounds.items():
            value = found.get(name)
            if value is None:
                lines.append(f"{name} could not be measured (--fail-{word} {name}={bound:g})")
            elif sign * (value - bound) > 0:
                lines.append(f"{name} is {value:.4g}, {word} {bound:g}")
    return lines
