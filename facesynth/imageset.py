"""Images as evaluation needs them: each decoded once, with everything that metrics read, cached by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from facesynth import console, imagecache
from facesynth.console import UsageError, printable
from facesynth.dataset import Dataset, Sample, real_only, scan, synthetic_rows
from facesynth.expression import Judge
from facesynth.extractors import Extractor
from facesynth.identity import FaceEmbedder
from facesynth.target import canonical_label

Array = NDArray[Any]

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class ImageSet:
    """N images of a dataset. Arrays are memory-mapped where they come straight from the cache.

    `labels` (N,) int64 index `classes`, which are a real dataset's own names (for `samples` of another dataset, whose
    labels may be spelt otherwise, too). `crops` (N, 48, 48) uint8: the face, aligned where the photo is large and it was
    found. `descriptors` (N, 256) float16: `likeness.describe` of the whole image. `digests` (N,) S16: equal where the gray
    pixels and the size of the whole images are. `features` and `logits`: extractor's name → (N, D) and (N, K) float32.
    `embeddings` (N, E) float32 unit rows by `identity_model`, or None: the aligned face of a large photo, else the whole.
    `probabilities` (N, K) float32 by `classes` are a judge's, or None: see `judged`.
    """

    dataset: Dataset
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    labels: Array
    crops: Array
    descriptors: Array
    digests: Array
    features: dict[str, Array]
    logits: dict[str, Array]
    embeddings: Array | None = None
    identity_model: str | None = None
    unreadable: int = 0
    probabilities: Array | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def name(self) -> str:
        """The dataset's folder, for messages."""
        return printable(self.dataset.root)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Posix path of each image below its split's folder."""
        return tuple(sample.name for sample in self.samples)

    @cached_property
    def splits(self) -> Array:
        """The split of each image, (N,) of "train", "val" or "test"."""
        return np.array([sample.split for sample in self.samples], dtype="<U5")

    def counts(self) -> dict[str, int]:
        """Images per class, in the order of the classes."""
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))

    def of(self, split: str) -> Self:
        """The images of one split."""
        return self.take(np.flatnonzero(self.splits == split))

    def take(self, rows: Array | Sequence[int]) -> Self:
        """The images at `rows`, in that order."""
        return replace(self, **self._taken(np.asarray(rows, np.int64)))

    def _taken(self, rows: Array) -> dict[str, Any]:
        where = _as_slice(rows)
        return {
            "samples": tuple(self.samples[row] for row in rows),
            **{name: getattr(self, name)[where] for name in ("labels", "crops", "descriptors", "digests")},
            "features": {name: values[where] for name, values in self.features.items()},
            "logits": {name: values[where] for name, values in self.logits.items()},
            "embeddings": None if self.embeddings is None else self.embeddings[where],
            "probabilities": None if self.probabilities is None else self.probabilities[where],
        }

    def in_classes(self, classes: Sequence[str]) -> Self:
        """The images whose class is among `classes`, labelled by these; "anger" is "angry" as in targets.

        Warns of the classes that are left out. Raises UsageError where none is in common.
        """
        match = {label: _match(label, classes) for label in self.classes}
        if not any(match[label] >= 0 for label, count in self.counts().items() if count):
            raise UsageError(
                f"{self.name} has no class in common with the real images: it has "
                f"{printable(', '.join(self.classes))}, they have {printable(', '.join(classes))}; rename its folders."
            )
        places = np.array([match[label] for label in self.classes])[self.labels]
        dropped = [f"{printable(c)} ({n:,})" for c, n in self.counts().items() if n and match[c] < 0]
        if dropped:
            console.warn(
                f"{self.name} has classes that the real images lack, left out with their images: {', '.join(dropped)}."
            )
        kept = np.flatnonzero(places >= 0)
        return replace(self.take(kept), classes=tuple(classes), labels=places[kept].astype(np.int64))


@dataclass(frozen=True)
class SyntheticSet(ImageSet):
    """Synthetic images with what metadata.csv says of each; None, NaN and weight 1 where it says nothing.

    `sources` and `source_labels`: the real training image it was made from, and that one's class. `intensities` and
    `weights` (N,) float64; `scores`: gate → (N,) float64.
    """

    sources: tuple[str | None, ...] = ()
    source_labels: tuple[str | None, ...] = ()
    intensities: Array = field(default_factory=lambda: np.empty(0))
    weights: Array = field(default_factory=lambda: np.empty(0))
    scores: dict[str, Array] = field(default_factory=dict)
    generator: str | None = None

    def _taken(self, rows: Array) -> dict[str, Any]:
        return super()._taken(rows) | {
            "sources": tuple(self.sources[row] for row in rows),
            "source_labels": tuple(self.source_labels[row] for row in rows),
            "intensities": self.intensities[rows],
            "weights": self.weights[rows],
            "scores": {gate: values[rows] for gate, values in self.scores.items()},
        }


AnySet = TypeVar("AnySet", bound=ImageSet)


def _as_slice(rows: Array) -> Array | slice:
    """A slice where rows follow each other: it keeps a memory map instead of loading a copy."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _match(label: str, classes: Sequence[str]) -> int:
    """Place of a class by its exact name, else by the expression that it names; -1 where there is none."""
    if label in classes:
        return list(classes).index(label)
    canonical = [canonical_label(name) for name in classes]
    return canonical.index(canonical_label(label)) if canonical_label(label) in canonical else -1


# --- reading ----------------------------------------------------------------------------------------------------------


def read_real(src: Path | str, extractor: Extractor, embedder: FaceEmbedder | None = None) -> ImageSet:
    """Read every split of a dataset; images that cannot be read, and synthetic ones, are left out with a warning.

    Raises UsageError where `src` is no dataset or none of its images can be read, FacesynthError where the cache cannot
    be written. The cache lies in $FACESYNTH_CACHE, else in the user's cache folder.
    """
    return _read(real_only(scan(src)), extractor, embedder)


def read_synthetic(
    src: Path | str, classes: Sequence[str], extractor: Extractor, embedder: FaceEmbedder | None = None
) -> SyntheticSet:
    """Read the synthetic images of a dataset's training split, labelled by `classes`, those of the real images.

    Where the split has a metadata.csv with a column `synthetic` (an output of balance or augment), these are its rows that
    say true, else all images. Raises UsageError where there is none, or no class in common, and what `read_real` raises.
    """
    data = scan(src)
    table = synthetic_rows(data)
    samples = data.samples["train"]
    if table is not None:
        samples = [sample for sample in samples if sample.name in table]
        if not samples:
            raise UsageError(
                f"{printable(data.root)} holds no synthetic image: its metadata.csv names none that is there; give the "
                "output of balance or augment, or a folder of images without metadata.csv."
            )
    images = _read(replace(data, samples={"train": samples}), extractor, embedder)
    rows = [(table or {}).get(name, {}) for name in images.names]
    return _with_origins(images, rows).in_classes(classes)


def _read(data: Dataset, extractor: Extractor, embedder: FaceEmbedder | None) -> ImageSet:
    samples = [sample for split in data.samples.values() for sample in split]
    arrays, problems = imagecache.read_arrays(data, samples, extractor, embedder)
    for reason in list(problems.values())[:SHOWN_PROBLEMS]:
        console.warn(reason)
    if problems:
        console.warn(
            f"{len(problems):,} of {len(samples):,} images of {printable(data.root)} cannot be read: left out."
        )
    kept = tuple(sample for row, sample in enumerate(samples) if str(row) not in problems)
    if not kept:
        raise UsageError(
            f"{printable(data.root)}: none of its {len(samples):,} images can be read; give another folder."
        )
    index = {label: place for place, label in enumerate(data.classes)}
    return ImageSet(
        dataset=data,
        samples=kept,
        classes=data.classes,
        labels=np.array([index[sample.label] for sample in kept], np.int64),
        features={extractor.name: arrays["features"]},
        logits={extractor.name: arrays["logits"]},
        identity_model=embedder.name if embedder else None,
        crops=arrays["crops"],
        descriptors=arrays["descriptors"],
        digests=arrays["digests"],
        embeddings=arrays.get("embeddings"),
        unreadable=len(problems),
    )


def judged(images: AnySet, judge: Judge) -> AnySet:
    """With the judge's probabilities, by the logits that are there where its features are; None as `Judge.read` says."""
    found = judge.read(images.crops, images.classes, images.logits.get(judge.full_name))
    return replace(images, probabilities=found)


def _with_origins(images: ImageSet, rows: list[dict[str, str]]) -> SyntheticSet:
    gates = sorted({column for row in rows for column in row if column and column.endswith("_score")})
    generators = {row["generator"] for row in rows if row.get("generator")}
    return SyntheticSet(
        **{name: getattr(images, name) for name in ImageSet.__dataclass_fields__},
        sources=tuple(row.get("source") or None for row in rows),
        source_labels=tuple(row.get("source_label") or None for row in rows),
        intensities=_column(rows, "intensity"),
        weights=np.nan_to_num(_column(rows, "weight"), nan=1.0),
        scores={gate.removesuffix("_score"): _column(rows, gate) for gate in gates},
        generator=", ".join(sorted(generators)) or None,
    )


def _column(rows: list[dict[str, str]], name: str) -> Array:
    def number(row: dict[str, str]) -> float:
        text = row.get(name)
        try:
            return float(text) if text else np.nan
        except ValueError as error:
            raise UsageError(
                f"metadata.csv: {name} of {printable(row['file_name'])} is '{printable(text)}', not a number: correct it."
            ) from error

    return np.array([number(row) for row in rows], np.float64)
