"""What `balance` and `augment` share: wanted slots → waves of shards → screened images in the output, with their rows.

A wave gives every open slot one source, or nothing but an attempt's number where faces are drawn from noise. What the
gates turn down stays open and is tried anew in the next wave; since a wave depends on nothing but the waves before it, the
whole run can be killed anywhere, resumed, and spread over processes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from facesynth import calibration, console, execute
from facesynth.console import FacesynthError, printable
from facesynth.dataset import Dataset, Sample
from facesynth.identity import FaceEmbedder, cut_face
from facesynth.likeness import SIDE
from facesynth.output import write_atomic
from facesynth.photo import UnreadableImage
from facesynth.screening import GATES, Reference, drop_mutual_copies
from facesynth.synthesis import Job, Row, Shard, Slot, WorkerFactory, read_rows, rows_path, unpack_descriptor

BATCHES_PER_SHARD = 4
READ_AHEAD = 32
"""Photos that are decoded ahead of the calibration of the gates."""

COPY = "novelty: copy of another result"
NAMED = {
    "novelty: copy of ": "novelty: copy of a real image",
    "identity: looks like ": "identity: looks like a real person",
    "source: ": "source: unreadable",
}
"""How reasons that name a file begin, and how they are told when they are counted."""
Open = tuple[str, int]
"""A slot that still wants an image: class and number."""

Assign = Callable[[list[Open], int], list[Slot]]
"""Gives each open slot a source for the attempt with this number."""


def without_sources(open_slots: list[Open], attempt: int) -> list[Slot]:
    """The `Assign` where faces are drawn: a slot's attempt has noise of its own, and no source."""
    return [Slot(label, index, attempt, None) for label, index in open_slots]


@dataclass
class Tally:
    """What happened so far: accepted rows by slot, rejections, and the scores of every gate for the report."""

    accepted: dict[Open, Row] = field(default_factory=dict)
    rejections: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    scores: dict[tuple[str, bool], list[float]] = field(default_factory=lambda: defaultdict(list))
    rejected: list[Row] = field(default_factory=list)
    tried: int = 0

    def add(self, row: Row) -> None:
        """Count a candidate, under the first gate that turned it down."""
        self.tried += 1
        gate = (row.reason or "").partition(":")[0]
        for name, score in row.scores.items():
            if score is not None and (row.accepted or name == gate):
                self.scores[name, row.accepted].append(score)
        if row.reason is None:
            self.accepted[row.label, row.index] = row
            return
        self.rejections[row.label][_without_name(row.reason)] += 1
        if row.file:
            self.rejected.append(row)

    def by_gate(self) -> dict[str, int]:
        """Rejections per gate."""
        total: Counter[str] = Counter()
        for reasons in self.rejections.values():
            for reason, count in reasons.items():
                total[reason.partition(":")[0]] += count
        return dict(total)


def _without_name(reason: str) -> str:
    """Reasons that name a file are counted as one."""
    for start, told in NAMED.items():
        if reason.startswith(start) and reason != COPY:
            return told
    return reason


def calibrate(
    dataset: Dataset, folder: Path, embedder: FaceEmbedder | None, seed: int, everyone: bool = False
) -> tuple[Dataset, Reference]:
    """Read every training image once: calibrate the gates, and leave out the images that cannot be read, with a warning.

    `everyone` keeps the person in each image, for faces that must be no real person's.
    Done once per run; a resumed run finds the outcome in its folder.
    """
    listing = folder / "unreadable.json"
    if not (listing.exists() and (folder / "reference").exists()):
        problems: dict[str, str] = {}
        samples = dataset.samples["train"]
        faces = read_faces(dataset, samples, embedder, problems)
        calibration.calibrate(faces, len(samples), folder / "reference", embedder, seed, everyone)
        write_atomic(listing, json.dumps(problems, indent=1).encode())
    problems = json.loads(listing.read_text(encoding="utf-8"))
    for reason in list(problems.values())[:5]:
        console.warn(reason)
    if problems:
        console.warn(f"{len(problems)} of the training images cannot be read; they are left out of the output.")
        kept = [sample for sample in dataset.samples["train"] if sample.name not in problems]
        dataset = replace(dataset, samples=dataset.samples | {"train": kept})
    return dataset, Reference.load(folder / "reference")


def read_faces(
    dataset: Dataset,
    samples: list[Sample],
    embedder: FaceEmbedder | None,
    problems: dict[str, str],
    purpose: str = "reading",
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, face crop and photo of each readable sample, decoded a little ahead; why others are not goes to `problems`."""
    with console.progress(purpose, len(samples)) as bar:
        read = execute.ahead(partial(_try_read, dataset), samples, threads=1, depth=READ_AHEAD)
        for sample, outcome in zip(samples, read, strict=True):
            bar.advance()
            if isinstance(outcome, UnreadableImage):
                problems[sample.name] = str(outcome)
                continue
            yield sample.name, cut_face(outcome, embedder), outcome


def _try_read(dataset: Dataset, sample: Sample) -> np.ndarray | UnreadableImage:
    try:
        return dataset.read(sample).pixels
    except UnreadableImage as error:
        return error


def run_waves(
    job: Job, wanted: dict[str, int], assign: Assign, workers: int, max_attempts: int, land: Callable[[Row], None]
) -> Tally:
    """Fill the wanted slots (class → how many), wave after wave; `land` is called for each accepted image after its wave.

    Raises FacesynthError, after the wave's other shards are done, when a shard failed.
    """
    tally, novel = Tally(), _Novel(job)
    open_slots = [(label, index) for label, count in wanted.items() for index in range(count)]
    with console.progress("generating", len(open_slots)) as bar, execute.Engine(WorkerFactory(job), workers) as engine:
        for wave in range(max_attempts):
            if not open_slots:
                break
            rows = _run_shards(job, _shards(job, wave, assign(open_slots, wave)), engine, bar, tally)
            rows = novel.screen(rows)
            for row in rows:
                tally.add(row)
                if row.accepted:
                    land(row)
            open_slots = [slot for slot in open_slots if slot not in tally.accepted]
            bar.advance(len(tally.accepted) - bar.completed)  # near-copies of one another are found out last
            bar.describe(_detail(_seen(tally)))
    return tally


class _Novel:
    """Turns down results that are near-copies of one another, over all waves: what a single shard cannot see."""

    def __init__(self, job: Job) -> None:
        self._folder = job.folder
        self._threshold = Reference.load(job.folder / "reference").thresholds["novelty"]
        self._descriptors = np.zeros((0, SIDE**2), np.float32)

    def screen(self, rows: list[Row]) -> list[Row]:
        """The rows, without descriptors; of near-copies the first stays accepted."""
        fresh = [row for row in rows if row.descriptor]
        described = [unpack_descriptor(str(row.descriptor)) for row in fresh]
        known = len(self._descriptors)
        everything = np.concatenate([self._descriptors, *(d[None] for d in described)])
        keep = drop_mutual_copies(everything, self._threshold, known)
        self._descriptors = everything[keep]
        copies = {(row.label, row.index) for row, kept in zip(fresh, keep[known:], strict=True) if not kept}
        return [self._judged(row, (row.label, row.index) in copies) for row in rows]

    def _judged(self, row: Row, copy: bool) -> Row:
        if not copy:
            return replace(row, descriptor=None)
        (self._folder / str(row.file)).unlink(missing_ok=True)
        return replace(row, descriptor=None, reason=COPY, file=None)


def _shards(job: Job, wave: int, slots: list[Slot]) -> list[Shard]:
    size = BATCHES_PER_SHARD * job.batch_size
    return [Shard(wave, k, tuple(slots[k * size : (k + 1) * size])) for k in range(-(-len(slots) // size))]


def _run_shards(
    job: Job, shards: list[Shard], engine: execute.Engine[Shard], bar: console.Progress, tally: Tally
) -> list[Row]:
    """Rows of all shards of a wave, in order; those that an earlier run finished are read, not made again."""
    finished = {shard.index: read_rows(path) for shard in shards if (path := rows_path(job, shard)).exists()}
    todo = [shard for shard in shards if shard.index not in finished]
    bar.count_earlier(sum(row.accepted for rows in finished.values() for row in rows))
    errors: list[str] = []
    seen = _seen(tally)
    for outcome in engine.run(todo):
        if outcome.error:
            errors.append(outcome.error)
            continue
        rows = finished[outcome.shard.index] = read_rows(rows_path(job, outcome.shard))
        seen.update((row.reason or "accepted").partition(":")[0] for row in rows)
        bar.advance(sum(row.accepted for row in rows))
        bar.describe(_detail(seen))
    if errors:
        raise FacesynthError(
            f"{errors[0]} ({len(errors)} of {len(shards)} shards failed; the others are kept: go on with --on-existing resume)"
        )
    return [row for index in sorted(finished) for row in finished[index]]


def _seen(tally: Tally) -> Counter[str]:
    return Counter(tally.by_gate()) + Counter({"accepted": len(tally.accepted)})


def _detail(seen: Counter[str]) -> str:
    """Such as `accepted 71%  rejected: expression 19% · identity 7%`."""
    total = max(1, seen.total())
    parts = [f"{gate} {seen[gate] / total:.0%}" for gate in (*GATES, "source") if seen[gate]]
    return f"accepted {seen['accepted'] / total:.0%}" + (f"  rejected: {' · '.join(parts)}" if parts else "")


def copy_real(dataset: Dataset, out: Path, link: bool) -> None:
    """Copy (or hard-link) every split into the output; files that an earlier run put there stay."""
    samples = [(split, sample) for split, listed in dataset.samples.items() for sample in listed]
    with console.progress("copying", len(samples)) as bar, ThreadPoolExecutor(2) as pool:

        def put(entry: tuple[str, Sample]) -> None:
            split, sample = entry
            destination = out / dataset.split_folders[split] / sample.name
            if not destination.exists():
                dataset.copy(sample, destination, link)

        for start in range(0, len(samples), 256):
            part = samples[start : start + 256]
            list(pool.map(put, part))
            bar.advance(len(part))


def land(job: Job, final: Path, row: Row) -> None:
    """Move an accepted image from the run's folder to its final name; done already counts as done."""
    staged = job.folder / str(row.file)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(final)
    except FileNotFoundError:
        if not final.exists():
            raise FacesynthError(
                f"{printable(staged)} is gone: something else changed the run's folder; start anew with --on-existing overwrite."
            ) from None
    except OSError as error:
        raise FacesynthError(
            f"cannot write {printable(final)} ({error.strerror}): mend that and go on with --on-existing resume."
        ) from error
