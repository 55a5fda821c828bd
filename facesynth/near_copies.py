"""Which pictures are near-copies of others, whatever their format, size, light, mirroring or small shift. No model.

Candidates come from descriptors: first the most alike ones with the finest detail smoothed away, which a shift would spoil,
then the best shift of each. What is left is registered pixel by pixel. Blockwise: memory does not grow with the number of
pictures but for a few numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from facesynth import geometry
from facesynth.calibration import COPY_QUANTILE, FEWEST, SAMPLE
from facesynth.dataset import UnreadableImage
from facesynth.geometry import CROP
from facesynth.imageset import ImageSet
from facesynth.likeness import SIDE, correlations, describe, imitate_copies, registered_correlation
from facesynth.screening import CHUNK

Array = NDArray[Any]

REACH = 2
"""Shifts that are tried, in pixels of 48, each way in both directions; registration adds the fraction of a pixel."""

CANDIDATES = 16
"""Of 200 test images of FER2013, shifted by two pixels both ways, all stay among the 16 most alike of 7,178."""

LIKELY = 0.75
"""Correlation of shifted descriptors from which a pair is registered; 400 images moved by two pixels both ways all reach it."""

FALSE_ALARMS = 3e-4
"""False near-copies that the lenient threshold allows for, per image of the set that must not be copied."""

_BLOCK = 256


@dataclass(frozen=True)
class Matches:
    """Pairs: `rows` (P,) of one set, `others` (P,) of another, and their `similarity` (P,) in [0, 1]."""

    rows: Array
    others: Array
    similarity: Array

    def take(self, which: Array) -> Matches:
        """The pairs at `which`, a mask or an order."""
        return Matches(self.rows[which], self.others[which], self.similarity[which])


def similarity(pictures: Array, others: Array, shifts: Array) -> Array:
    """How well fine light and dark of one picture tell the other's: (P, 48, 48) in [0, 1], shifts (P, 2) → (P,) in [0, 1].

    `likeness.registered_correlation` within the border that a shift may carry away, with the broad light taken off: that,
    too, is alike in different faces, which reach 0.95 with it. On FER2013, of the best pairs of 49 test images from 0.80 to
    0.83 three showed different people, of 84 from 0.83 to 0.90 at most one, of 25 from 0.78 to 0.80 about eight.
    """
    moved = np.stack([_detail(picture, *shift) for picture, shift in zip(pictures, shifts, strict=True)])
    return registered_correlation(moved, np.stack([_detail(other, 0, 0) for other in others]))


def _detail(picture: Array, down: int, right: int) -> Array:
    inner = slice(REACH + down, CROP - REACH + down), slice(REACH + right, CROP - REACH + right)
    inside = cv2.resize(picture[inner], (CROP, CROP), interpolation=cv2.INTER_LINEAR)
    return np.asarray(inside - cv2.GaussianBlur(inside, (0, 0), 3.5, borderType=cv2.BORDER_REFLECT))


def whole_pictures(images: ImageSet, rows: Array) -> Array:
    """Whole images, not their aligned faces, as (P, 48, 48) float32: read again only where the crop is another picture."""
    pictures = images.crops[rows].astype(np.float32) / 255
    known = images.descriptors[rows].astype(np.float32)
    is_other = (describe(pictures) * known).sum(axis=1) < 0.99 * (known**2).sum(axis=1)
    for place in np.flatnonzero(is_other):
        try:
            pixels = images.dataset.read(images.samples[rows[place]]).pixels
        except UnreadableImage:
            continue  # gone since it was described: the face has to do
        pictures[place] = geometry.crop(pixels, geometry.frame_of(pixels, None))
    return pictures


# --- thresholds -------------------------------------------------------------------------------------------------------


def strict_threshold(images: ImageSet, seed: int = 0) -> float:
    """The similarity that 95 % of imitated copies reach: shifted by half a pixel, a little brighter, encoded as JPEG.

    NaN where no image shows anything.
    """
    rng = np.random.default_rng(seed)
    pictures = whole_pictures(images, _sample(np.arange(len(images)), rng))
    pictures = pictures[pictures.std(axis=(1, 2)) > 0.01]
    if not len(pictures):
        return float("nan")
    unshifted = np.zeros((len(pictures), 2), np.int64)
    return float(np.quantile(similarity(pictures, imitate_copies(pictures, rng), unshifted), COPY_QUANTILE))


def lenient_threshold(images: ImageSet, others: ImageSet, seed: int = 0) -> float:
    """The similarity that one in a thousand `others` reaches with some of the `images` without being a copy of it.

    Extrapolated from the similarity of sampled images with the most alike of the others, which real copies among them do
    not disturb: the median and the lower spread tell the rest (of Fisher's z, taken for normal). Never above the strict
    threshold. On FER2013 it is 0.80, where some 3 to 5 of the 7,178 test images are flagged for another face (looked at).
    """
    ceiling = strict_threshold(images, seed)
    rng = np.random.default_rng(seed)
    rows = _sample(np.flatnonzero(~np.isin(images.digests, others.digests)), rng)
    if min(len(rows), len(others)) < FEWEST:
        return ceiling
    z = np.arctanh(np.clip(closest(images.take(rows), others)[1], 0, 0.999999))
    median, low = np.quantile(z, [0.5, NormalDist().cdf(-1)])
    rate = min(FALSE_ALARMS * len(others) / len(images), 0.01)
    return float(np.fmin(ceiling, np.tanh(median + NormalDist().inv_cdf(1 - rate) * (median - low))))


def _sample(rows: Array, rng: np.random.Generator) -> Array:
    return np.sort(rng.choice(rows, min(len(rows), SAMPLE), replace=False))


# --- the search -------------------------------------------------------------------------------------------------------


def closest(images: ImageSet, others: ImageSet, skip: Array | None = None) -> tuple[Array, Array]:
    """Row of the most alike of the `others` (M > 0) for each image, (N,), and their similarity (N,); 1 for equal pixels.

    `skip` (N,): one row of the others to pass over, -1 for none. An image that has no other gets similarity 0.
    """
    rows, alike, shifts = _candidates(images, others, skip)
    each, best = np.arange(len(images)), alike.argmax(axis=1)
    found = rows[each, best]
    value = _register(images, each, others, found, shifts[each, best])
    value[alike[each, best] < 0] = 0
    equal = identical(images, others, skip)
    found[equal.rows], value[equal.rows] = equal.others, 1
    return found, value


def near_copies(images: ImageSet, others: ImageSet, threshold: float, skip: Array | None = None) -> Matches:
    """Pairs whose similarity reaches the threshold, the most alike first, and all that are equal pixel by pixel."""
    rows, alike, shifts = _candidates(images, others, skip)
    of, place = np.nonzero(alike >= LIKELY)
    found = rows[of, place]
    differ = images.digests[of] != others.digests[found]
    of, place, found = of[differ], place[differ], found[differ]
    reached = Matches(of, found, _register(images, of, others, found, shifts[of, place]))
    reached = reached.take(reached.similarity >= threshold)
    equal = identical(images, others, skip)
    joined = Matches(*(np.concatenate(parts) for parts in zip(_columns(equal), _columns(reached), strict=True)))
    return joined.take(np.argsort(-joined.similarity, kind="stable"))


def _columns(matches: Matches) -> tuple[Array, Array, Array]:
    return matches.rows, matches.others, matches.similarity


def identical(images: ImageSet, others: ImageSet, skip: Array | None = None) -> Matches:
    """Equal pixels: each image with one of the others, each of the others with one image of every label that it has there."""
    by_digest: dict[bytes, list[int]] = {}
    for other, digest in enumerate(others.digests.tolist()):
        by_digest.setdefault(digest, []).append(other)
    seen: set[tuple[bytes, int]] = set()
    pairs: list[tuple[int, int]] = []
    for row, (digest, label) in enumerate(zip(images.digests.tolist(), images.labels.tolist(), strict=True)):
        same = [other for other in by_digest.get(digest, []) if skip is None or other != skip[row]]
        pairs += [(row, other) for other in (same[:1] if (digest, label) in seen else same)]
        seen.add((digest, label))
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return Matches(array[:, 0], array[:, 1], np.ones(len(array)))


def _candidates(images: ImageSet, others: ImageSet, skip: Array | None) -> tuple[Array, Array, Array]:
    """Of each image the K most alike others: rows (N, K), correlations (N, K) at the best shift, these shifts (N, K, 2)."""
    count = min(CANDIDATES, len(others))
    rows = _most_alike(images.descriptors, others.descriptors, count, skip)
    alike = np.empty(rows.shape, np.float32)
    shifts = np.empty((*rows.shape, 2), np.int64)
    for start in range(0, len(images) if count else 0, _BLOCK):
        part = slice(start, start + _BLOCK)
        near = others.descriptors[rows[part]].astype(np.float32)
        alike[part], shifts[part] = _best_shift(images.descriptors[part].astype(np.float32), near)
    if skip is not None:
        alike[rows == skip[:, None]] = -1
    return rows, alike, shifts


def _most_alike(queries: Array, others: Array, count: int, skip: Array | None) -> Array:
    """Rows (N, count) of the others that correlate most with descriptors (N, 256), mirrored or not, without fine detail."""
    best = np.full((len(queries), count), -1.0, np.float32)
    rows = np.zeros((len(queries), count), np.int64)
    for start in range(0, len(others), CHUNK):
        chunk = _smooth(others[start : start + CHUNK])
        for first in range(0, len(queries), 1024):
            part = slice(first, first + 1024)
            found = correlations(_smooth(queries[part]), chunk)
            if skip is not None:
                inside = (skip[part] >= start) & (skip[part] < start + len(chunk))
                found[inside, skip[part][inside] - start] = -1
            top = np.argpartition(found, -min(count, len(chunk)), axis=1)[:, -count:]
            value = np.hstack([best[part], np.take_along_axis(found, top, axis=1)])
            kept = np.argsort(-value, axis=1, kind="stable")[:, :count]
            best[part] = np.take_along_axis(value, kept, axis=1)
            rows[part] = np.take_along_axis(np.hstack([rows[part], top + start]), kept, axis=1)
    return rows


def _smooth(descriptors: Array) -> Array:
    grid = descriptors.astype(np.float32).reshape(-1, SIDE, SIDE)
    return _unit(ndimage.gaussian_filter(grid, (0, 1, 1), mode="nearest").reshape(-1, SIDE * SIDE))


def _unit(rows: Array) -> Array:
    rows = rows - rows.mean(axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-4))


def _shift_operator(pixels: int) -> Array:
    """Matrix (16, 16) that moves rows of a descriptor by so many pixels of the picture; zero comes in from outside."""
    cells = np.arange(SIDE)
    moved = [np.interp(cells + pixels * SIDE / CROP, cells, row, left=0, right=0) for row in np.eye(SIDE)]
    return np.stack(moved, axis=1).astype(np.float32)


_STEPS = np.arange(-REACH, REACH + 1)
_SHIFTS = np.stack(np.meshgrid(_STEPS, _STEPS, indexing="ij"), axis=-1).reshape(-1, 2)
_OPERATORS = np.concatenate([_shift_operator(int(step)) for step in _STEPS])


def _best_shift(queries: Array, near: Array) -> tuple[Array, Array]:
    """Descriptors (B, 256) and (B, K, 256) → correlations (B, K) at the best shift, mirrored or not, and shifts (B, K, 2)."""
    count, steps = len(queries), len(_STEPS)
    down = (_OPERATORS @ queries.reshape(-1, SIDE, SIDE)).reshape(count, steps, SIDE, SIDE)
    both = (down.reshape(-1, SIDE) @ _OPERATORS.T).reshape(count, steps, SIDE, steps, SIDE)
    moved = _unit(both.transpose(0, 1, 3, 2, 4).reshape(count, len(_SHIFTS), SIDE * SIDE))
    mirrored = near.reshape(count, -1, SIDE, SIDE)[..., ::-1].reshape(near.shape)
    alike = np.maximum(*(moved @ side.transpose(0, 2, 1) for side in (near, mirrored)))
    best = alike.argmax(axis=1)
    return np.take_along_axis(alike, best[:, None], axis=1)[:, 0], _SHIFTS[best]


def _register(images: ImageSet, rows: Array, others: ImageSet, found: Array, shifts: Array) -> Array:
    parts = [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]
    return np.concatenate(
        [np.empty(0)]
        + [
            similarity(whole_pictures(images, rows[part]), whole_pictures(others, found[part]), shifts[part])
            for part in parts
        ]
    )
