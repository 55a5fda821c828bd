"""What tells synthetic faces from real ones? python tests/benchmarks/gap.py REAL SYNTHETIC [--steps 400].

Trains a small classifier to tell them apart, as many of each in every class: on faces as they are, on what is left of them in
fewer pixels, on what that takes away, and under noise. Prints how often it is right about other faces: 50 % of either is
chance. A real image is trained on, or asked about, with the images that were made of it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from facesynth import console
from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.imageset import ImageSet, SyntheticSet, read_real, read_synthetic
from facesynth.loop import Loop
from facesynth.recipe import RecognizerSettings
from facesynth.recognizer import Examples, Recognizer, read
from facesynth.trials import UpliftConfig

Faces = NDArray[np.uint8]

HELD_OUT = 4
"""One part in so many is asked about, the others are trained on."""


def coarse(faces: Faces, side: int) -> Faces:
    """What is left of faces (N, 48, 48) that were as small as `side`."""
    small = [cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA) for face in faces]
    return np.stack([cv2.resize(face, (48, 48), interpolation=cv2.INTER_CUBIC) for face in small])


def fine(faces: Faces, side: int) -> Faces:
    """What that takes away, around middle gray."""
    return (faces.astype(np.float32) - coarse(faces, side) + 128).clip(0, 255).astype(np.uint8)


def noisy(faces: Faces, deviation: float) -> Faces:
    """Faces under Gaussian noise, in gray levels of 255."""
    noise = np.random.default_rng(0).normal(0, deviation, faces.shape)
    return (faces + noise).clip(0, 255).astype(np.uint8)


VIEWS: dict[str, Callable[[Faces], Faces]] = {
    "as they are": lambda faces: faces,
    "24 x 24 pixels": lambda faces: coarse(faces, 24),
    "12 x 12 pixels": lambda faces: coarse(faces, 12),
    "finer than 24 x 24 alone": lambda faces: fine(faces, 24),
    "noise of 10 gray levels": lambda faces: noisy(faces, 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    console.set_quiet(True)
    reader = JudgeExtractor(load_judge("judge-48", "cpu"))
    real = read_real(arguments.real, reader).of("train")
    made = read_synthetic(arguments.synthetic, real.classes, reader)
    trained, asked = (as_many(*part) for part in halves(real, made))
    print(f"{len(trained.labels):,} faces to train on, {len(asked.labels):,} to ask about, half of them synthetic")
    print("| seen | right about real | right about synthetic |\n|---|---|---|")
    for name, view in VIEWS.items():
        right = told_apart(trained, asked, view, arguments.steps)
        print(f"| {name} | {right[0]:.0%} | {right[1]:.0%} |", flush=True)


def halves(real: ImageSet, made: SyntheticSet) -> list[tuple[ImageSet, SyntheticSet]]:
    """What is trained on and what is asked about: a real image goes where the images go that were made of it."""

    def held(name: str) -> bool:
        return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0

    of_real = np.array([held(name) for name in real.names])
    of_made = np.array([held(source or name) for source, name in zip(made.sources, made.names, strict=True)])
    return [
        (real.take(np.flatnonzero(of_real == asked)), made.take(np.flatnonzero(of_made == asked)))
        for asked in (False, True)
    ]


def as_many(real: ImageSet, made: SyntheticSet) -> Examples:
    """As many real as synthetic faces of each class, labelled 0 and 1."""
    rng = np.random.default_rng(0)
    crops: list[Faces] = []
    labels: list[int] = []
    for k in range(len(real.classes)):
        rows = [rng.permutation(np.flatnonzero(images.labels == k)) for images in (real, made)]
        count = min(map(len, rows))
        for label, images in enumerate((real, made)):
            crops.extend(images.crops[rows[label][:count]])
            labels.extend([label] * count)
    return Examples(
        crops=torch.from_numpy(np.stack(crops)),
        labels=torch.tensor(labels),
        synthetic=torch.zeros(len(labels), dtype=torch.bool),
        weights=torch.ones(len(labels)),
        classes=("real", "synthetic"),
    )


def told_apart(trained: Examples, asked: Examples, view: Callable[[Faces], Faces], steps: int) -> list[float]:
    """How often a classifier that was trained on a view of some faces is right about the real, and about the synthetic others."""
    config = UpliftConfig(steps=steps, network="small", device="cpu").training(0, RecognizerSettings())
    torch.manual_seed(0)
    seen = Examples(
        torch.from_numpy(view(trained.crops.numpy())),
        trained.labels,
        trained.synthetic,
        trained.weights,
        trained.classes,
    )
    recipe = Recognizer(config, seen)
    loop = Loop(recipe, config, Path())
    while loop.images < config.images:
        loop.step()
    labels = asked.labels.numpy()
    read_as = read(loop.ema["model"], view(asked.crops.numpy()), config).argmax(axis=1)
    return [float((read_as[labels == label] == label).mean()) for label in (0, 1)]


if __name__ == "__main__":
    main()
