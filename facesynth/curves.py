"""The pictures that a training leaves of itself: what its log says over the images seen."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from facesynth.output import write_atomic


def draw_curves(path: Path, panels: Mapping[str, Mapping[str, str]]) -> None:
    """Draw what log.jsonl beside `path` holds: a panel for each y label, in it names of the log and what they are called."""
    lines = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, title in names.items():
            points = [(line["images"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", label=title)
        axes.set(xlabel="images seen", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG; atomic."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
