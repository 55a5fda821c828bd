"""The charts of an evaluation, drawn by matplotlib as SVG that takes its colours and its type from the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from facesynth.console import printable
from facesynth.evaluation import ArmResult, Histogram, IntensityBin, Interval, Point

Floats = npt.NDArray[np.floating]

# Stand-ins that no other part of a chart uses: the page's own colours take their place, in light as in dark.
INK, SOFT, LINE, REAL, SYNTHETIC = "#010203", "#020304", "#030405", "#040506", "#050607"
THEME = {INK: "ink", SOFT: "soft", LINE: "line", REAL: "real", SYNTHETIC: "synthetic"}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
LABEL = 56  # characters of an arm's title that the width holds
WIDTH = 4.5  # inches at 72 units: as wide as a phone, so that type keeps its size there


@matplotlib.rc_context(STYLE)
def arms(results: Sequence[ArmResult], metric: str, best: Sequence[str]) -> Markup:
    """Each arm's `metric`, "accuracy" or "macro_f1", as a dot with its 95 % interval; `best` are the arms in bold.

    Filled: all test images; hollow: without copies. A dotted line carries the first arm's score down the page.
    """
    figure, axes = _canvas(0.5 * len(results) + 0.6)
    left = _left_end([getattr(scores, metric) for arm in results for scores in arm.scores.values()])
    for row, arm in enumerate(results):
        _arm(axes, row, arm, metric, left)
        weight = "bold" if arm.name in best else "normal"
        _at_the_edge(axes, row - 0.34, shorten(printable(arm.title), LABEL, placeholder=" …"), weight=weight)
    first = next(iter(results[0].scores.values()))
    axes.axvline(getattr(first, metric).value, color=SOFT, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(left=left)
    axes.set_ylim(len(results) - 0.5, -0.6)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    _percent_axis(axes, "x")
    words = "; ".join(
        f"{arm.title} {_percent(getattr(arm.scores['all'], metric))}" for arm in results if "all" in arm.scores
    )
    return _svg(figure, f"{metric} of each arm with its 95 % interval: {words}")


@matplotlib.rc_context(STYLE)
def histograms(first: Histogram, second: Histogram, names: tuple[str, str], threshold: float, label: str) -> Markup:
    """Two distributions of `label` as outlines over one axis, each scaled to the same area, with a threshold."""
    figure, axes = _canvas(2.0)
    for histogram, colour, filled in ((first, REAL, True), (second, SYNTHETIC, False)):
        density, edges = _trimmed(histogram)
        axes.stairs(density, edges, color=colour, fill=filled, alpha=0.45 if filled else 1, linewidth=1.6)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    words = f"Distributions of {label}: {names[0]}, median {first.median:.2f}; {names[1]}, median {second.median:.2f}"
    return _svg(figure, f"{words}; threshold {threshold:.2f}")


@matplotlib.rc_context(STYLE)
def intensity(bins: Mapping[str, Sequence[IntensityBin]]) -> Markup:
    """Mean probability of its class against the intensity asked for, a line for each class; no list of bins is empty."""
    figure, axes = _canvas(2.4)
    ends = _apart([parts[-1].probability for parts in bins.values()], gap=0.07)
    for (name, parts), height in zip(bins.items(), ends, strict=True):
        middles = [(part.low + part.high) / 2 for part in parts]
        values = [part.probability for part in parts]
        axes.plot(middles, values, color=SYNTHETIC, linewidth=1.4, marker="o", markersize=3, alpha=0.85)
        beside = (max(middles), height)
        axes.annotate(printable(name), beside, (6, 0), textcoords="offset points", va="center", fontsize=8)
    words = [f"{name} {parts[0].probability:.2f} to {parts[-1].probability:.2f}" for name, parts in bins.items()]
    axes.set_ylim(0, 1)
    axes.margins(x=0.16)
    axes.set_xlabel("intensity asked for")
    axes.set_title("probability of its class", loc="left", fontsize=9, color=SOFT)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    return _svg(figure, f"Probability of the class by intensity: {'; '.join(words)}")


@matplotlib.rc_context(STYLE)
def sweep(points: Sequence[Point]) -> Markup:
    """Macro-F1 of the best arms with and without synthetic images over a sweep, with 95 % intervals."""
    figure, axes = _canvas(2.6)
    points = sorted(points, key=lambda point: point.value)
    positions = np.arange(len(points))
    for shift, colour, of in (
        (-0.06, REAL, [point.against_macro_f1 for point in points]),
        (0.06, SYNTHETIC, [point.arm_macro_f1 for point in points]),
    ):
        axes.plot(positions + shift, [interval.value for interval in of], color=colour, linewidth=1.4)
        for position, interval in zip(positions, of, strict=True):
            axes.plot([position + shift] * 2, [interval.low, interval.high], color=colour, linewidth=2, alpha=0.55)
            axes.plot(position + shift, interval.value, "o", color=colour, markersize=5)
    kind = points[0].kind
    sizes = [point.real_images if kind == "fraction" else point.synthetic_images for point in points]
    axes.set_xticks(positions, [f"{point.value:.0%}\n{size:,}" for point, size in zip(points, sizes, strict=True)])
    axes.margins(x=0.1)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_xlabel("real training images" if kind == "fraction" else "synthetic images")
    axes.set_title("macro-F1", loc="left", fontsize=9, color=SOFT)
    _percent_axis(axes, "y")
    words = "; ".join(
        f"at {point.value:.0%} {_percent(point.arm_macro_f1)} with and {_percent(point.against_macro_f1)} without"
        for point in points
    )
    return _svg(figure, f"Macro-F1 over the sweep: {words}")


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _left_end(intervals: Sequence[Interval]) -> float:
    """Where the axis begins: an arm far below the others is named at the edge, so that it does not squeeze them."""
    middle, right = np.median([interval.value for interval in intervals]), max(interval.high for interval in intervals)
    lowest = min(interval.low for interval in intervals if interval.low >= middle - 2.5 * (right - middle))
    return float(lowest - 0.05 * (right - lowest))


def _arm(axes: Axes, row: int, arm: ArmResult, metric: str, left: float) -> None:
    """The intervals of one arm, or its value at the edge of the axis where it lies beyond."""
    colour = SYNTHETIC if arm.uses_synthetic else REAL
    intervals = [getattr(scores, metric) for scores in arm.scores.values()]
    if min(interval.value for interval in intervals) < left:
        return _at_the_edge(axes, row, f"◂ {_percent(intervals[0])}", color=colour)
    for place, (test_set, interval) in enumerate(zip(arm.scores, intervals, strict=True)):
        filled, y = test_set == "all", row + 0.16 * place
        axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=3 if filled else 1.2, alpha=0.55)
        face = colour if filled else "none"
        axes.plot(interval.value, y, "o", color=colour, markerfacecolor=face, markersize=6.5 if filled else 4)
    return None


def _at_the_edge(axes: Axes, y: float, text: str, **style: Any) -> None:
    axes.annotate(text, (0, y), xycoords=("axes fraction", "data"), va="center", annotation_clip=False, **style)


def _trimmed(histogram: Histogram) -> tuple[Floats, Floats]:
    """Density and edges, without the empty bins at both ends."""
    edges, counts = np.array(histogram.edges), np.array(histogram.counts, dtype=float)
    used = np.flatnonzero(counts)
    inside = slice(used[0], used[-1] + 1) if len(used) else slice(0, len(counts))
    density = counts / max(1.0, counts.sum()) / np.diff(edges)
    return density[inside], edges[inside.start : inside.stop + 1]


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved down where one would come nearer than `gap` to the one above it."""
    placed = list(values)
    above = np.inf
    for index in np.argsort(values)[::-1]:
        above = placed[index] = min(values[index], above - gap)
    return placed


def _percent_axis(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    low, high = axis.get_view_interval()
    axis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.05 else 1, symbol=" %"))


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _svg(figure: Figure, words: str) -> Markup:
    """The figure as an element of the page; `words` say it to those who do not see it."""
    buffer, words = io.StringIO(), printable(words)
    salt: Any = {"svg.hashsalt": words}  # no two charts share an id
    with matplotlib.rc_context(salt), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's fonts draw the text, not matplotlib's
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    head = re.match(r"<svg [^>]*>", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert head is not None
    assert box is not None
    text = f'<svg {box[0]} role="img" aria-label="{html.escape(words)}">{text[head.end() :]}'
    for stand_in, name in THEME.items():
        text = text.replace(stand_in, f"var(--{name})")
    return Markup(text)  # noqa: S704  matplotlib escapes all text of a chart
