"""What is wrong with a 48×48 gray face, seen by itself: blur, the patterns of upsampling, flatness, clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesynth.geometry import CROP
from facesynth.likeness import area_operator, as_crops

Array = NDArray[Any]

FAULTS = ("clipped", "checkerboard", "striped", "flat", "blurred", "noisy")
"""The most specific first: it names the cause where several are equally bad."""

TOLERANCES = np.array([0.02, 0.1, 0.1, 0.1, 0.1, 0.1])
"""By how much a fault may grow from source to result unblamed: a tenth (of a logarithm), or 2 % of the pixels."""

_TINY, _UNSEEN = 1e-6, (1.5 / 255) ** 2


def _block_operator(kernel: tuple[float, float, float], sign: int) -> Array:
    """Matrix (3, CROP) that filters rows with `kernel`, multiplies them by sign^row, and averages blocks of 16."""
    filtered = np.zeros((CROP, CROP))
    for row in range(1, CROP - 1):
        filtered[row, row - 1 : row + 2] = kernel
    return np.asarray(area_operator(3) @ (np.power(float(sign), np.arange(CROP))[:, None] * filtered))


_ALTERNATING, _STEADY = _block_operator((-0.25, 0.5, -0.25), -1), _block_operator((0.25, 0.5, 0.25), 1)


def faults(crops: Array) -> Array:
    """How much each of FAULTS a face (N, 48, 48) has, larger is worse: (N, 6) float64.

    clipped: share of black and white pixels, 0–1. checkerboard and striped: log of the energy of patterns with a period
    of two pixels that keep their phase over blocks of 16 pixels, as upsampling leaves them, in the worst block and in
    the mean of all (a contour looks striped too); what nobody sees, under 1.5 gray levels of 255, counts as that.
    flat: −log of the standard deviation. blurred: −log of the Laplacian's energy against the variance. noisy: log of
    the energy of what alternates in both directions.
    """
    face = as_crops(crops).astype(np.float64)
    inner = face[:, 1:-1, 1:-1]
    laplacian = 4 * inner - face[:, :-2, 1:-1] - face[:, 2:, 1:-1] - face[:, 1:-1, :-2] - face[:, 1:-1, 2:]
    variance = face.var(axis=(1, 2)) + _TINY
    sharpness = np.log((laplacian**2).mean(axis=(1, 2)) / variance + _TINY)
    twill = (face[:, 1:, 1:] - face[:, 1:, :-1] - face[:, :-1, 1:] + face[:, :-1, :-1]) / 4
    checkerboard = (_ALTERNATING @ face @ _ALTERNATING.T) ** 2
    stripes = (_ALTERNATING @ face @ _STEADY.T) ** 2 + (_STEADY @ face @ _ALTERNATING.T) ** 2
    energies = (checkerboard.max(axis=(1, 2)), stripes.mean(axis=(1, 2)), (twill**2).mean(axis=(1, 2)))
    checkered, striped, noisy = (np.log(np.maximum(energy, _UNSEEN)) for energy in energies)
    clipped = ((face <= 1 / 255) | (face >= 254 / 255)).mean(axis=(1, 2))
    return np.stack([clipped, checkered, striped, -np.log(variance) / 2, -sharpness, noisy], axis=1)
