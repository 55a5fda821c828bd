"""How two clouds of feature vectors cover each other: precision, recall, density and coverage, from each distance once.

Distances are computed in blocks, so that memory grows with the number of vectors and not with its square.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

PRECISION_NEIGHBOUR = 3
"""k of precision and recall (Kynkäänniemi et al. 2019), as in torch-fidelity."""

COVERAGE_NEIGHBOUR = 5
"""k of density and coverage (Naeem et al. 2020)."""

TILE = 1024
"""Rows and columns of a block of distances: 4 MB, which caches hold while it is looked at in several ways."""


@dataclass(frozen=True)
class Manifold:
    """Vectors (N, D) with the distances (N,) from each to its 3rd and 5th neighbour among the others, which are the radii
    of balls around them, and the mean distance between two of them. NaN where there are too few vectors."""

    features: Tensor
    radius3: Tensor
    radius5: Tensor
    spread: float


@dataclass(frozen=True)
class Cover:
    """Share of synthetic vectors in a ball of a real one; share of real vectors in a ball of a synthetic one; number of
    real balls that a synthetic vector lies in, over 5; share of real balls that hold a synthetic vector.

    None where a ball has no radius, because there are too few vectors.
    """

    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None


def manifold(features: Tensor) -> Manifold:
    """Measure the vectors (N, D) against themselves: tile by tile above the diagonal, as distances are symmetric."""
    count = len(features)
    nearest = torch.full((count, COVERAGE_NEIGHBOUR + 1), torch.nan, device=features.device)
    tiles = _tiles(count)
    total = 0.0
    for place, rows in enumerate(tiles):
        for columns in tiles[place:]:
            distances = torch.cdist(features[rows], features[columns])
            nearest[rows] = _merged(nearest[rows], distances)
            if columns != rows:
                nearest[columns] = _merged(nearest[columns], distances.T.contiguous())
            total += (1 if columns == rows else 2) * distances.sum(dim=1).double().sum().item()
    spread = total / (count * (count - 1)) if count > 1 else float("nan")
    # Each vector's nearest is itself.
    return Manifold(features, nearest[:, PRECISION_NEIGHBOUR], nearest[:, COVERAGE_NEIGHBOUR], spread)


def _merged(nearest: Tensor, distances: Tensor) -> Tensor:
    """The k smallest of each row, in order, of those known (B, k) and of more distances (B, N); NaN counts as largest."""
    k = nearest.shape[1]
    found = _smallest(distances, min(k, distances.shape[1]))
    return torch.cat([nearest, found], dim=1).topk(k, largest=False).values


def cover(real: Manifold, synthetic: Manifold) -> Cover:
    """Compare two manifolds. Precision and recall are what torch-fidelity makes of the same vectors."""
    m, n = len(real.features), len(synthetic.features)
    if m == 0 or n == 0:
        return Cover(None, None, None, None)
    far = partial(torch.full, fill_value=torch.inf, device=real.features.device)
    # Least distances beyond a ball instead of any(distance <= radius): the same, and several times as fast.
    nearest, beyond_synthetic, beyond_real = far((m,)), far((m,)), far((n,))
    inside = 0
    for rows, columns in itertools.product(_tiles(m), _tiles(n)):
        radius3, radius5 = real.radius3[rows, None], real.radius5[rows, None]
        distances = torch.cdist(real.features[rows], synthetic.features[columns])
        nearest[rows] = torch.minimum(nearest[rows], distances.amin(dim=1))
        inside += int((distances < radius5).count_nonzero())
        to_synthetic = (distances - synthetic.radius3[columns]).amin(dim=1)
        beyond_synthetic[rows] = torch.minimum(beyond_synthetic[rows], to_synthetic)
        beyond_real[columns] = torch.minimum(beyond_real[columns], distances.sub_(radius3).amin(dim=0))
    return Cover(
        precision=_share(beyond_real <= 0) if m > PRECISION_NEIGHBOUR else None,
        recall=_share(beyond_synthetic <= 0) if n > PRECISION_NEIGHBOUR else None,
        density=inside / (COVERAGE_NEIGHBOUR * n) if m > COVERAGE_NEIGHBOUR else None,
        coverage=_share(nearest < real.radius5) if m > COVERAGE_NEIGHBOUR else None,
    )


def _tiles(count: int) -> list[slice]:
    return [slice(start, start + TILE) for start in range(0, count, TILE)]


def _share(which: Tensor) -> float:
    return float(which.sum()) / len(which)


def _smallest(distances: Tensor, k: int) -> Tensor:
    """The k smallest of each row (B, N), in order, as (B, k).

    The k smallest lie in the k chunks whose minima are smallest: looking only there saves most of topk's work.
    """
    chunk = math.isqrt(distances.shape[1] // k)  # as many minima to look at as distances in the chosen chunks
    whole = distances.shape[1] // max(chunk, 1) * chunk
    if whole <= 4 * k * chunk:
        return distances.topk(k, largest=False).values
    chunks = distances[:, :whole].view(len(distances), chunk, -1)
    near = chunks.amin(dim=1).topk(k, largest=False, sorted=False).indices
    candidates = chunks.gather(2, near[:, None].expand(-1, chunk, -1)).flatten(1)
    return torch.cat([candidates, distances[:, whole:]], dim=1).topk(k, largest=False).values
