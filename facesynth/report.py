"""The report of a run: counts, pairs, rejects and gate scores on one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facesynth import page
from facesynth.page import Pixels

Scores = npt.NDArray[np.floating]

CHART_WIDTH, CHART_HEIGHT, CHART_BINS = 360, 110, 40


@dataclass(frozen=True)
class Pair:
    """One candidate beside the photograph it was edited from, or alone if it was drawn: then it has no source.

    `source` and `result` are (H, W), (H, W, 1) or (H, W, 3) floats in [0, 1]. `label` is the target expression,
    `scores` has one value per gate that was asked (None: not measured), `reason` is None for an accepted candidate
    and "gate: what was wrong" for a rejected one. `name` is the result's file name, or the source's for a reject.
    """

    source: Pixels | None
    result: Pixels
    source_label: str | None
    label: str
    scores: Mapping[str, float | None]
    name: str
    reason: str | None = None

    @property
    def failed_gate(self) -> str | None:
        """The gate that turned the candidate down, if any."""
        return None if self.reason is None else _gate_of(self.reason)


@dataclass(frozen=True)
class GateScores:
    """The scores of one gate: those of accepted candidates, and those of candidates that this gate turned down.

    `threshold` is one number, or a mapping when it differs (class → number, or bound → number). Values that are
    not finite are left out. `about` says in a few words what the score is.
    """

    accepted: Scores
    rejected: Scores
    threshold: float | Mapping[str, float] | None = None
    about: str = ""


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    `real`, `synthetic` and `target` are images per class; `target` is the wanted final count (real + synthetic).
    `rejections` is class → reason → number of candidates. `accepted` and `rejected` are samples, shown in full.
    `settings` and `provenance` are shown as they come; values may be nested one level. `drawn` tells that the synthetic
    faces were drawn from noise, not edited from photographs.
    """

    title: str
    command: str
    classes: Sequence[str]
    real: Mapping[str, int]
    synthetic: Mapping[str, int]
    target: Mapping[str, int]
    accepted: Sequence[Pair] = ()
    rejected: Sequence[Pair] = ()
    rejections: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    gates: Mapping[str, GateScores] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    licence: str = ""
    drawn: bool = False

    def total(self, name: str) -> int:
        """Real and synthetic images of a class."""
        return self.real.get(name, 0) + self.synthetic.get(name, 0)

    @cached_property
    def short(self) -> dict[str, tuple[int, int]]:
        """Class → (synthetic images made, synthetic images wanted), for every class below its target."""
        return {
            name: (self.synthetic.get(name, 0), self.target[name] - self.real.get(name, 0))
            for name in self.classes
            if name in self.target and self.total(name) < self.target[name]
        }

    @property
    def counts(self) -> str:
        """For example "28,709 real + 21,796 synthetic"."""
        return f"{sum(self.real.values()):,} real + {sum(self.synthetic.values()):,} synthetic"

    @property
    def verdict(self) -> str:
        """For example "every class at 7,215", or "short of the target: disgust 512 of 6,779"."""
        if self.short:
            listed = [f"{name} {made:,} of {wanted:,}" for name, (made, wanted) in self.short.items()]
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            return f"short of the target: {', '.join(listed[:3])}{more}"
        totals = {self.total(name) for name in self.classes}
        return f"every class at {totals.pop():,}" if len(totals) == 1 else "every class at its target"


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`, all or nothing. Raises FacesynthError when the file cannot be written."""
    page.write(path, render_report(report))


def render_report(report: Report) -> str:
    """The page as text. It needs no network and no script: styles, images and charts are inside."""
    return page.render(
        "report.html.j2",
        report=report,
        scale=max([1, *report.target.values(), *(report.total(name) for name in report.classes)]),
        tried={name: _tried(report, name) for name in report.classes},
        reasons=_reasons_by_gate(report),
        accepted=_grouped(report.accepted, report.classes),
        rejected=_grouped_by_reason(report.rejected, report),
        charts={name: _chart(scores) for name, scores in report.gates.items()},
        balance=[_imbalance(report.real, report.classes), _imbalance(_totals(report), report.classes)],
    )


# --- counts -----------------------------------------------------------------------------------------------------------


def _totals(report: Report) -> dict[str, int]:
    return {name: report.total(name) for name in report.classes}


def _tried(report: Report, name: str) -> int:
    return report.synthetic.get(name, 0) + sum(report.rejections.get(name, {}).values())


def _imbalance(counts: Mapping[str, int], classes: Sequence[str]) -> float | None:
    """Images in the largest class for one in the smallest; None where a class is empty."""
    sizes = [counts.get(name, 0) for name in classes]
    return max(sizes) / min(sizes) if sizes and min(sizes) > 0 else None


def _gate_of(reason: str) -> str:
    return reason.partition(":")[0].strip()


def _reason_totals(report: Report) -> Counter[str]:
    totals: Counter[str] = Counter()
    for counts in report.rejections.values():
        totals.update(counts)
    return totals


def _reasons_by_gate(report: Report) -> dict[str, list[str]]:
    """Gate → its reasons, the most frequent first; gates in the order they are asked."""
    by_gate: dict[str, list[str]] = {gate: [] for gate in report.gates}
    for reason, number in _reason_totals(report).most_common():
        if number:
            by_gate.setdefault(_gate_of(reason), []).append(reason)
    return {gate: reasons for gate, reasons in by_gate.items() if reasons}


def _grouped(pairs: Sequence[Pair], classes: Sequence[str]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {name: [] for name in classes}
    for pair in pairs:
        groups.setdefault(pair.label, []).append(pair)
    return groups


def _grouped_by_reason(pairs: Sequence[Pair], report: Report) -> dict[str, tuple[int, list[Pair]]]:
    """Reason → (how often it was given in the run, the sampled pairs), the most frequent reason first."""
    totals = _reason_totals(report)
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.reason or "no reason given", []).append(pair)
    ordered = sorted(groups, key=lambda reason: -totals[reason])
    return {reason: (max(totals[reason], len(groups[reason])), groups[reason]) for reason in ordered}


# --- charts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chart:
    """A mirrored histogram: accepted above the axis, rejected below it; lengths in SVG units."""

    accepted: str  # path data
    rejected: str
    axis: float  # y of the axis
    ticks: list[tuple[float, str]]  # x, label
    thresholds: dict[str, tuple[float, float]]  # name → value, x
    accepted_scores: Scores
    rejected_scores: Scores
    tallest: tuple[int, int]  # candidates in the tallest bar of each side
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT


def _chart(scores: GateScores) -> _Chart | None:
    accepted, rejected = _finite(scores.accepted), _finite(scores.rejected)
    if not accepted.size + rejected.size:
        return None
    thresholds = _thresholds(scores.threshold)
    low, high = _span(np.concatenate([accepted, rejected]), list(thresholds.values()))
    # Outliers are counted in the outermost bins, so that one of them does not squeeze all others into one bar.
    edges = np.linspace(low, high, CHART_BINS + 1)
    above, below = (np.histogram(np.clip(part, low, high), edges)[0] for part in (accepted, rejected))
    # A gate that turns down one in a hundred still shows where: each side is drawn on its own scale.
    axis = CHART_HEIGHT * (0.6 if accepted.size and rejected.size else 1.0 if accepted.size else 0.0)

    def x_of(value: float) -> float:
        return round(CHART_WIDTH * (value - low) / (high - low), 2)

    return _Chart(
        accepted=_bars(above * (-axis / max(1, above.max())), axis),
        rejected=_bars(below * ((CHART_HEIGHT - axis) / max(1, below.max())), axis),
        axis=axis,
        ticks=[(x_of(value), f"{value:.4g}") for value in _tick_values(low, high)],
        thresholds={name: (value, x_of(value)) for name, value in thresholds.items()},
        accepted_scores=accepted,
        rejected_scores=rejected,
        tallest=(int(above.max()), int(below.max())),
    )


def _finite(values: Scores) -> Scores:
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def _thresholds(threshold: float | Mapping[str, float] | None) -> dict[str, float]:
    if threshold is None:
        return {}
    named = threshold if isinstance(threshold, Mapping) else {"": threshold}
    return {name: float(value) for name, value in named.items() if np.isfinite(value)}


def _span(values: Scores, thresholds: list[float]) -> tuple[float, float]:
    """The bulk of the scores and every threshold, with a little air."""
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min([low, *thresholds]), max([high, *thresholds])
    air = 0.03 * (high - low) or 0.5
    return float(low - air), float(high + air)


def _bars(heights: npt.NDArray[np.floating], axis: float) -> str:
    width = CHART_WIDTH / len(heights)
    return "".join(
        f"M{i * width + 0.5:.2f} {axis:.2f}v{height:.2f}h{width - 1:.2f}v{-height:.2f}z"
        for i, height in enumerate(heights)
        if height
    )


def _tick_values(low: float, high: float) -> list[float]:
    """Four to eight round numbers (1, 2 or 5 times a power of ten apart) between the ends."""
    rough = (high - low) / 7
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [float(k * step) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
