"""The pictures that a training leaves of itself: what its log says over the images seen."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from facesynth.output import write_atomic

SMOOTHED = 60
"""Points from which a curve is drawn smoothed, over its points."""

CROWDED = 6
"""Curves in a panel from which their names are set small."""


def draw_losses(path: Path) -> None:
    """Draw all that log.jsonl beside `path` holds, in panels: losses, accuracies, and what is named PANEL/CURVE."""
    panels: dict[str, dict[str, str]] = {"loss": {}}
    for line in _lines(path):
        for name in line.keys() - {"images"}:
            panel, slash, curve = name.rpartition("/")
            panel = panel if slash else "accuracy" if "accuracy" in name else "loss"
            panels.setdefault(panel, {})[name] = curve
    drawn = {label: dict(sorted(names.items())) for label, names in panels.items() if names}
    if drawn:
        draw_curves(path, drawn)


def draw_curves(path: Path, panels: Mapping[str, Mapping[str, str]]) -> None:
    """Draw what log.jsonl beside `path` holds: a panel for each y label, in it names of the log and what they are called."""
    lines = _lines(path)
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, title in names.items():
            points = [(line["images"], line[name]) for line in lines if name in line]
            images, values = zip(*points, strict=True)
            noisy = len(points) >= SMOOTHED
            (curve,) = axes.plot(images, values, marker="." if len(points) < 40 else "", alpha=0.25 if noisy else 1)
            if noisy:
                (curve,) = axes.plot(images, smoothed(values), color=curve.get_color())
            curve.set_label(title)
        axes.set(xlabel="images seen", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small" if len(names) > CROWDED else None)
    save_figure(path, figure)


def smoothed(values: Sequence[float]) -> list[float]:
    """Moving average with weights that fall by 1/e over a thirtieth of the values; the first ones are means of few."""
    keep = math.exp(-30 / len(values))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def _lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG; atomic."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
