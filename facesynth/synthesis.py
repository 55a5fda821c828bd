"""The worker: edits real faces into the missing expression, screens the results, and leaves a shard on disk.

A shard's images are written first and its rows file last, so that the rows file is the done-marker and the progress source
at once. Every random number comes from (run seed, class, slot, attempt), and the shard is the unit of batching: a run that is
killed and resumed, or spread over several processes, ends in the same bytes.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from facesynth import geometry, screening
from facesynth.dataset import Dataset, Sample
from facesynth.expression import Judge, load_judge
from facesynth.generators.editor import FaceEditor, load_editor
from facesynth.identity import FaceEmbedder, Mode, open_embedder
from facesynth.likeness import describe
from facesynth.output import write_atomic
from facesynth.photo import Photo, UnreadableImage, encode
from facesynth.screening import Candidates, Reference, Verdict
from facesynth.target import canonical_label

Array = npt.NDArray[np.float32]

REJECTS_KEPT = 2
"""Rejected images that a shard keeps for the report, per class and gate."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to make: number `index` of class `label`, in its `attempt`-th try, from `source`."""

    label: str
    index: int
    attempt: int
    source: Sample


@dataclass(frozen=True)
class Shard:
    """Slots that are worked on together; `index` is its number within the wave."""

    wave: int
    index: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know of a run. `folder` is the run's folder, beside the output."""

    dataset: Dataset
    folder: Path
    generator: str
    judge: str
    identity: Mode
    identity_model: str | None
    intensity: tuple[float, float]
    method: str
    device: str
    batch_size: int
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one slot. `file` is the image's place in the run's folder, if one was kept; `descriptor` its likeness."""

    label: str
    index: int
    attempt: int
    source: str
    source_label: str
    intensity: float
    reason: str | None
    scores: dict[str, float | None]
    file: str | None = None
    descriptor: str | None = None
    offset: int = -1

    @property
    def accepted(self) -> bool:
        """Whether all gates let it pass."""
        return self.reason is None


def rows_path(job: Job, shard: Shard) -> Path:
    """The shard's rows: JSON lines, written last."""
    return job.folder / f"wave-{shard.wave:02d}" / f"shard-{shard.index:05d}.jsonl"


def read_rows(path: Path) -> list[Row]:
    """The rows of a finished shard."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of_run(folder: Path) -> Iterator[Row]:
    """Every candidate of a run, accepted or not, from the run's folder; shards that cannot be read are passed over."""
    for path in sorted(folder.glob("wave-*/shard-*.jsonl")):
        with suppress(OSError, ValueError, TypeError):
            yield from read_rows(path)


def pack_descriptor(descriptor: Array) -> str:
    """A likeness descriptor as text, in half precision."""
    return base64.b85encode(descriptor.astype(np.float16).tobytes()).decode("ascii")


def unpack_descriptor(text: str) -> Array:
    """The inverse of `pack_descriptor`."""
    return np.frombuffer(base64.b85decode(text), np.float16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Source:
    """A decoded source, or the reason why there is none."""

    slot: Slot
    photo: Photo | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    """An edited photo beside its source."""

    slot: Slot
    source: Photo
    pixels: Array
    landmarks: Array | None
    source_crop: Array
    crop: Array
    intensity: float


class Worker:
    """Makes one shard after the other. Decoding and writing run in threads of their own beside the networks."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # One thread per process: the order of additions, and so the bytes, must not depend on the number of cores.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        threadpool_limits(1)
        self.judge: Judge = load_judge(job.judge, job.device)
        self.editor: FaceEditor | None = load_editor(job.generator, job.device) if "editor" in job.method else None
        embedder, _ = open_embedder(job.identity, job.identity_model, job.device)
        self.embedder: FaceEmbedder | None = embedder
        self.reference = Reference.load(job.folder / "reference")
        self._reader = ThreadPoolExecutor(1, "read")
        self._writer = ThreadPoolExecutor(1, "write")

    def __call__(self, shard: Shard) -> None:
        """Work on a shard and leave its files; raises FacesynthError when they cannot be written."""
        rows: list[Row] = []
        kept: Counter[tuple[str, str]] = Counter()
        writes: list[Future[None]] = []
        for sources in self._read_ahead(shard.slots):
            rows += [self._failure(source) for source in sources if source.photo is None]
            results = self._edit([source for source in sources if source.photo is not None])
            for result, verdict in zip(results, self._screen(results), strict=True):
                row = self._row(result, verdict)
                if self._worth_keeping(row, kept):
                    row = replace(row, file=self._file_name(shard, row, result))
                    writes.append(self._writer.submit(self._write, self.job.folder / str(row.file), result))
                rows.append(row)
        wait(writes)  # all of them: where one fails, the others must not be left half-way
        for write in writes:
            write.result()
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        write_atomic(rows_path(self.job, shard), lines.encode())

    def _read_ahead(self, slots: tuple[Slot, ...]) -> Iterator[list[_Source]]:
        """Batches of decoded sources; the next one is read while the caller works on this one."""
        size = self.job.batch_size
        batches = [slots[start : start + size] for start in range(0, len(slots), size)]
        following = self._reader.submit(self._read, batches[0])
        for index in range(len(batches)):
            current = following.result()
            if index + 1 < len(batches):
                following = self._reader.submit(self._read, batches[index + 1])
            yield current

    def _read(self, slots: tuple[Slot, ...]) -> list[_Source]:
        sources = []
        for slot in slots:
            try:
                sources.append(_Source(slot, self.job.dataset.read(slot.source)))
            except UnreadableImage as error:
                sources.append(_Source(slot, None, f"source: {error}"))
        return sources

    def _edit(self, sources: list[_Source]) -> list[_Result]:
        """Propose an edit for each source at the crop's size and apply it to the photo at its own."""
        if not sources:
            return []
        photos = [source.photo for source in sources if source.photo is not None]
        slots = [source.slot for source in sources]
        landmarks = [self.embedder.locate(photo.pixels) if self.embedder else None for photo in photos]
        frames = [
            geometry.frame_of(photo.pixels, points if geometry.may_hold_more(photo.pixels) else None)
            for photo, points in zip(photos, landmarks, strict=True)
        ]
        crops = np.stack([geometry.crop(photo.pixels, frame) for photo, frame in zip(photos, frames, strict=True)])
        draws = [self._random(slot) for slot in slots]
        intensity = np.array([rng.uniform(*self.job.intensity) for rng in draws], np.float32)
        edited = [photo.pixels for photo in photos]
        if self.editor is not None:
            flow, difference = self._propose(self.editor, slots, crops, draws, intensity)
            edited = [geometry.put_back(*parts) for parts in zip(edited, frames, flow, difference, strict=True)]
        edited = [_as_written(pixels, photo) for pixels, photo in zip(edited, photos, strict=True)]
        return [
            _Result(slot, photo, pixels, points, crop, geometry.crop(pixels, frame), float(strength))
            for slot, photo, pixels, points, crop, frame, strength in zip(
                slots, photos, edited, landmarks, crops, frames, intensity, strict=True
            )
        ]

    def _random(self, slot: Slot) -> np.random.Generator:
        # The class enters by name: its number would change when another class joins the dataset.
        return np.random.default_rng([self.job.seed, *slot.label.encode(), slot.index, slot.attempt])

    @staticmethod
    def _propose(
        editor: FaceEditor, slots: list[Slot], crops: Array, draws: list[np.random.Generator], intensity: Array
    ) -> tuple[Array, Array]:
        source = [editor.classes.index(canonical_label(slot.source.label)) for slot in slots]
        target = [editor.classes.index(canonical_label(slot.label)) for slot in slots]
        # Asked for the class that it has, a face comes back unchanged. Told that it has another, its expression grows.
        others = [int(rng.integers(1, len(editor.classes))) for rng in draws]
        source = [
            (s + other) % len(editor.classes) if s == t else s
            for s, t, other in zip(source, target, others, strict=True)
        ]
        style = np.stack([rng.uniform(-1, 1, editor.style_size) for rng in draws]).astype(np.float32)
        return editor.propose(crops, source, target, style, intensity)

    def _screen(self, results: list[_Result]) -> list[Verdict]:
        """What the gates say of the edits. Classic augmentation comes after them: it has nothing to prove."""
        if self.editor is None:
            return [Verdict(True, None, dict.fromkeys(screening.GATES)) for _ in results]
        if not results:
            return []
        candidates = Candidates(
            names=[result.slot.source.name for result in results],
            sources=[result.source.pixels for result in results],
            landmarks=[result.landmarks for result in results],
            results=[result.pixels for result in results],
            source_crops=np.stack([result.source_crop for result in results]),
            crops=np.stack([result.crop for result in results]),
            targets=[canonical_label(result.slot.label) for result in results],
        )
        return screening.screen(candidates, self.reference, self.judge, self.embedder)

    def _row(self, result: _Result, verdict: Verdict) -> Row:
        slot = result.slot
        return Row(
            slot.label,
            slot.index,
            slot.attempt,
            slot.source.name,
            slot.source.label,
            round(result.intensity, 4),
            verdict.reason,
            verdict.scores,
            descriptor=pack_descriptor(describe(result.crop[None])[0]) if verdict.accepted and self.editor else None,
            offset=slot.source.offset,
        )

    @staticmethod
    def _failure(source: _Source) -> Row:
        slot = source.slot
        named = (slot.label, slot.index, slot.attempt, slot.source.name, slot.source.label)
        return Row(*named, 0.0, source.problem, dict.fromkeys(screening.GATES), offset=slot.source.offset)

    @staticmethod
    def _worth_keeping(row: Row, kept: Counter[tuple[str, str]]) -> bool:
        if row.reason is None:
            return True
        kind = (row.label, row.reason.partition(":")[0])
        kept[kind] += 1
        return kept[kind] <= REJECTS_KEPT

    def _file_name(self, shard: Shard, row: Row, result: _Result) -> str:
        suffix = Path(result.slot.source.name).suffix
        folder = "accepted" if row.accepted else "rejected"
        return f"wave-{shard.wave:02d}/{folder}/{row.label}/{row.index:06d}-{row.attempt:02d}{suffix}"

    def _write(self, path: Path, result: _Result) -> None:
        slot = result.slot
        provenance = {
            "source": slot.source.name,
            "sourceLabel": slot.source.label,
            "label": slot.label,
            "generator": generator_name(self.editor, self.job.method),
            "seed": seed_text(self.job.seed, slot.index, slot.attempt),
        }
        photo = Photo(result.pixels, result.source.encoding)
        if "classic" in self.job.method:
            from facesynth.classic import augment_photo  # late: torchvision takes 100 MB of every process

            photo = augment_photo(photo, self._random(slot).spawn(1)[0])
        write_atomic(path, encode(photo.pixels, photo.encoding, provenance))


def generator_name(editor: FaceEditor | None, method: str) -> str:
    """What the manifest says an image was made by: the weights' name and digest, and the method where it is another."""
    names = [f"{editor.name}@{editor.digest}"] if editor is not None else []
    return "+".join([*names, *(["classic"] if "classic" in method else [])])


def seed_text(seed: int, index: int, attempt: int) -> str:
    """The numbers from which, with the class, an image's random choices come."""
    return f"{seed}-{index}-{attempt}"


def _as_written(pixels: Array, photo: Photo) -> Array:
    """Round to the depth of the file, so that the gates see what a reader of the file will see (up to lossy coding)."""
    depth = 65535 if photo.encoding.mode.startswith("I") else 255
    return np.round(np.clip(pixels, 0, 1) * depth).astype(np.float32) / np.float32(depth)


@dataclass(frozen=True)
class WorkerFactory:
    """Makes a worker in whichever process calls it; picklable."""

    job: Job

    def __call__(self) -> Worker:
        """Load the networks."""
        return Worker(self.job)
