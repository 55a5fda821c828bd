"""The page of an evaluation: the verdict on top, and all that it rests on, in one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from facesynth import evaluation_charts, page
from facesynth.evaluation import (
    METRICS,
    Claim,
    Comparison,
    Doubt,
    Evaluation,
    Fidelity,
    Interval,
    Leak,
    Neighbour,
    Uplift,
)
from facesynth.page import Pixels

METRIC_TITLES = {
    "fid": ("FID", "distance to the real images; lower is better"),
    "kid": ("KID", "the same without bias for few images; lower is better"),
    "inception_score": ("Inception Score", "sure and varied to a classifier; higher is better"),
    "precision": ("Precision", "share that lies among the real images; higher is better"),
    "recall": ("Recall", "share of the real images that it spans; higher is better"),
    "density": ("Density", "how closely it lies among the real images; higher is better"),
    "coverage": ("Coverage", "share of the real images with a synthetic one near; higher is better"),
    "diversity": ("Diversity", "mean distance between two images of a class; higher is better"),
}
HEADLINES = {
    "helped": "The synthetic images helped",
    "hurt": "The synthetic images hurt",
    "cannot be told": "Whether they help cannot be told at this size",
}
SHOWN_LEAKS = 60


@dataclass(frozen=True)
class Face:
    """A synthetic image of the gallery: `pixels` (H, W), (H, W, 1) or (H, W, 3) in [0, 1]; `reason` where it was rejected."""

    pixels: Pixels
    label: str
    name: str
    scores: Mapping[str, float | None]
    reason: str | None = None


@dataclass(frozen=True)
class NeighbourPair:
    """A synthetic image beside the real one that is most like it."""

    synthetic: Pixels
    real: Pixels
    neighbour: Neighbour


@dataclass(frozen=True)
class LeakPair:
    """A leaked image beside the validation or test image that it copies, or the other way round, as `leak` names them."""

    image: Pixels
    of: Pixels
    leak: Leak


@dataclass(frozen=True)
class DoubtedFace:
    """A real image whose label is doubted."""

    pixels: Pixels
    doubt: Doubt


@dataclass(frozen=True)
class Pictures:
    """The pictures of the page; each list may be empty, and is shown whole."""

    gallery: Sequence[Face] = ()
    neighbours: Sequence[NeighbourPair] = ()
    leaks: Sequence[LeakPair] = ()
    doubts: Sequence[DoubtedFace] = ()


def write_page(path: Path, evaluation: Evaluation, pictures: Pictures) -> None:
    """Write the page to `path`, all or nothing. Raises FacesynthError when the file cannot be written."""
    page.write(path, render_page(evaluation, pictures))


def render_page(evaluation: Evaluation, pictures: Pictures) -> str:
    """The page as text. It needs no network; its one script filters the gallery, which is whole without it."""
    uplift, safety = evaluation.uplift, evaluation.safety
    script = (resources.files("facesynth") / "gallery.js").read_text("utf-8")
    return page.render(
        "evaluation.html.j2",
        evaluation=evaluation,
        fidelity=evaluation.fidelity,
        safety=safety,
        uplift=uplift,
        pictures=pictures,
        answers=_answers(evaluation),
        headline=_headline(uplift),
        claims=_claims(uplift.claims) if uplift else [],
        metrics={name: METRIC_TITLES[name] for name in METRICS if name in evaluation.fidelity.overall},
        metric_notes=_metric_notes(evaluation.fidelity),
        readings=_readings(evaluation),
        charts=_charts(evaluation),
        confusions=_confusions(uplift) if uplift else {},
        comparisons=_shown_comparisons(uplift) if uplift else [],
        scale=max([1, *(_total(evaluation, name) for name in evaluation.classes)]),
        shown_leaks=safety.leakage.leaks[:SHOWN_LEAKS],
        scores=sorted({name for face in pictures.gallery for name in face.scores}),
        reasons=sorted({face.reason for face in pictures.gallery if face.reason}),
        script=Markup(script),  # noqa: S704  a file of this package, without values
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        data=_data,
        in_percent=_in_percent,
        share=_share,
        signed=_signed,
        title_of=_title_of(uplift),
    )


# --- text -------------------------------------------------------------------------------------------------------------


def _share(interval: Interval | None) -> Markup | str:
    """For example "71.2 <small>69.8–72.6</small>", in percent."""
    if interval is None:
        return page.ABSENT
    return Markup("{:.1f} <small>{:.1f}–{:.1f}</small>").format(*_hundredfold(interval))


def _signed(interval: Interval) -> Markup:
    """For example "+1.2 <small>−0.4 to +2.8</small>", in percentage points."""
    return Markup("{} <small>{} to {}</small>").format(*map(_plus_minus, _hundredfold(interval)))


def _plus_minus(number: float) -> str:
    return f"{number:+.1f}".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def _hundredfold(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.value, 100 * interval.low, 100 * interval.high


def _answers(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(question, answer) of each sentence of the verdict: "Safe? No copies." is one of them."""
    parts = [sentence.partition("? ") for sentence in evaluation.verdict]
    return [(f"{question}?", answer) if mark else ("", question) for question, mark, answer in parts]


def _headline(uplift: Uplift | None) -> tuple[str, str]:
    """The first words of the page, and the style they are shown in."""
    if uplift is None:
        return "Measured, not yet trained on", "open"
    verdict = uplift.claims[0].verdict
    return HEADLINES[verdict], {"helped": "met", "hurt": "short", "cannot be told": "open"}[verdict]


def _title_of(uplift: Uplift | None) -> dict[str, str]:
    """Arm → its title."""
    return {arm.name: arm.title for arm in uplift.arms} if uplift else {}


def _data(scores: Mapping[str, float | None]) -> str:
    """Scores as JSON for the gallery's filter; what is no number is left out."""
    return json.dumps(
        {name: round(value, 4) for name, value in scores.items() if value is not None and math.isfinite(value)}
    )


def _metric_notes(fidelity: Fidelity) -> list[str]:
    """Each note with the figures it belongs to: "KID of disgust, fear: subsets of 218 images"."""
    groups: dict[tuple[str, str], list[str]] = {}  # note, metric → where
    for group, figures in {"all classes": fidelity.overall, **fidelity.per_class}.items():
        for metric, found in figures.items():
            if found.note:
                groups.setdefault((found.note, metric), []).append(group)
    metrics: dict[tuple[str, str], list[str]] = {}  # note, where → metrics
    for (note, metric), where in groups.items():
        metrics.setdefault((note, ", ".join(where)), []).append(METRIC_TITLES[metric][0])
    return [f"{', '.join(titles)} of {where}: {note}" for (note, where), titles in metrics.items()]


# --- what the sections show -------------------------------------------------------------------------------------------


def _total(evaluation: Evaluation, name: str) -> int:
    return sum(evaluation.counts.get(part, {}).get(name, 0) for part in ("train", "synthetic"))


class _Bar(NamedTuple):
    """Where an interval stands on an axis that has zero in its middle, in percent of its length."""

    left: float
    width: float
    dot: float


def _claims(claims: Sequence[Claim]) -> list[tuple[Claim, _Bar]]:
    """Each claim with its interval on an axis that all claims share."""
    ends = [max(-claim.comparison.difference.low, claim.comparison.difference.high) for claim in claims]
    reach = max(0.005, min(max(ends), 3 * statistics.median(ends)))  # one huge difference would hide the others

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2)

    bars = []
    for claim in claims:
        interval = claim.comparison.difference
        left = place(interval.low)
        bars.append(_Bar(left, round(place(interval.high) - left, 2), place(interval.value)))
    return list(zip(claims, bars, strict=True))


def _readings(evaluation: Evaluation) -> list[tuple[str, str, object]]:
    """(title, explanation, recognition) of each classifier that trained on one kind of image and reads another."""
    fidelity = evaluation.fidelity
    rows = [
        ("Real → real", "the measure: trained and tested on real images", fidelity.real_baseline),
        ("Real → synthetic", "GAN-test: do the images show their label?", fidelity.gan_test),
        ("Synthetic → real", "GAN-train: do the images teach what real ones teach?", fidelity.gan_train),
    ]
    return [row for row in rows if row[2] is not None]


@dataclass(frozen=True)
class _Charts:
    arms: list[tuple[str, Markup]] = field(default_factory=list)
    sweeps: list[Markup] = field(default_factory=list)
    copies: Markup | None = None
    identity: Markup | None = None
    intensity: Markup | None = None


def _charts(evaluation: Evaluation) -> _Charts:
    uplift, copies, fidelity = evaluation.uplift, evaluation.safety.copies, evaluation.fidelity
    identity = fidelity.identity
    measured = {name: found.bins for name, found in fidelity.intensity.items() if found.bins}
    return _Charts(
        arms=_arm_charts(uplift) if uplift else [],
        sweeps=_sweeps(uplift) if uplift else [],
        copies=evaluation_charts.histograms(
            copies.real_similarity,
            copies.synthetic_similarity,
            ("real to other real images", "synthetic to real images"),
            copies.threshold,
            "similarity to the nearest real image",
        ),
        identity=evaluation_charts.histograms(
            identity.impostors,
            identity.genuine,
            ("different persons", "synthetic image and its source"),
            identity.threshold,
            "cosine",
        )
        if identity
        else None,
        intensity=evaluation_charts.intensity(measured) if measured else None,
    )


def _arm_charts(uplift: Uplift) -> list[tuple[str, Markup]]:
    best = (uplift.best_with, uplift.best_without)
    titles = {"macro_f1": "Macro-F1", "accuracy": "Accuracy"}
    return [(title, evaluation_charts.arms(uplift.arms, metric, best)) for metric, title in titles.items()]


def _sweeps(uplift: Uplift) -> list[Markup]:
    kinds = ("fraction", "ratio")
    sweeps = [[point for point in uplift.points if point.kind == kind] for kind in kinds]
    return [evaluation_charts.sweep(points) for points in sweeps if points]


def _confusions(uplift: Uplift) -> dict[str, list[list[float | None]]]:
    """Title → rows of shares in percent, of the best arm without synthetic images and of the best with them."""
    chosen = (("Before", uplift.best_without), ("After", uplift.best_with))
    arms = {arm.name: arm for arm in uplift.arms}
    return {f"{when}: {arms[name].title}": _in_percent(arms[name].scores["all"].confusion) for when, name in chosen}


def _in_percent(confusion: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Counts as percent of their row, None where a class has no images."""
    return [[100 * count / sum(row) if sum(row) else None for count in row] for row in confusion]


def _shown_comparisons(uplift: Uplift) -> list[Comparison]:
    """Accuracy and macro-F1 of all pairs, and every metric of the headline's pair; report.json has all."""
    headline = (uplift.best_with, uplift.best_without)
    return [
        found
        for found in uplift.comparisons
        if found.metric in ("accuracy", "macro_f1") or (found.arm, found.against) == headline
    ]
