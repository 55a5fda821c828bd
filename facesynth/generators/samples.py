"""What a training shows and says of the faces that its network draws or edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from facesynth.training_data import Faces


def grid(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, S, S), row by row, as one: (H, W), or (H, W, 3) where they are coloured."""
    count, channels, side, _ = images.shape
    rows = images.view(count // columns, columns, channels, side, side).permute(0, 3, 1, 4, 2)
    return rows.reshape(-1, columns * side, channels).squeeze(2).cpu()


def diversity(made: Tensor, real: Tensor) -> float:
    """Mean distance between two of the made images over that between two of the real ones: near 0 they have collapsed.

    Images are (N, C, H, W) in [0, 1], two at least of each. Distances are in pixels of the images shrunk to 16 x 16 by area
    averaging, where noise and fine texture count for nothing.
    """
    return round((_spread(made) / _spread(real)).item(), 4)


def _spread(images: Tensor) -> Tensor:
    return F.pdist(F.adaptive_avg_pool2d(images, 16).flatten(1)).mean()


def diversities(
    faces: Faces,
    groups: Mapping[str, Tensor],
    drawn: Callable[[int, int], Tensor],
    count: int,
    rng: torch.Generator,
) -> dict[str, float]:
    """The diversity of each group of faces, by name, for groups of two training faces or more.

    `groups` are indices of training faces, and `drawn(k, count)` draws as many faces of the k-th group.
    """
    found = {}
    for k, (name, rows) in enumerate(groups.items()):
        real = faces.take(rows[torch.randperm(len(rows), generator=rng)[:count]])[0]
        made = drawn(k, count)
        if len(real) > 1:
            found[name] = diversity(made, real)
    return found


def by_class(faces: Faces) -> dict[str, Tensor]:
    """Indices of the training faces of each class."""
    labels = faces.labels[faces.training]
    return {name: faces.training[labels == k] for k, name in enumerate(faces.classes)}
