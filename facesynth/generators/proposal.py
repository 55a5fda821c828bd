"""What every editor of faces has in common, whichever way it edits: crops and wishes in, edits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Edits:
    """Edits of N face crops of side S, to be put back into photos of any size (`geometry.put_back`).

    `flow` (N, 2, S, S) says, in crop pixels, from where each pixel comes; None where nothing moves. `difference`, in
    luma (N, S, S) or in RGB (N, S, S, 3), is added afterwards.
    """

    flow: Array | None
    difference: Array


class FaceEditor(Protocol):
    """Edits real faces into wanted classes."""

    name: str
    digest: str
    classes: list[str]
    """Empty where it changes attributes alone; sources and targets then mean nothing to it."""
    size: int
    """Side of the crops that it reads, in pixels."""
    channels: int
    """1: crops are gray (N, S, S); 3: they are RGB (N, S, S, 3)."""
    view: str
    """How much of a photo they show, one of `geometry.VIEWS`."""
    intensity: tuple[float, float]
    """Range of intensities where the caller wishes none."""
    photo_intensity: tuple[float, float]
    """The same for the first tries in photos so large that the face is looked for in them (`geometry.may_hold_more`)."""

    def propose(
        self, crops: Array, source: list[int], target: list[int], draws: list[np.random.Generator], intensity: Array
    ) -> Edits:
        """Edits of crops in [0, 1]; `source` and `target` index `classes`, `intensity` (N,) is in [0, 1].

        A face's random choices come from its own generator in `draws`, so that it does not depend on its batch.
        """
