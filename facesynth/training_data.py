"""A dataset's training split as one tensor of 48 x 48 gray face crops, with a part held out for calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facesynth import console, dataset, geometry
from facesynth.console import FacesynthError
from facesynth.identity import FaceEmbedder, open_embedder

HELD_OUT_SHARE = 0.1


@dataclass
class Faces:
    """Crops (N, 48, 48) uint8 with labels (N,) int64. `training` and the held-out rest are index tensors.

    Whether a face is held out depends on its pixels alone, so that identical copies always fall on the same side.
    """

    crops: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    device: str = "cpu"
    training: Tensor = field(init=False)
    _by_class: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        held = torch.tensor([_is_held_out(crop) for crop in self.crops.numpy()])
        self.training = (~held).nonzero()[:, 0]
        self._held = held.nonzero()[:, 0]
        of_training = self.labels[self.training]
        for k, name in enumerate(self.classes):
            if not (of_training == k).any() or not (self.labels[self._held] == k).any():
                raise FacesynthError(
                    f"class '{name}' has too few distinct images ({int((self.labels == k).sum())} at most) to train on some "
                    "and calibrate on others; add images, or take the class out."
                )
        self._by_class = [self.training[of_training == k] for k in range(len(self.classes))]

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `count` training faces evenly: images (N, 1, 48, 48) float in [0, 1], labels (N,), indices (N,)."""
        return self.take(self.training[torch.randint(len(self.training), (count,), generator=rng)])

    def draw_of(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Draw one training face of each class in `labels` (N,): images (N, 1, 48, 48)."""
        picks = torch.rand(len(labels), generator=rng).tolist()
        pools = [self._by_class[k] for k in labels.tolist()]
        return self.take(torch.stack([pool[int(p * len(pool))] for p, pool in zip(picks, pools, strict=True)]))[0]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """All held-out faces: images (N, 1, 48, 48), labels (N,)."""
        return self.take(self._held)[:2]

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The faces at `indices`: images (N, 1, 48, 48) float in [0, 1], labels (N,), indices (N,)."""
        images = self.crops[indices][:, None].to(self.device).float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[indices].to(self.device), indices


def _is_held_out(crop: np.ndarray) -> bool:
    digest = hashlib.sha256(crop.tobytes()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def stack(crops: Iterable[np.ndarray], labels: list[str], classes: tuple[str, ...], device: str) -> Faces:
    """Stack gray crops (48, 48) in [0, 1] and their labels."""
    array = np.stack([np.round(crop * 255).astype(np.uint8) for crop in crops])
    index = {name: k for k, name in enumerate(classes)}
    return Faces(torch.from_numpy(array), torch.tensor([index[label] for label in labels]), classes, device)


def load_faces(src: str | Path, device: str) -> Faces:
    """Read the training split of `src` as face crops; images that cannot be read are left out with a warning.

    Faces in photos larger than a crop are found and aligned where insightface's models are there.
    """
    data = dataset.scan(Path(src))
    locate = _Locator()
    crops: list[np.ndarray] = []
    labels: list[str] = []
    with console.progress("reading", len(data.samples["train"])) as bar:
        for sample in data.samples["train"]:
            bar.advance()
            try:
                pixels = data.read(sample).pixels
            except dataset.UnreadableImage as error:
                console.warn(str(error))
                continue
            crops.append(geometry.crop(pixels, geometry.frame_of(pixels, locate(pixels))))
            labels.append(sample.label)
    return stack(crops, labels, data.classes, device)


class _Locator:
    """Finds the face in large photos; loads a detector only when the first of them comes."""

    def __init__(self) -> None:
        self._embedder: FaceEmbedder | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray | None:
        if not geometry.may_hold_more(pixels):
            return None
        self._embedder = self._embedder or open_embedder("auto")[0]
        return self._embedder.locate(pixels) if self._embedder else None
