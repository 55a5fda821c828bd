"""Each image of a dataset read once: what metrics need of it as arrays, kept in a cache by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from facesynth import console, geometry, likeness
from facesynth.console import FacesynthError, printable
from facesynth.dataset import Dataset, Sample, UnreadableImage, to_gray
from facesynth.execute import ahead
from facesynth.extractors import Extractor
from facesynth.identity import FaceEmbedder

Array = NDArray[Any]
Arrays = dict[str, Array]

BATCH = 64
AHEAD = 3
"""Batches that are read ahead of the extractor."""

_FORMAT = 1
"""Of a cache entry: to be raised when the arrays get another meaning."""


def cache_folder() -> Path:
    """Where what was read is kept: $FACESYNTH_CACHE, else facesynth/evaluate in the user's cache folder."""
    if given := os.environ.get("FACESYNTH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "facesynth" / "evaluate"


def read_arrays(
    data: Dataset, samples: list[Sample], extractor: Extractor, embedder: FaceEmbedder | None
) -> tuple[Arrays, dict[str, str]]:
    """Arrays over the readable samples, in their order, and why the others could not be read, by their number.

    The arrays are crops, descriptors, digests, features, logits and, with an embedder, embeddings: see `ImageSet`. There
    are none where no sample can be read. Raises FacesynthError where the cache cannot be written.
    """
    folder = cache_folder() / "images" / _key(data, samples, extractor, embedder)
    return _open(folder) or _fill(folder, data, samples, extractor, embedder)


def _key(data: Dataset, samples: list[Sample], extractor: Extractor, embedder: FaceEmbedder | None) -> str:
    """Digest of what the arrays depend on: the images' bytes in their order, and the networks."""
    digest = hashlib.sha256(f"{_FORMAT} {extractor.name} {_behaviour(embedder)}".encode())
    if data.form == "csv":
        with data.root.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for sample in samples:
        digest.update(f"\n{sample.split}/{sample.name} {sample.offset} ".encode("utf-8", "surrogateescape"))
        if data.form == "folder":
            digest.update(_file_digest(data.path(sample)))
    return digest.hexdigest()[:32]


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        return f"unreadable: {error.strerror}".encode()


def _behaviour(embedder: FaceEmbedder | None) -> str:
    """What tells an embedder's weights apart, wherever they come from: what it makes of one picture."""
    if embedder is None:
        return "none"
    picture: Array = np.add.outer(np.arange(48), 2 * np.arange(48))[:, :, None] % 48 / 48
    embedding = embedder.embed([picture.astype(np.float32)], [None])
    return f"{embedder.name} {hashlib.sha256(embedding.tobytes()).hexdigest()}"


def _open(folder: Path) -> tuple[Arrays, dict[str, str]] | None:
    """Arrays and problems of a cache entry; None where it is missing or broken."""
    try:
        problems = json.loads((folder / "problems.json").read_text(encoding="utf-8"))
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        count = int(arrays.pop("count"))
        if min(map(len, arrays.values())) < count or not arrays.keys() >= {"crops", "features", "logits", "digests"}:
            return None
        return {name: values[:count] for name, values in arrays.items()}, problems
    except (OSError, ValueError, KeyError):
        return None


def _fill(
    folder: Path, data: Dataset, samples: list[Sample], extractor: Extractor, embedder: FaceEmbedder | None
) -> tuple[Arrays, dict[str, str]]:
    """Read all samples into a new cache entry, which takes its name when it is whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            problems = _stream(part, data, samples, extractor, embedder)
            (part / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise FacesynthError(
            f"{printable(folder)}: the cache cannot be written ({error.strerror}); free some space there, or set "
            "FACESYNTH_CACHE to another folder."
        ) from error
    return _open(folder) or ({}, problems)


def _stream(
    part: Path, data: Dataset, samples: list[Sample], extractor: Extractor, embedder: FaceEmbedder | None
) -> dict[str, str]:
    """Write the arrays of all samples, batch by batch; returns why samples could not be read, by their number."""
    problems: dict[str, str] = {}
    columns = _Columns(part, len(samples))
    with console.progress(f"reading {printable(data.root.name)}", len(samples)) as bar:
        for batch in _batches(data, samples, embedder):
            problems |= batch.problems
            if batch.photos:
                columns.append(batch.arrays | _extract(extractor, batch))
            bar.advance(len(batch.photos) + len(batch.problems))
    columns.close()
    return problems


class _Columns:
    """Arrays on disk that grow together, batch by batch, to at most `capacity` rows."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self._folder, self._capacity, self._count = folder, capacity, 0
        self._columns: dict[str, np.memmap[Any, Any]] = {}

    def append(self, batch: Arrays) -> None:
        """Rows of every column: the same columns each time."""
        for name, values in batch.items():
            if name not in self._columns:
                shape = (self._capacity, *values.shape[1:])
                path = self._folder / f"{name}.npy"
                self._columns[name] = open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
            self._columns[name][self._count : self._count + len(values)] = values
        self._count += len(next(iter(batch.values())))

    def close(self) -> None:
        """Leave the number of rows beside the columns."""
        for column in self._columns.values():
            column.flush()
        np.save(self._folder / "count.npy", self._count)


@dataclass
class _Batch:
    """Consecutive readable images: photos (H, W, C) and their crops in [0, 1], and what is kept of them."""

    photos: list[Array]
    crops: Array
    arrays: Arrays
    problems: dict[str, str]


def _extract(extractor: Extractor, batch: _Batch) -> Arrays:
    features, logits = extractor(batch.photos, batch.crops)
    return {"features": features, "logits": logits}


def _batches(data: Dataset, samples: list[Sample], embedder: FaceEmbedder | None) -> Iterator[_Batch]:
    """Batches in order, read a little ahead: decoding and embedding run beside the extractor, memory stays flat."""
    parts = [range(start, min(start + BATCH, len(samples))) for start in range(0, len(samples), BATCH)]
    return ahead(lambda rows: _read_batch(data, samples, rows, embedder), parts, threads=2, depth=AHEAD)


def _read_batch(data: Dataset, samples: list[Sample], rows: range, embedder: FaceEmbedder | None) -> _Batch:
    photos: list[Array] = []
    problems: dict[str, str] = {}
    for row in rows:
        try:
            photos.append(data.read(samples[row]).pixels)
        except UnreadableImage as error:
            problems[str(row)] = str(error)
    if not photos:
        return _Batch([], np.empty((0, geometry.CROP, geometry.CROP)), {}, problems)
    landmarks = [embedder.locate(p) if embedder and geometry.may_hold_more(p) else None for p in photos]
    crops = np.stack([geometry.crop(p, geometry.frame_of(p, m)) for p, m in zip(photos, landmarks, strict=True)])
    whole = np.stack([geometry.crop(photo, geometry.frame_of(photo, None)) for photo in photos])
    arrays: Arrays = {
        "crops": np.round(crops * 255).astype(np.uint8),
        "descriptors": likeness.describe(whole).astype(np.float16),
        "digests": np.array([_pixel_digest(photo) for photo in photos], "S16"),
    }
    if embedder:
        arrays["embeddings"] = embedder.embed(photos, landmarks)
    return _Batch(photos, crops, arrays, problems)


def _pixel_digest(photo: Array) -> str:
    gray = (np.clip(to_gray(photo), 0, 1) * 255 + 0.5).astype(np.uint8)
    return hashlib.sha256(f"{gray.shape}".encode() + gray.tobytes()).hexdigest()[:16]
