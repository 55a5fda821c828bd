"""Draws simple faces with seven expressions, for tests: in any size, gray or colour, of as many persons as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

CANVAS = 256

# Per expression: brow height and tilt (inner end down is positive), eye opening, mouth curve (smile is positive),
# mouth opening, mouth width, and wrinkles at the nose.
_LOOKS = {
    "angry": (-6, 14, 8, -6, 0, 30, 0),
    "disgust": (0, 6, 5, -14, 5, 26, 3),
    "fear": (14, -10, 17, -5, 9, 34, 0),
    "happy": (4, 0, 8, 20, 6, 42, 0),
    "neutral": (2, 0, 11, 0, 0, 30, 0),
    "sad": (4, -14, 7, -16, 0, 28, 0),
    "surprise": (20, 0, 19, 0, 24, 18, 0),
}


def draw(expression: str, person: int = 0, size: int = 48, colour: bool = False) -> np.ndarray:
    """One face, uint8 (size, size) or (size, size, 3) RGB; a person keeps head, skin, hair, eyes and pose."""
    rng = np.random.default_rng(person)
    skin = np.array([225, 180, 150]) * rng.uniform(0.45, 1.05)
    hair = rng.uniform(10, 140) * rng.uniform(0.6, 1.0, 3)
    image = np.full((CANVAS, CANVAS, 3), rng.uniform(30, 220, 3), np.float64)
    width, height = rng.uniform(68, 92), rng.uniform(92, 112)
    _ellipse(image, (128, 118), (width + 12, height + 8), hair)
    _ellipse(image, (128, 134), (width, height), np.clip(skin, 0, 255))
    _ellipse(image, (128, 134 - height), (width * 0.9, rng.uniform(18, 44)), hair)
    _features(image, expression, eye_distance=rng.uniform(28, 40), skin=skin)
    pose = cv2.getRotationMatrix2D((128, 128), rng.uniform(-8, 8), rng.uniform(0.92, 1.05))
    pose[:, 2] = pose[:, 2] + rng.uniform(-8, 8, 2)
    posed = cv2.warpAffine(image, pose, (CANVAS, CANVAS), borderMode=cv2.BORDER_REPLICATE)
    small = cv2.resize(posed, (size, size), interpolation=cv2.INTER_AREA)
    face = np.clip(small + rng.normal(0, 3, small.shape), 0, 255).astype(np.uint8)
    return face if colour else np.asarray(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY))


def _features(image: np.ndarray, expression: str, eye_distance: float, skin: np.ndarray) -> None:
    brow_up, brow_tilt, eye, curve, opening, mouth, wrinkles = _LOOKS[expression]
    dark = skin * 0.25
    for side in (-1, 1):
        x = 128 + side * eye_distance
        _ellipse(image, (x, 118), (16, eye), np.array([245.0, 245.0, 245.0]))
        _ellipse(image, (x, 118), (min(7, eye), min(7, eye)), np.array([30.0, 30.0, 40.0]))
        inner, outer = (x - side * 18, 96 - brow_up + brow_tilt), (x + side * 20, 96 - brow_up - brow_tilt / 2)
        _line(image, [inner, outer], dark, 7)
    _line(image, [(128, 126), (122, 152), (134, 152)], skin * 0.7, 3)
    for k in range(wrinkles):
        _line(image, [(114, 128 + 9 * k), (128, 123 + 9 * k), (142, 128 + 9 * k)], dark, 3)
    across = np.linspace(-1, 1, 15)
    upper = [(128 + mouth * t, 188 + curve * (0.5 - t * t) - opening * (1 - t * t)) for t in across]
    lower = [(128 + mouth * t, 188 + curve * (0.5 - t * t) + opening * (1 - t * t)) for t in across[::-1]]
    cv2.fillPoly(image, [np.round(np.array(upper + lower)).astype(np.int32)], (60.0, 10.0, 20.0))
    _line(image, [*upper, *lower, upper[0]], dark, 5)


def _ellipse(image: np.ndarray, centre: tuple[float, float], axes: tuple[float, float], colour: np.ndarray) -> None:
    middle, half = (round(centre[0]), round(centre[1])), (round(axes[0]), round(axes[1]))
    cv2.ellipse(image, middle, half, 0, 0, 360, tuple(map(float, colour)), -1, cv2.LINE_8)


def _line(image: np.ndarray, points: list[tuple[float, float]], colour: np.ndarray, width: int) -> None:
    corners = np.round(np.array(points)).astype(np.int32)
    cv2.polylines(image, [corners], False, tuple(map(float, colour)), width, cv2.LINE_8)


def new_faces(*classes: str, each: int = 15) -> np.ndarray:
    """Crops that no training has seen, class by class: (N, 48, 48) in [0, 1]."""
    faces = [draw(label, 3000 + k) for label in classes for k in range(each)]
    return np.stack(faces) / np.float32(255)


def write_tree(
    folder: Path,
    counts: Mapping[str, int],
    size: int = 48,
    mode: str = "L",
    suffix: str = ".png",
    first_person: int = 0,
) -> Path:
    """Write `counts[expression]` faces of as many persons as folder/expression/im<k><suffix>, in a Pillow mode."""
    person = first_person
    for expression, count in counts.items():
        (folder / expression).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            face = Image.fromarray(draw(expression, person, size, colour=mode not in ("1", "L", "LA")))
            face.convert(mode).save(folder / expression / f"im{k}{suffix}")
            person += 1
    return folder


def write_celeba(folder: Path, count: int = 40, split: bool = True) -> Path:
    """Drawn faces as CelebA has its own: the first half smiles, on a green border outside the middle part."""
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, splits = [f"{count}", "Smiling Young"], []
    for k in range(count):
        smiles = k < count // 2
        image = np.zeros((218, 178, 3), np.uint8)
        image[..., 1] = 255
        image[20:198] = draw("happy" if smiles else "sad", k, 178, colour=True)
        name = f"{k + 1:06d}.png"
        Image.fromarray(image).save(folder / "img_align_celeba" / name)
        rows.append(f"{name}  {1 if smiles else -1} {1 if k % 3 else -1}")
        splits.append(f"{name} {k % 4 if k % 4 < 3 else 0}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    if split:
        (folder / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")
    return folder


def write_csv(path: Path, counts: Mapping[str, int], usage: str = "Training", size: int = 48) -> Path:
    """Write drawn faces as FER2013's CSV; call it again with another usage to add rows."""
    order = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    lines = [] if path.exists() else ["emotion,pixels,Usage"]
    for expression, count in counts.items():
        for person in range(count):
            pixels = " ".join(map(str, draw(expression, person, size).ravel()))
            lines.append(f"{order.index(expression)},{pixels},{usage}")
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")
    return path
