"""How much faces differ from each other, measured by how much real ones do."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def diversity(made: Tensor, real: Tensor) -> float:
    """Mean distance between two of the made images over that between two of the real ones: near 0 they have collapsed.

    Images are (N, C, H, W) in [0, 1], two at least of each. Distances are in pixels of the images shrunk to 16 x 16 by area
    averaging, where noise and fine texture count for nothing.
    """
    return round((_spread(made) / _spread(real)).item(), 4)


def _spread(images: Tensor) -> Tensor:
    return F.pdist(F.adaptive_avg_pool2d(images, 16).flatten(1)).mean()
