"""The pictures of an evaluation's page: samples of the synthetic images and of rejects, and the pairs that were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facesynth.dataset import UnreadableImage, decode
from facesynth.evaluation import Safety
from facesynth.evaluation_page import DoubtedFace, Face, LeakPair, NeighbourPair, Pictures
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.page import some
from facesynth.runfolder import folder_of
from facesynth.synthesis import rows_of_run

PER_CLASS, REJECTS, PAIRS = 24, 84, 24
"""How many are shown: synthetic images of a class, rejects, and pairs of each kind."""

Item = TypeVar("Item")


def collect(real: ImageSet, synthetic: SyntheticSet, test: ImageSet | None, safety: Safety) -> Pictures:
    """Read the pictures to show; what cannot be read any more is left out."""
    held_out = _Shelf(real if test is None else test)
    shelf, made = _Shelf(real), _Shelf(synthetic)
    return Pictures(
        gallery=[*_gallery(synthetic), *_rejects(folder_of(synthetic.dataset.root))],
        neighbours=[
            NeighbourPair(first, second, neighbour)
            for neighbour in safety.copies.nearest[:PAIRS]
            for first, second in _both(
                made.get("train", neighbour.synthetic), shelf.get(neighbour.split, neighbour.real)
            )
        ],
        leaks=[
            LeakPair(first, second, leak)
            for leak in some(safety.leakage.leaks, PAIRS)
            for first, second in _both(
                made.get("train", leak.image)
                if leak.kind == "synthetic image"
                else _of_real(shelf, leak.kind, leak.image),
                (held_out if leak.split == "test" else shelf).get(leak.split, leak.of),
            )
        ],
        doubts=[
            DoubtedFace(pixels, doubt)
            for doubt in (safety.labels.images[:PAIRS] if safety.labels else [])
            for pixels in shelf.get(doubt.split, doubt.image)
        ],
    )


class _Shelf:
    """Finds images again by split and name."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self._samples = {(sample.split, sample.name): sample for sample in images.samples}

    def get(self, split: str, name: str) -> list[NDArray[Any]]:
        """The pixels, or nothing."""
        sample = self._samples.get((split, name))
        with suppress(UnreadableImage):
            return [self._images.dataset.read(sample).pixels] if sample else []
        return []


def _of_real(shelf: _Shelf, kind: str, name: str) -> list[NDArray[Any]]:
    return shelf.get("val" if kind == "real validation image" else "train", name)


def _both(first: Sequence[Item], second: Sequence[Item]) -> Iterator[tuple[Item, Item]]:
    return zip(first[:1], second[:1], strict=False)


def _gallery(synthetic: SyntheticSet) -> Iterator[Face]:
    for place, label in enumerate(synthetic.classes):
        for row in some(np.flatnonzero(synthetic.labels == place).tolist(), PER_CLASS):
            with suppress(UnreadableImage):
                pixels = synthetic.dataset.read(synthetic.samples[row]).pixels
                yield Face(pixels, label, synthetic.names[row], _scores(synthetic, row))


def _scores(synthetic: SyntheticSet, row: int) -> Mapping[str, float | None]:
    values = {gate: float(column[row]) for gate, column in synthetic.scores.items()}
    return {gate: value if np.isfinite(value) else None for gate, value in values.items()}


def _rejects(folder: Path) -> Iterator[Face]:
    """Rejects that a run of balance or augment kept for its own report."""
    kept = [row for row in rows_of_run(folder) if row.file and row.reason]
    for row in some(kept, REJECTS):
        file = folder / str(row.file)
        with suppress(UnreadableImage, OSError):
            name = row.source or str(row.file)
            yield Face(decode(file.read_bytes(), file).pixels, row.label, name, row.scores, row.reason)
