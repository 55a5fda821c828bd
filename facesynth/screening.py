"""The gates: which candidates are good enough to land, with a score and a reason each.

Every threshold comes from the real training images: `calibration` measures them once and leaves a `Reference` on disk,
which worker processes map into memory. No torch here: the judge and the embedder are passed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
    the most similar image that it must not copy, 0–2; identity = cosine between source and result, −1–1.
    """

    accepted: bool
    reason: str | None
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Candidates:
    """A batch of results beside their sources; all lists and arrays have the length N.

    Photos are float32 (H, W, C) in [0, 1] of any size, crops (N, 48, 48) float32 gray in [0, 1]: a source and its
    result are cut out by the same geometry. `landmarks` are the source's five points or None; `targets` are the judge's
    classes.
    """

    names: list[str]
    sources: list[Array]
    landmarks: list[Array | None]
    results: list[Array]
    source_crops: Array
    crops: Array
    targets: list[str]

    def take(self, rows: list[int]) -> Candidates:
        """The candidates at these rows."""
        return Candidates(
            names=[self.names[row] for row in rows],
            sources=[self.sources[row] for row in rows],
            landmarks=[self.landmarks[row] for row in rows],
            results=[self.results[row] for row in rows],
            source_crops=self.source_crops[rows],
            crops=self.crops[rows],
            targets=[self.targets[row] for row in rows],
        )


@dataclass(frozen=True)
class Reference:
    """The real images of a dataset as the gates need them.

    `names` (M,) bytes and `descriptors` (M, 256) float16 are mapped from disk; `quantiles` (faults, 1001) are those of
    the real images' faults. `thresholds` are the lowest scores that pass: quality, novelty, unedited (novelty against
    the own source), whole and aligned (cosines; absent if not calibrated); those of expression are the judge's.
    `facts` tells about the calibration itself, for the report. Made by `calibration.calibrate`.
    """

    names: Array
    descriptors: Array
    quantiles: Array
    thresholds: dict[str, float]
    facts: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Open a calibrated folder; raises FacesynthError when it is missing or broken."""
        try:
            names, descriptors = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("names", "descriptors"))
            quantiles = np.load(folder / "quantiles.npy")
            settings = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
            return cls(names, descriptors[: len(names)], quantiles, settings["thresholds"], settings["facts"])
        except (OSError, ValueError, KeyError) as error:
            raise FacesynthError(f"{folder}: not a readable calibration ({error}); delete it and run again.") from error

    def ranks(self, values: Array) -> Array:
        """Share of real images (N, faults) that have at least this much of each fault, for values (N, faults)."""
        columns = zip(self.quantiles, values.T, strict=True)
        return np.stack([1 - np.searchsorted(real, value, side="left") / len(real) for real, value in columns], axis=1)

    def nearest(self, descriptors: Array, sources: Array) -> tuple[Array, Array]:
        """Similarity to (N,) and row of (N,) the most similar real image, mirrored or not, for descriptors (N, 256).

        The source (its descriptors (N, 256)) and further copies of it in the dataset are passed over.
        """
        best, where = np.full(len(descriptors), -1.0, np.float32), np.zeros(len(descriptors), np.int64)
        for start in range(0, len(self.descriptors), CHUNK):
            chunk = np.asarray(self.descriptors[start : start + CHUNK], np.float32)
            similarity = correlations(descriptors, chunk)
            similarity[1 - correlations(sources, chunk) < self.thresholds["novelty"]] = -1
            column = similarity.argmax(axis=1)
            value = similarity[np.arange(len(column)), column]
            where = np.where(value > best, start + column, where)
            best = np.maximum(best, value)
        return best, where


def screen(batch: Candidates, reference: Reference, judge: Judge, embedder: FaceEmbedder | None) -> list[Verdict]:
    """Pass candidates through the gates, cheap ones first, and say what became of each.

    Raises UsageError when a target is no class of the judge.
    """
    checks: dict[str, Callable[[Candidates], tuple[Array, list[str | None]]]] = {
        "quality": lambda part: _quality(part, reference),
        "expression": lambda part: _expression(part, judge),
        "novelty": lambda part: _novelty(part, reference),
    }
    if embedder is not None:
        checks["identity"] = lambda part: _identity(part, reference, embedder)
    scores: list[dict[str, float | None]] = [dict.fromkeys(GATES) for _ in batch.names]
    reasons: list[str | None] = [None] * len(batch.names)
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
    """Compare with the own source first, then with every other real image."""
    own = 1 - registered_correlation(batch.source_crops, batch.crops)
    similarity, rows = reference.nearest(describe(batch.crops), describe(batch.source_crops))
    is_unedited = own < reference.thresholds["unedited"]
    scores = np.where(is_unedited, own, 1 - similarity)
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
    landmarks = [points if can_align else None for points in batch.landmarks]
    rows = list({name: row for row, name in enumerate(batch.names)}.values())
    embedded = embedder.embed([batch.sources[row] for row in rows], [landmarks[row] for row in rows])
    of_name = dict(zip((batch.names[row] for row in rows), embedded, strict=True))
    results = embedder.embed(batch.results, landmarks)
    scores = np.array([float(row @ of_name[name]) for row, name in zip(results, batch.names, strict=True)])
    ways = ["whole" if points is None else "aligned" for points in landmarks]
    return scores, [
        "another person" if score < reference.thresholds[way] else None for score, way in zip(scores, ways, strict=True)
    ]


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
