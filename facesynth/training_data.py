"""A dataset's training split as one tensor of face crops, 48 x 48 gray or as a network asks, a part held out for validation."""

from __future__ import annotations

import copy
import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from facesynth import console, dataset, geometry
from facesynth.console import FacesynthError, UsageError
from facesynth.identity import FaceEmbedder, open_embedder

HELD_OUT_SHARE = 0.1

IN_MEMORY = 4 << 30
"""Bytes of crops beyond which the system may page them out: CelebA's at 128 pixels are ten gigabytes."""


@dataclass(frozen=True)
class Origins:
    """What metadata.csv says of N faces: name, whether it is synthetic, of which image it was made, its loss weight."""

    names: Sequence[str]
    synthetic: np.ndarray
    sources: Sequence[str | None]
    weights: np.ndarray


@dataclass
class Faces:
    """Crops (N, S, S) gray or (N, S, S, 3) RGB, uint8, with labels (N,) int64. `training` and `held` (out) are index tensors.

    `present` are indices of the classes that have faces, in order: all, unless the faces are `among` those of a network that
    knows more. `places` (own classes,) is where the dataset's own classes are in `classes`.

    The last `validation` faces are held out. Where there are none, whether a real face is held out depends on its pixels
    alone, so that identical copies always fall on the same side; what was made of a held-out face is on no side.
    """

    crops: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    device: str = "cpu"
    origins: Origins | None = None
    validation: int = 0
    src: Path | None = None
    training: Tensor = field(init=False)
    held: Tensor = field(init=False)
    present: Tensor = field(init=False)
    places: Tensor = field(init=False)
    _by_class: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        held = self._choose_held_out()
        self.training = torch.from_numpy(np.flatnonzero(~held & ~self._made_of(held)))
        self.held = torch.from_numpy(np.flatnonzero(held))
        of_training = self.labels[self.training]
        for k, name in enumerate(self.classes):
            if not (of_training == k).any() or not (self.labels[self.held] == k).any():
                raise FacesynthError(
                    f"class '{name}' has too few distinct images ({int((self.labels == k).sum())} at most) to train on some "
                    "and calibrate on others; add images, or take the class out."
                )
        self.present = self.places = torch.arange(len(self.classes))
        self._by_class = [self.training[of_training == k] for k in range(len(self.classes))]

    def among(self, classes: tuple[str, ...], places: Sequence[int]) -> Self:
        """The same faces, but labelled with `classes`: what is class k here is number `places[k]` of them.

        The others have no faces.
        """
        found = copy.copy(self)
        found.classes, found.places = classes, torch.tensor(places)
        found.present = found.places.sort().values
        found.labels = found.places[self.labels]
        none = self.training[:0]
        found._by_class = [self._by_class[places.index(k)] if k in places else none for k in range(len(classes))]
        return found

    def _choose_held_out(self) -> np.ndarray:
        if self.validation:
            return np.arange(len(self.crops)) >= len(self.crops) - self.validation
        held = np.array([held_out_rank(crop) < HELD_OUT_SHARE for crop in self.crops.numpy()])
        return held if self.origins is None else held & ~self.origins.synthetic

    def _made_of(self, held: np.ndarray) -> np.ndarray:
        """Synthetic faces whose source is held out."""
        if self.origins is None or self.validation:
            return np.zeros(len(held), bool)
        names = {name for name, out in zip(self.origins.names, held, strict=True) if out}
        return np.array([source in names for source in self.origins.sources])

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `count` training faces evenly: images (N, C, S, S) float in [0, 1], labels (N,), indices (N,)."""
        return self.take(self.training[torch.randint(len(self.training), (count,), generator=rng)])

    def draw_labels(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw `count` classes (N,) evenly from those that have faces."""
        return self.present[torch.randint(len(self.present), (count,), generator=rng)]

    def draw_of(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Draw one training face of each class in `labels` (N,): images (N, C, S, S)."""
        return self.take(self.pick_of(labels, rng))[0]

    def pick_of(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """As `draw_of`, but their indices (N,)."""
        picks = torch.rand(len(labels), generator=rng).tolist()
        pools = [self._by_class[k] for k in labels.tolist()]
        return torch.stack([pool[int(p * len(pool))] for p, pool in zip(picks, pools, strict=True)])

    def held_out(self) -> tuple[Tensor, Tensor]:
        """All held-out faces: images (N, C, S, S), labels (N,)."""
        return self.take(self.held)[:2]

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The faces at `indices`: images (N, C, S, S) float in [0, 1], labels (N,), indices (N,)."""
        crops = self.crops[indices].to(self.device)
        images = (crops[:, None] if crops.ndim == 3 else crops.permute(0, 3, 1, 2)).float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[indices].to(self.device), indices


def held_out_rank(crop: np.ndarray) -> float:
    """Where a crop (uint8) stands in [0, 1): those below `HELD_OUT_SHARE` are held out where there is no val split."""
    digest = hashlib.sha256(crop.tobytes()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def tensors_of(crops: np.ndarray, samples: list[dataset.Sample], classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Crops and their labels as uint8 and int64."""
    index = {name: k for k, name in enumerate(classes)}
    return torch.from_numpy(crops), torch.tensor([index[sample.label] for sample in samples], dtype=torch.long)


def load_faces(src: str | Path, device: str, side: int = geometry.CROP, colour: bool = False) -> Faces:
    """Read the training split of `src` as face crops; images that cannot be read are left out with a warning.

    Faces in large photos are found and aligned where insightface's models are there; small photos are taken whole.
    """
    data = dataset.scan(Path(src))
    return Faces(*tensors_of(*read_crops(data, "train", side, colour), data.classes), data.classes, device)


def load_examples(src: str | Path, device: str) -> Faces:
    """As `load_faces`, with the validation split, where there is one, and with what metadata.csv says of the faces."""
    data = dataset.scan(Path(src))
    crops, samples = read_crops(data, "train")
    more, others = read_crops(data, "val")
    tensors = tensors_of(np.concatenate([crops, more]), samples + others, data.classes)
    rows = dataset.synthetic_rows(data) or {}
    found = [rows.get(sample.name) for sample in samples] + [None] * len(others)
    origins = Origins(
        names=[sample.name for sample in samples + others],
        synthetic=np.array([row is not None for row in found]),
        sources=[row.get("source") if row else None for row in found],
        weights=np.array([loss_weight(row or {}) for row in found], np.float32),
    )
    return Faces(*tensors, data.classes, device, origins, len(others), Path(src))


def load_split(src: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Crops (N, 48, 48) uint8 and labels (N,) int64 of one split; N is 0 where there is no such split."""
    data = dataset.scan(Path(src))
    crops, labels = tensors_of(*read_crops(data, split), data.classes)
    return crops.numpy(), labels.numpy()


def loss_weight(row: dict[str, str]) -> float:
    """The weight that a row of metadata.csv gives its image in the loss: 1 where it says nothing."""
    text = row.get("weight") or "1"
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise UsageError(
            f"metadata.csv: weight of {console.printable(row['file_name'])} is '{console.printable(text)}'; give a number "
            "of 0 or more."
        )
    return weight


def read_crops(
    data: dataset.Dataset, split: str, side: int = geometry.CROP, colour: bool = False
) -> tuple[np.ndarray, list[dataset.Sample]]:
    """Face crops (N, side, side) or (N, side, side, 3) uint8 of one split, and the samples that could be read."""
    locate = _Locator()
    wanted = data.samples.get(split, ())
    crops = room((len(wanted), side, side, *[3] * colour))
    samples: list[dataset.Sample] = []
    if not wanted:
        return crops, samples
    with console.progress("reading", len(wanted)) as bar:
        for sample in wanted:
            bar.advance()
            try:
                pixels = data.read(sample).pixels
            except dataset.UnreadableImage as error:
                console.warn(str(error))
                continue
            face = geometry.crop(pixels, geometry.frame_of(pixels, locate(pixels)), side, colour)
            crops[len(samples)] = np.round(face * 255)
            samples.append(sample)
    return crops[: len(samples)], samples


def room(shape: tuple[int, ...]) -> np.ndarray:
    """Where crops (uint8) are put: in memory, or above `IN_MEMORY` bytes in a temporary file without a name."""
    if math.prod(shape) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


class _Locator:
    """Finds the face in large photos; loads a detector only when the first of them comes."""

    def __init__(self) -> None:
        self._embedder: FaceEmbedder | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray | None:
        if not geometry.may_hold_more(pixels):
            return None
        self._embedder = self._embedder or open_embedder("auto")[0]
        return self._embedder.locate(pixels) if self._embedder else None
