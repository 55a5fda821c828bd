"""The worker: edits real faces into the missing expression or draws new ones, screens them, and leaves a shard on disk.

A shard's images are written first and its rows file last, so that the rows file is the done-marker and the progress source
at once. Every random number comes from (run seed, class, slot, attempt), and the shard is the unit of batching: a run that is
killed and resumed, or spread over several processes, ends in the same bytes.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from facesynth import geometry, screening, weights
from facesynth.console import UsageError, printable
from facesynth.dataset import Dataset, Sample
from facesynth.expression import Judge, load_judge
from facesynth.generators.diffusion import DiffusionEditor
from facesynth.generators.drawer import FaceDrawer
from facesynth.generators.editor import FlowEditor
from facesynth.generators.img2img import INDEX, Img2ImgEditor, Pipeline
from facesynth.generators.proposal import Edits, FaceEditor
from facesynth.generators.translator import TranslationEditor
from facesynth.identity import FaceEmbedder, Mode, cut_face, open_embedder
from facesynth.likeness import describe
from facesynth.output import write_atomic
from facesynth.photo import Encoding, Photo, UnreadableImage, encode, in_form_of
from facesynth.screening import Candidates, Reference, Source, Verdict
from facesynth.target import canonical_label

Array = npt.NDArray[np.float32]
FaceGenerator = FaceEditor | FaceDrawer

GENTLE_TRIES = 3
"""Tries for which the edit of a photo takes the editor's `photo_intensity`; what the gates let pass of it looks best."""

REJECTS_KEPT = 2
"""Rejected images that a shard keeps for the report, per class and gate."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to make: number `index` of class `label`, in its `attempt`-th try, from `source` unless it is drawn."""

    label: str
    index: int
    attempt: int
    source: Sample | None


@dataclass(frozen=True)
class Shard:
    """Slots that are worked on together; `index` is its number within the wave."""

    wave: int
    index: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know of a run. `folder` is the run's folder, beside the output.

    `drawer` draws the people whose faces are edited, if they are not the dataset's; `pipeline` is the image-to-image pipeline
    that takes the place of the `generator`'s weights, if one does. `pattern` is the real image whose form drawn faces take;
    `intensity` is that of edits, None for the editor's own; `attributes` (name → value) are asked for beside the class.
    """

    dataset: Dataset
    folder: Path
    generator: str
    drawer: str | None
    pipeline: Pipeline | None
    judge: str
    identity: Mode
    identity_model: str | None
    pattern: Sample
    intensity: tuple[float, float] | None
    attributes: dict[str, str]
    method: str
    device: str
    batch_size: int
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one slot. `file` is the image's place in the run's folder, if one was kept; `descriptor` its likeness.

    `source` and its label are None for a drawn face, `intensity` for one that was not edited.
    """

    label: str
    index: int
    attempt: int
    source: str | None
    source_label: str | None
    intensity: float | None
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


def load_generator(
    spec: str, device: str = "cpu", attributes: Mapping[str, str] | None = None, pipeline: Pipeline | None = None
) -> FaceGenerator:
    """Load what makes faces: the pipeline, or else weights by built-in name, path or hf://, whichever way they make them.

    `attributes` are what a translator is asked for beside the class. Raises WeightsError if the weights make no faces, and
    UsageError if they know no such attributes.
    """
    if pipeline:
        return Img2ImgEditor(pipeline, device)
    if (Path(spec) / INDEX).is_file():
        raise weights.WeightsError(
            f"{spec}: is an image-to-image pipeline, which needs prompts; add --preset img2img, or a preset of your own."
        )
    loaded = weights.load(spec)
    if loaded.kind == "translator":
        return TranslationEditor(loaded, device, attributes)
    if attributes:
        raise UsageError(
            f"--attributes: the generator {printable(loaded.name)} knows no attributes; leave it out, or give weights "
            "of a translator (presets stargan-...) as --generator."
        )
    if loaded.kind == "editor":
        return FlowEditor(loaded, device)
    if loaded.kind == "denoiser":
        return DiffusionEditor(loaded, device)
    if loaded.kind == "generator":
        return FaceDrawer(loaded, device)
    raise weights.WeightsError(
        f"{loaded.path}: holds a {loaded.kind}, but faces are made by weights of the kind editor, translator or denoiser (edit "
        "real faces) "
        "or generator (draws new ones); give such weights as --generator."
    )


def as_editor(generator: FaceGenerator | None) -> FaceEditor | None:
    """The generator, if it edits faces."""
    return None if isinstance(generator, FaceDrawer) else generator


@dataclass(frozen=True, slots=True)
class _Start:
    """A slot with the photo to start from, the decoded source or the pattern of a drawn face, or why there is none."""

    slot: Slot
    photo: Photo | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    """A face as it will be written, and the source beside it if it was edited from one."""

    slot: Slot
    photo: Photo
    crop: Array
    source: Source | None = None
    intensity: float | None = None


class Worker:
    """Makes one shard after the other. Decoding and writing run in threads of their own beside the networks."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # One thread per process: the order of additions, and so the bytes, must not depend on the number of cores.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        threadpool_limits(1)
        self.judge: Judge = load_judge(job.judge, job.device)
        made_by = (job.generator, job.device, job.attributes, job.pipeline)
        self.generator = load_generator(*made_by) if "editor" in job.method else None
        self.drawer = FaceDrawer(weights.load(job.drawer, "generator"), job.device) if job.drawer else None
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
        for batch in self._read_ahead(shard.slots):
            rows += [
                _row(start.slot, start.problem, dict.fromkeys(screening.GATES)) for start in batch if not start.photo
            ]
            results = self._make([(start.slot, start.photo) for start in batch if start.photo])
            for result, verdict in zip(results, self._screen(results), strict=True):
                row = self._judged(result, verdict)
                if self._worth_keeping(row, kept):
                    row = replace(row, file=self._file_name(shard, row, result))
                    writes.append(self._writer.submit(self._write, self.job.folder / str(row.file), result))
                rows.append(row)
        wait(writes)  # all of them: where one fails, the others must not be left half-way
        for write in writes:
            write.result()
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        write_atomic(rows_path(self.job, shard), lines.encode())

    def _read_ahead(self, slots: tuple[Slot, ...]) -> Iterator[list[_Start]]:
        """Batches of what to start from; the next one is read while the caller works on this one."""
        size = self.job.batch_size
        batches = [slots[start : start + size] for start in range(0, len(slots), size)]
        following = self._reader.submit(self._read, batches[0])
        for index in range(len(batches)):
            current = following.result()
            if index + 1 < len(batches):
                following = self._reader.submit(self._read, batches[index + 1])
            yield current

    def _read(self, slots: tuple[Slot, ...]) -> list[_Start]:
        starts = []
        for slot in slots:
            if slot.source is None:
                starts.append(_Start(slot, self._pattern))
                continue
            try:
                starts.append(_Start(slot, self.job.dataset.read(slot.source)))
            except UnreadableImage as error:
                starts.append(_Start(slot, None, f"source: {error}"))
        return starts

    @cached_property
    def _pattern(self) -> Photo:
        return self.job.dataset.read(self.job.pattern)

    def _make(self, batch: list[tuple[Slot, Photo]]) -> list[_Result]:
        if not batch:
            return []
        slots, photos = [slot for slot, _ in batch], [photo for _, photo in batch]
        draws = [self._random(slot) for slot in slots]
        if isinstance(self.generator, FaceDrawer):
            # One that is not conditional draws any class, whatever it is asked for: the expression gate sorts its faces.
            wanted = [canonical_label(slot.label) if self.generator.conditional else None for slot in slots]
            drawn = _draw(self.generator, wanted, draws, photos)
            return [
                _Result(slot, photo, cut_face(photo.pixels, self.embedder))
                for slot, photo in zip(slots, drawn, strict=True)
            ]
        labels = [slot.source.label if slot.source else "" for slot in slots]
        if self.drawer:
            others = [rng.spawn(1)[0] for rng in draws]
            labels = [_another_class(self.drawer, *pair) for pair in zip(slots, others, strict=True)]
            photos = _draw(self.drawer, labels, others, photos)
        return self._edit(slots, photos, labels, draws)

    def _edit(
        self, slots: list[Slot], photos: list[Photo], labels: list[str], draws: list[np.random.Generator]
    ) -> list[_Result]:
        """Propose an edit of each photo at the crop's size and apply it at the photo's own; `labels` are its classes."""
        landmarks = [self.embedder.locate(photo.pixels) if self.embedder else None for photo in photos]
        found = [
            (photo.pixels, points if geometry.may_hold_more(photo.pixels) else None)
            for photo, points in zip(photos, landmarks, strict=True)
        ]
        frames = [geometry.frame_of(*face) for face in found]
        crops = np.stack([geometry.crop(photo.pixels, frame) for photo, frame in zip(photos, frames, strict=True)])
        editor = as_editor(self.generator)
        ranges = [self._intensities(editor, slot, photo) for slot, photo in zip(slots, photos, strict=True)]
        intensity = np.array([rng.uniform(*ends) for rng, ends in zip(draws, ranges, strict=True)], np.float32)
        edited = [photo.pixels for photo in photos]
        if editor:
            views = [geometry.frame_of(*face, editor.view) for face in found]
            seen = crops if _reads_crops(editor) else _cut_for(editor, edited, views)
            edits = self._propose(editor, labels, [slot.label for slot in slots], seen, draws, intensity)
            flows = repeat(None) if edits.flow is None else edits.flow
            edited = [geometry.put_back(*parts) for parts in zip(edited, views, flows, edits.difference)]  # noqa: B905 (flows may repeat for ever)
        written = [_as_written(pixels, photo.encoding) for pixels, photo in zip(edited, photos, strict=True)]
        sources = [
            Source(slot.source.name, photo.pixels, points, crop) if slot.source else None
            for slot, photo, points, crop in zip(slots, photos, landmarks, crops, strict=True)
        ]
        return [
            _Result(slot, photo, geometry.crop(photo.pixels, frame), source, round(float(strength), 4))
            for slot, photo, frame, source, strength in zip(slots, written, frames, sources, intensity, strict=True)
        ]

    def _intensities(self, editor: FaceEditor | None, slot: Slot, photo: Photo) -> tuple[float, float]:
        """The ends of the range that the intensity of an edit is drawn from."""
        if editor is None:
            return 1.0, 1.0
        gently = slot.attempt < GENTLE_TRIES and geometry.may_hold_more(photo.pixels)
        return self.job.intensity or (editor.photo_intensity if gently else editor.intensity)

    def _random(self, slot: Slot) -> np.random.Generator:
        # The class enters by name: its number would change when another class joins the dataset.
        return np.random.default_rng([self.job.seed, *slot.label.encode(), slot.index, slot.attempt])

    @staticmethod
    def _propose(
        editor: FaceEditor,
        labels: list[str],
        wanted: list[str],
        crops: Array,
        draws: list[np.random.Generator],
        intensity: Array,
    ) -> Edits:
        if not editor.classes:  # it changes attributes alone
            none = [0] * len(crops)
            return editor.propose(crops, none, none, draws, intensity)
        source, target = ([editor.classes.index(canonical_label(name)) for name in names] for names in (labels, wanted))
        # Asked for the class that it has, a face comes back unchanged. Told that it has another, its expression grows.
        others = [int(rng.integers(1, len(editor.classes))) for rng in draws]
        source = [
            (s + other) % len(editor.classes) if s == t else s
            for s, t, other in zip(source, target, others, strict=True)
        ]
        return editor.propose(crops, source, target, draws, intensity)

    def _screen(self, results: list[_Result]) -> list[Verdict]:
        """What the gates say of generated faces. Classic augmentation comes after them: it has nothing to prove."""
        if self.generator is None:
            return [Verdict(True, None, dict.fromkeys(screening.GATES)) for _ in results]
        if not results:
            return []
        candidates = Candidates(
            results=[result.photo.pixels for result in results],
            crops=np.stack([result.crop for result in results]),
            targets=[canonical_label(result.slot.label) for result in results],
            sources=[result.source for result in results if result.source],
        )
        return screening.screen(candidates, self.reference, self.judge, self.embedder)

    def _judged(self, result: _Result, verdict: Verdict) -> Row:
        row = _row(result.slot, verdict.reason, verdict.scores, result.intensity)
        if verdict.accepted and self.generator is not None:
            return replace(row, descriptor=pack_descriptor(describe(result.crop[None])[0]))
        return row

    @staticmethod
    def _worth_keeping(row: Row, kept: Counter[tuple[str, str]]) -> bool:
        if row.reason is None:
            return True
        kind = (row.label, row.reason.partition(":")[0])
        kept[kind] += 1
        return kept[kind] <= REJECTS_KEPT

    def _file_name(self, shard: Shard, row: Row, result: _Result) -> str:
        suffix = Path((result.slot.source or self.job.pattern).name).suffix
        folder = "accepted" if row.accepted else "rejected"
        return f"wave-{shard.wave:02d}/{folder}/{row.label}/{row.index:06d}-{row.attempt:02d}{suffix}"

    def _write(self, path: Path, result: _Result) -> None:
        slot, photo = result.slot, result.photo
        origin = {"source": slot.source.name, "sourceLabel": slot.source.label} if slot.source else {}
        provenance = origin | {
            "label": slot.label,
            "generator": generator_name(self.generator, self.job.method, self.drawer),
            "seed": seed_text(self.job.seed, slot.index, slot.attempt),
        }
        if "classic" in self.job.method:
            from facesynth.classic import augment_photo  # late: torchvision takes 100 MB of every process

            photo = augment_photo(photo, self._random(slot).spawn(1)[0])
        write_atomic(path, encode(photo.pixels, photo.encoding, provenance))


def _draw(
    drawer: FaceDrawer, classes: Sequence[str | None], draws: list[np.random.Generator], patterns: list[Photo]
) -> list[Photo]:
    """New faces of these classes (None: whichever), each from its own random numbers and in the form of its pattern."""
    noise = np.stack([rng.standard_normal(drawer.latent_size, np.float32) for rng in draws])
    target = [0 if name is None else drawer.classes.index(name) for name in classes]
    formed = [in_form_of(*pair) for pair in zip(patterns, drawer.draw(target, noise), strict=True)]
    return [_as_written(photo.pixels, photo.encoding) for photo in formed]


def _another_class(drawer: FaceDrawer, slot: Slot, rng: np.random.Generator) -> str:
    """A class that a face may have before it is edited into the slot's."""
    return str(rng.choice([name for name in drawer.classes if name != canonical_label(slot.label)]))


def _reads_crops(editor: FaceEditor) -> bool:
    """Whether an editor reads the same crops as the judge."""
    return (editor.size, editor.channels, editor.view) == (geometry.CROP, 1, "tight")


def _cut_for(editor: FaceEditor, photos: list[Array], frames: list[geometry.Frame]) -> Array:
    colour = editor.channels == 3
    return np.stack([geometry.crop(*pair, editor.size, colour) for pair in zip(photos, frames, strict=True)])


def _row(slot: Slot, reason: str | None, scores: dict[str, float | None], intensity: float | None = None) -> Row:
    source = slot.source
    return Row(
        slot.label,
        slot.index,
        slot.attempt,
        source.name if source else None,
        source.label if source else None,
        intensity,
        reason,
        scores,
        offset=source.offset if source else -1,
    )


def generator_name(generator: FaceGenerator | None, method: str, drawer: FaceDrawer | None = None) -> str:
    """What the manifest says an image was made by: names and digests of the weights, and the method where it is another."""
    names = [f"{made_by.name}@{made_by.digest}" for made_by in (drawer, generator) if made_by is not None]
    return "+".join([*names, *(["classic"] if "classic" in method else [])])


def seed_text(seed: int, index: int, attempt: int) -> str:
    """The numbers from which, with the class, an image's random choices come."""
    return f"{seed}-{index}-{attempt}"


def _as_written(pixels: Array, encoding: Encoding) -> Photo:
    """Round to the depth of the file, so that the gates see what a reader of the file will see (up to lossy coding)."""
    depth = 65535 if encoding.mode.startswith("I") else 255
    return Photo(np.round(np.clip(pixels, 0, 1) * depth).astype(np.float32) / np.float32(depth), encoding)


@dataclass(frozen=True)
class WorkerFactory:
    """Makes a worker in whichever process calls it; picklable."""

    job: Job

    def __call__(self) -> Worker:
        """Load the networks."""
        return Worker(self.job)
