"""How alike two pictures of faces are, whoever is in them: near-copies are found, edits told from copies. No model."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facesynth.geometry import CROP

Array = NDArray[Any]

SIDE = 16
"""Side of a descriptor. On FER2013, 24 and 32 tell copies from edits no better, at two and four times the cost."""

_TINY = 1e-6


def area_operator(size: int) -> Array:
    """Matrix (size, CROP) that averages neighbouring rows."""
    return np.repeat(np.eye(size, dtype=np.float32), CROP // size, axis=1) * (size / CROP)


def _blur_operator(size: int, sigma: float) -> Array:
    """Matrix (size, size) that blurs columns with a Gaussian, mirrored at the border."""
    rows = cv2.GaussianBlur(np.eye(size, dtype=np.float32), (1, 2 * round(3 * sigma) + 1), 1, sigmaY=sigma)
    return np.asarray(rows, np.float32)


_SHRINK, _COARSE, _DENOISE = area_operator(SIDE), _blur_operator(SIDE, SIDE / 8), _blur_operator(CROP, 0.8)


def as_crops(crops: Array) -> Array:
    """Check that these are crops (N, 48, 48), and make them float32."""
    if crops.ndim != 3 or crops.shape[1:] != (CROP, CROP):
        raise ValueError(f"face crops must have the shape (N, {CROP}, {CROP}), not {crops.shape}")
    return crops.astype(np.float32, copy=False)


def describe(crops: Array) -> Array:
    """Crops (N, 48, 48) → descriptors (N, 256) float32: local contrast at 16×16, unit rows (zero for a flat crop).

    The local mean is taken off: that makes the correlation of different faces smaller (of 1,500 faces with the nearest
    one, 99th percentile 0.92 instead of 0.96), and that of a face with its own edit, but hardly that of copies.
    """
    small = _SHRINK @ as_crops(crops) @ _SHRINK.T
    local = (small - _COARSE @ small @ _COARSE.T).reshape(len(crops), SIDE * SIDE)
    local = local - local.mean(axis=1, keepdims=True)
    length = np.linalg.norm(local, axis=1, keepdims=True)
    return np.where(length > 1e-4, local / np.maximum(length, 1e-4), 0).astype(np.float32)


def correlations(queries: Array, others: Array) -> Array:
    """Descriptors (N, 256) and (M, 256) → correlations (N, M) float32, the larger of upright and mirrored."""
    upright = queries.astype(np.float32, copy=False)
    mirrored = upright.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE * SIDE)
    columns = np.asarray(others, np.float32).T
    return np.asarray(np.maximum(upright @ columns, mirrored @ columns))


def registered_correlation(sources: Array, results: Array) -> Array:
    """How well light, contrast and a small shift turn sources into results (N, 48, 48): (N,) in [0, 1].

    The multiple correlation of a result with its source and the source's two derivatives: one step of the registration
    of Lucas and Kanade (1981); the larger of upright and mirrored. An edit is what cannot be explained so: of faces
    whose mouth is moved by three pixels 6 % stay above the 5th percentile of mere copies, by plain correlation 58 %.
    """
    source, result = (_DENOISE @ as_crops(crops) @ _DENOISE.T for crops in (sources, results))
    down, right = np.gradient(source, axis=(1, 2))
    basis = np.stack([source, down, right], axis=-1).reshape(len(source), CROP * CROP, 3).astype(np.float64)
    basis -= basis.mean(axis=1, keepdims=True)
    gram = basis.transpose(0, 2, 1) @ basis + _TINY * np.eye(3)
    return np.maximum(*(_explained(basis, gram, target) for target in (result, result[:, :, ::-1])))


def _explained(basis: Array, gram: Array, target: Array) -> Array:
    values = target.reshape(len(target), -1, 1).astype(np.float64)
    values = values - values.mean(axis=1, keepdims=True)
    moments = basis.transpose(0, 2, 1) @ values
    explained = (moments * np.linalg.solve(gram, moments)).sum(axis=(1, 2))
    return np.asarray(np.sqrt(np.clip(explained / np.maximum((values**2).sum(axis=(1, 2)), _TINY), 0, 1)))


def imitate_copies(crops: Array, rng: np.random.Generator) -> Array:
    """Copies of crops (N, 48, 48): shifted by half a pixel, slightly brightened, encoded as JPEG."""
    copies = []
    for crop in as_crops(crops):
        angle, gain, offset = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 1.1), rng.uniform(0, 0.03)
        shift = np.array([[1, 0, 0.5 * np.cos(angle)], [0, 1, 0.5 * np.sin(angle)]])
        moved = cv2.warpAffine(crop, shift, (CROP, CROP), borderMode=cv2.BORDER_REPLICATE)
        pixels = (np.clip(moved * gain + offset, 0, 1) * 255 + 0.5).astype(np.uint8)
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))])[1]
        copies.append(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.float32) / 255)
    return np.stack(copies)
