"""The demo's dataset: a few hundred faces of people who do not exist, most of them happy and hardly any disgusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from facesynth import console, weights
from facesynth.expression import Judge, load_judge
from facesynth.generators.drawer import FaceDrawer
from facesynth.output import write_atomic
from facesynth.photo import Encoding, encode

FOLDER = Path("facesynth-demo")
COUNTS = {"happy": 64, "neutral": 48, "sad": 40, "surprise": 32, "angry": 24, "fear": 16, "disgust": 6}
CANDIDATES = 6
"""Faces that are drawn for each one that is kept: that in which the judge reads the expression most surely."""


def draw_dataset(folder: Path = FOLDER) -> None:
    """Draw the dataset as an ImageFolder, by the built-in generator and judge; what is there already stays as it is.

    Raises FacesynthError when the folder cannot be written.
    """
    if folder.exists():
        return
    drawer, judge = FaceDrawer(weights.load("faces-48", "generator")), load_judge("judge-48")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    counts = {label: count for label, count in COUNTS.items() if label in drawer.classes}
    with console.progress("drawing", sum(counts.values())) as bar:
        for label, count in counts.items():
            for number, face in enumerate(_faces(label, count, drawer, judge)):
                made_by = {"label": label, "generator": f"{drawer.name}@{drawer.digest}"}
                write_atomic(part / label / f"{number:03d}.png", encode(face, Encoding("PNG", "L", 1), made_by))
                bar.advance()
    part.replace(folder)


def _faces(label: str, count: int, drawer: FaceDrawer, judge: Judge) -> np.ndarray:
    """Faces (count, 48, 48, 1) in [0, 1]; the same ones each time."""
    rng = np.random.default_rng([0, *label.encode()])
    noise = rng.standard_normal((count * CANDIDATES, drawer.latent_size), np.float32)
    drawn = drawer.draw([drawer.classes.index(label)] * len(noise), noise)
    sure = judge.predict(drawn[..., 0])[:, judge.classes.index(label)].reshape(count, CANDIDATES)
    return drawn[np.arange(count) * CANDIDATES + sure.argmax(axis=1)]
