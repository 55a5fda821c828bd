"""How two clouds of feature vectors cover each other: precision, recall, density and coverage, from each distance once.

Distances are computed in blocks, so that memory grows with the number of vectors and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PRECISION_NEIGHBOUR = 3
"""k of precision and recall (Kynkäänniemi et al. 2019), as in torch-fidelity."""

COVERAGE_NEIGHBOUR = 5
"""k of density and coverage (Naeem et al. 2020)."""

BLOCK = 2**22
"""Distances in one block: 16 MB."""

_CHUNK = 64


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
    """Measure the vectors (N, D) against themselves."""
    count = len(features)
    nearest = torch.full((count, COVERAGE_NEIGHBOUR + 1), torch.nan, device=features.device)
    total, done = 0.0, 0
    for block in torch.split(features, _rows(count)):
        distances = torch.cdist(block, features)
        total += distances.sum(dtype=torch.float64).item()
        found = _smallest(distances, min(COVERAGE_NEIGHBOUR + 1, count))
        nearest[done : done + len(block), : found.shape[1]] = found
        done += len(block)
    spread = total / (count * (count - 1)) if count > 1 else float("nan")
    # Each vector's nearest is itself.
    return Manifold(features, nearest[:, PRECISION_NEIGHBOUR], nearest[:, COVERAGE_NEIGHBOUR], spread)


def cover(real: Manifold, synthetic: Manifold) -> Cover:
    """Compare two manifolds. Precision and recall are what torch-fidelity makes of the same vectors."""
    m, n = len(real.features), len(synthetic.features)
    if m == 0 or n == 0:
        return Cover(None, None, None, None)
    recalled = covered = inside = done = 0
    beyond = torch.full((n,), torch.inf, device=synthetic.features.device)
    for block in torch.split(real.features, _rows(n)):
        radius3, radius5 = (radius[done : done + len(block)] for radius in (real.radius3, real.radius5))
        distances = torch.cdist(block, synthetic.features)
        covered += int((distances.amin(dim=1) < radius5).sum())
        inside += int((distances < radius5[:, None]).count_nonzero())
        # Least distance beyond the ball instead of any(distance <= radius): the same, and several times as fast.
        recalled += int(((distances - synthetic.radius3).amin(dim=1) <= 0).sum())
        torch.minimum(beyond, distances.sub_(radius3[:, None]).amin(dim=0), out=beyond)
        done += len(block)
    return Cover(
        precision=float((beyond <= 0).sum()) / n if m > PRECISION_NEIGHBOUR else None,
        recall=recalled / m if n > PRECISION_NEIGHBOUR else None,
        density=inside / (COVERAGE_NEIGHBOUR * n) if m > COVERAGE_NEIGHBOUR else None,
        coverage=covered / m if m > COVERAGE_NEIGHBOUR else None,
    )


def _rows(columns: int) -> int:
    return max(1, BLOCK // max(columns, 1))


def _smallest(distances: Tensor, k: int) -> Tensor:
    """The k smallest of each row (B, N), in order, as (B, k).

    The k smallest lie in the k chunks whose minima are smallest: looking only there saves most of topk's work.
    """
    whole = distances.shape[1] // _CHUNK * _CHUNK
    if whole <= 4 * k * _CHUNK:
        return distances.topk(k, largest=False).values
    chunks = distances[:, :whole].view(len(distances), -1, _CHUNK)
    near = chunks.amin(dim=2).topk(k, largest=False).indices
    candidates = chunks.gather(1, near[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    return torch.cat([candidates, distances[:, whole:]], dim=1).topk(k, largest=False).values
