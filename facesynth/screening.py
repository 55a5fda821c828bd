"""The gates: which candidates are good enough to land, with a score and a reason each.

Every threshold comes from the real training images: `calibration` measures them once and leaves a `Reference` on disk,
which worker processes map into memory. No torch here: the judge and the embedder are passed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from facesynth.console import FacesynthError, UsageError, did_you_mean
from facesynth.identity import FaceEmbedder
from facesynth.likeness import correlations, describe, registered_correlation
from facesynth.quality import FAULTS, TOLERANCES, faults

Array = NDArray[Any]

GATES = ("quality", "expression", "novelty", "identity")
"""In the order of their cost; a candidate that one rejects is not shown to the next."""

CHUNK = 8192
"""Rows of descriptors that are compared at a time: what a search holds in memory, whatever the size of the dataset."""


class Judge(Protocol):
    """Reads expressions; `thresholds` has, per class, the lower quartile of its p(class) on real held-out faces."""

    classes: list[str]
    thresholds: dict[str, float]

    def predict(self, gray: Array) -> Array:
        """Gray faces (N, 48, 48) float32 in [0, 1] → calibrated probabilities (N, classes)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gates said of one candidate.

    `reason` is None when accepted, else "gate: cause". `scores` has a value per gate, None where it was not measured:
    quality = the smallest rank among real images, 0–1; expression = p(target), 0–1; novelty = 1 − the correlation with
    the most similar image that it must not copy, 0–2; identity = cosine between source and result, or, for a face that was
    drawn, to the most similar real face, −1–1.
    """

    accepted: bool
    reason: str | None
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Source:
    """The real image that a result was edited from: photo (H, W, C), its five points or None, and crop (48, 48)."""

    name: str
    photo: Array
    landmarks: Array | None
    crop: Array


@dataclass(frozen=True, slots=True)
class Candidates:
    """A batch of N results beside their sources; faces that were drawn from noise have none, and `sources` is empty.

    Photos are float32 (H, W, C) in [0, 1] of any size, crops (N, 48, 48) float32 gray in [0, 1]: a source and its
    result are cut out by the same geometry. `targets` are the judge's classes.
    """

    results: list[Array]
    crops: Array
    targets: list[str]
    sources: Sequence[Source] = ()

    @property
    def source_crops(self) -> Array:
        """The sources' crops (N, 48, 48), where there are sources."""
        return np.stack([source.crop for source in self.sources])

    def take(self, rows: list[int]) -> Candidates:
        """The candidates at these rows."""
        return Candidates(
            results=[self.results[row] for row in rows],
            crops=self.crops[rows],
            targets=[self.targets[row] for row in rows],
            sources=[self.sources[row] for row in rows] if self.sources else (),
        )


@dataclass(frozen=True)
class Reference:
    """The real images of a dataset as the gates need them.

    `names` (M,) bytes and `descriptors` (M, 256) float16 are mapped from disk; `quantiles` (faults, 1001) are those of
    the real images' faults. `thresholds` are the lowest scores that pass: quality, novelty, unedited (novelty against
    the own source), whole and aligned (cosines; absent if not calibrated); those of expression are the judge's. Where
    faces are drawn, `persons` (M, D) float16 unit rows tells who is in the real images, and `stranger` is the cosine to
    one of them that a drawn face must stay below.
    `facts` tells about the calibration itself, for the report. Made by `calibration.calibrate`.
    """

    names: Array
    descriptors: Array
    quantiles: Array
    thresholds: dict[str, float]
    facts: dict[str, Any]
    persons: Array | None = None

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Open a calibrated folder; raises FacesynthError when it is missing or broken."""
        try:
            names, descriptors = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("names", "descriptors"))
            quantiles = np.load(folder / "quantiles.npy")
            settings = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
            told = folder / "persons.npy"
            persons = np.load(told, mmap_mode="r")[: len(names)] if told.exists() else None
            return cls(names, descriptors[: len(names)], quantiles, settings["thresholds"], settings["facts"], persons)
        except (OSError, ValueError, KeyError) as error:
            raise FacesynthError(f"{folder}: not a readable calibration ({error}); delete it and run again.") from error

    def ranks(self, values: Array) -> Array:
        """Share of real images (N, faults) that have at least this much of each fault, for values (N, faults)."""
        columns = zip(self.quantiles, values.T, strict=True)
        return np.stack([1 - np.searchsorted(real, value, side="left") / len(real) for real, value in columns], axis=1)

    def nearest(self, descriptors: Array, sources: Array | None = None) -> tuple[Array, Array]:
        """Similarity to (N,) and row of (N,) the most similar real image, mirrored or not, for descriptors (N, 256).

        The source (its descriptors (N, 256)) and further copies of it in the dataset are passed over, if there is one.
        """
        best, where = np.full(len(descriptors), -1.0, np.float32), np.zeros(len(descriptors), np.int64)
        for start in range(0, len(self.descriptors), CHUNK):
            chunk = np.asarray(self.descriptors[start : start + CHUNK], np.float32)
            similarity = correlations(descriptors, chunk)
            if sources is not None:
                similarity[1 - correlations(sources, chunk) < self.thresholds["novelty"]] = -1
            column = similarity.argmax(axis=1)
            value = similarity[np.arange(len(column)), column]
            where = np.where(value > best, start + column, where)
            best = np.maximum(best, value)
        return best, where


def screen(batch: Candidates, reference: Reference, judge: Judge, embedder: FaceEmbedder | None) -> list[Verdict]:
    """Pass candidates through the gates, cheap ones first, and say what became of each.

    Identity asks of an edited face that it is still its source's, and of a drawn one that it is no real person's. Raises
    UsageError when a target is no class of the judge.
    """
    checks: dict[str, Callable[[Candidates], tuple[Array, list[str | None]]]] = {
        "quality": lambda part: _quality(part, reference),
        "expression": lambda part: _expression(part, judge),
        "novelty": lambda part: _novelty(part, reference),
    }
    if embedder is not None:
        compare = _identity if batch.sources else _resemblance
        checks["identity"] = lambda part: compare(part, reference, embedder)
    scores: list[dict[str, float | None]] = [dict.fromkeys(GATES) for _ in batch.targets]
    reasons: list[str | None] = [None] * len(batch.targets)
    for gate, check in checks.items():
        rows = [row for row, reason in enumerate(reasons) if reason is None]
        if not rows:
            break
        for row, score, cause in zip(rows, *check(batch.take(rows)), strict=True):
            scores[row][gate] = round(float(score), 4)
            reasons[row] = f"{gate}: {cause}" if cause else None
    return [Verdict(reason is None, reason, score) for reason, score in zip(reasons, scores, strict=True)]


def _quality(batch: Candidates, reference: Reference) -> tuple[Array, list[str | None]]:
    """Rank each fault among the real images and take the smallest rank.

    A result is not blamed for what its source is already: a fault that is no worse than the source's counts as just
    acceptable, however rare it is. What is rare *and* worse than in the source is the generator's doing.
    """
    least = reference.thresholds["quality"]
    finite = np.array([np.isfinite(photo).all() for photo in batch.results]) & np.isfinite(batch.crops).all((1, 2))
    values = faults(np.nan_to_num(batch.crops))
    ranks = reference.ranks(values)
    if batch.sources:
        worse = values > faults(batch.source_crops) + TOLERANCES
        ranks = np.where(worse, ranks, np.maximum(ranks, least))
    scores = np.where(finite, ranks.min(axis=1), 0.0)
    causes = [FAULTS[fault] if ok else "not finite" for fault, ok in zip(ranks.argmin(axis=1), finite, strict=True)]
    return scores, [cause if score < least else None for cause, score in zip(causes, scores, strict=True)]


def _expression(batch: Candidates, judge: Judge) -> tuple[Array, list[str | None]]:
    for target in batch.targets:
        if target not in judge.classes:
            hint = did_you_mean(target, judge.classes)
            raise UsageError(f"the judge knows no expression '{target}'.{hint} It knows {', '.join(judge.classes)}.")
    probabilities = judge.predict(batch.crops)
    scores = probabilities[np.arange(len(batch.targets)), [judge.classes.index(target) for target in batch.targets]]
    causes: list[str | None] = []
    for score, target, top in zip(scores, batch.targets, probabilities.argmax(axis=1), strict=True):
        seen = judge.classes[top]
        cause = f"too weak a {target}" if seen == target else f"reads as {seen}"
        causes.append(cause if score < judge.thresholds[target] else None)
    return scores, causes


def _novelty(batch: Candidates, reference: Reference) -> tuple[Array, list[str | None]]:
    """Compare with the own source first, if there is one, then with every other real image."""
    sources = describe(batch.source_crops) if batch.sources else None
    similarity, rows = reference.nearest(describe(batch.crops), sources)
    scores, is_unedited = 1 - similarity, np.zeros(len(rows), bool)
    if batch.sources:
        own = 1 - registered_correlation(batch.source_crops, batch.crops)
        is_unedited = own < reference.thresholds["unedited"]
        scores = np.where(is_unedited, own, scores)
    causes: list[str | None] = []
    for score, row, same in zip(scores, rows, is_unedited, strict=True):
        copy = f"copy of {reference.names[row].decode('utf-8', 'backslashreplace')}"
        causes.append("source unedited" if same else copy if score < reference.thresholds["novelty"] else None)
    return scores, causes


def _identity(batch: Candidates, reference: Reference, embedder: FaceEmbedder) -> tuple[Array, list[str | None]]:
    """Compare source and result, both aligned by the source's landmarks or both as whole crops; each source once."""
    if "whole" not in reference.thresholds:
        raise FacesynthError(
            "the calibration has no identity thresholds: calibrate with the embedder, or use --identity off."
        )
    can_align = "aligned" in reference.thresholds
    sources = batch.sources
    landmarks = [source.landmarks if can_align else None for source in sources]
    rows = list({source.name: row for row, source in enumerate(sources)}.values())
    embedded = embedder.embed([sources[row].photo for row in rows], [landmarks[row] for row in rows])
    of_name = dict(zip((sources[row].name for row in rows), embedded, strict=True))
    results = embedder.embed(batch.results, landmarks)
    scores = np.array([float(row @ of_name[source.name]) for row, source in zip(results, sources, strict=True)])
    ways = ["whole" if points is None else "aligned" for points in landmarks]
    return scores, [
        "another person" if score < reference.thresholds[way] else None for score, way in zip(scores, ways, strict=True)
    ]


def _resemblance(batch: Candidates, reference: Reference, embedder: FaceEmbedder) -> tuple[Array, list[str | None]]:
    """Compare a drawn face with everyone in the real images."""
    if reference.persons is None:
        raise FacesynthError(
            "the calibration does not know the real persons: calibrate with everyone, or use --identity off."
        )
    faces = embedder.embed(batch.results, [embedder.locate(photo) for photo in batch.results])
    scores, rows = np.full(len(faces), -1.0), np.zeros(len(faces), np.int64)
    for start in range(0, len(reference.persons), CHUNK):
        cosines = faces @ np.asarray(reference.persons[start : start + CHUNK], np.float32).T
        best = cosines.argmax(axis=1)
        value = cosines[np.arange(len(best)), best]
        rows = np.where(value > scores, start + best, rows)
        scores = np.maximum(scores, value)
    names = [reference.names[row].decode("utf-8", "backslashreplace") for row in rows]
    limit = reference.thresholds["stranger"]
    return scores, [f"looks like {name}" if score >= limit else None for score, name in zip(scores, names, strict=True)]


def drop_mutual_copies(descriptors: Array, threshold: float, known: int = 0) -> Array:
    """Which accepted results, in order, are no near-copy of an earlier kept one: descriptors (N, 256) → mask (N,).

    `threshold` is the reference's `thresholds["novelty"]`. The first `known` rows have been through this before: they
    are kept without being compared with each other again.
    """
    keep = np.ones(len(descriptors), bool)
    step = 1024
    for start in range(known, len(descriptors), step):
        rows = descriptors[start : start + step]
        for earlier in range(0, start, CHUNK):
            stop = min(earlier + CHUNK, start)
            alike = 1 - correlations(rows, descriptors[earlier:stop]) < threshold
            keep[start : start + step] &= ~(alike & keep[earlier:stop]).any(axis=1)
        alike = 1 - correlations(rows, rows) < threshold
        for row in range(1, len(rows)):
            keep[start + row] &= not (alike[row, :row] & keep[start : start + row]).any()
    return keep
