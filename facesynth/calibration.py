"""One pass over a dataset's real images: finds the thresholds of the gates, leaves them as a `Reference` on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from facesynth.console import FacesynthError
from facesynth.identity import FaceEmbedder
from facesynth.likeness import SIDE, correlations, describe, imitate_copies, registered_correlation
from facesynth.quality import faults
from facesynth.screening import CHUNK, Reference

Array = NDArray[Any]

SAMPLE = 1000
"""Real images that the thresholds of novelty and identity are calibrated on: half a million pairs."""

QUALITY_THRESHOLD = 0.01
"""Share of the real images that are as bad as the worst that passes."""

COPY_QUANTILE = 0.05
"""A threshold of novelty that 95 % of imitated copies do not reach."""

FALSE_ACCEPT_RATE = 1e-3
"""Share of pairs of different persons whose cosine reaches the identity threshold."""

CHANCE_MATCHES = 0.5
"""Real faces that a stranger, one who is in no image, is expected to be taken for."""

FEWEST = 30
"""Below so many located faces everything is compared as whole crops; below so many faces no lookalikes are left out."""

LOOKALIKE = 5.0
"""Cosines so many standard deviations above the median are taken for one person's."""


def calibrate(
    faces: Iterable[tuple[str, Array, Array]],
    count: int,
    folder: Path,
    embedder: FaceEmbedder | None = None,
    seed: int = 0,
    everyone: bool = False,
) -> Reference:
    """Measure the real images in one pass and write the reference to `folder`, replacing it as a whole.

    `everyone` embeds all faces, not the sample alone, so that drawn ones can be compared with every real person.
    `faces` yields (name, crop (48, 48), photo (H, W, C)), floats in [0, 1], of at most `count` images; photos are
    looked at only for the up to 1,000 that `seed` draws. Raises FacesynthError when there is nothing to measure, when
    `folder` cannot be written, and when there is an embedder but no two persons to tell apart.
    """
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _measure(faces, count, part, _Sample(count, embedder, seed), embedder if everyone else None)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError as error:
        cause = error.strerror or error
        raise FacesynthError(
            f"{folder}: the calibration could not be written ({cause}); free some space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Reference.load(folder)


def _measure(
    faces: Iterable[tuple[str, Array, Array]], count: int, part: Path, sample: _Sample, who: FaceEmbedder | None
) -> None:
    """Write what `Reference.load` reads; `who` tells the persons apart, if they are to be kept."""
    shape = (max(count, 1), SIDE * SIDE)
    descriptors = np.lib.format.open_memmap(part / "descriptors.npy", mode="w+", dtype=np.float16, shape=shape)
    names: list[bytes] = []
    amounts: list[Array] = []
    persons: list[Array] = []
    for row, (name, crop, photo) in enumerate(faces):
        descriptors[row] = describe(crop[None])[0]
        amounts.append(faults(crop[None])[0])
        names.append(name.encode("utf-8", "surrogateescape"))
        sample.offer(row, crop, photo)
        if who is not None:
            persons.append(who.embed([photo], [who.locate(photo)])[0].astype(np.float16))
    descriptors.flush()
    if persons:
        np.save(part / "persons.npy", np.array(persons))
    thresholds = {"quality": QUALITY_THRESHOLD} | sample.thresholds()
    real_novelty = _real_novelty(descriptors[: len(names)], sample.rows)
    facts = {"images": len(names), "real_novelty": real_novelty} | sample.facts
    np.save(part / "names.npy", np.array(names))
    np.save(part / "quantiles.npy", np.quantile(np.array(amounts), np.linspace(0, 1, 1001), axis=0).T)
    settings = json.dumps({"thresholds": thresholds, "facts": facts}, indent=1, sort_keys=True)
    (part / "reference.json").write_text(settings + "\n", encoding="utf-8")


def _real_novelty(descriptors: Array, rows: list[int]) -> dict[str, float]:
    """Quantiles of the novelty score that sampled real images have themselves, against all other real images."""
    best = np.full(len(rows), -1.0)
    for start in range(0, len(descriptors), CHUNK):
        similarity = correlations(descriptors[rows], descriptors[start : start + CHUNK])
        for position, row in enumerate(rows):
            if start <= row < start + CHUNK:
                similarity[position, row - start] = -1
        best = np.maximum(best, similarity.max(axis=1))
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
    return {f"{share:.0%}": round(float(np.quantile(1 - best, share)), 4) for share in shares}


class _Sample:
    """The random sample of real faces, embedded as they pass, that novelty and identity are calibrated on."""

    def __init__(self, count: int, embedder: FaceEmbedder | None, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._drawn = set(self._rng.choice(count, min(count, SAMPLE), replace=False).tolist())
        self._embedder = embedder
        self._count = count
        self.rows: list[int] = []
        self.facts: dict[str, Any] = {}
        self._crops: list[Array] = []
        self._whole: list[Array] = []
        self._aligned: dict[int, Array] = {}

    def offer(self, row: int, crop: Array, photo: Array) -> None:
        """Take the face in if its row was drawn."""
        if row not in self._drawn:
            return
        if self._embedder is not None:
            landmarks = self._embedder.locate(photo)
            if landmarks is not None:
                self._aligned[len(self.rows)] = self._embedder.embed([photo], [landmarks])[0]
            self._whole.append(self._embedder.embed([photo], [None])[0])
        self.rows.append(row)
        self._crops.append(crop)

    def thresholds(self) -> dict[str, float]:
        """The thresholds of novelty and identity, as `Reference` has them."""
        if not self._crops:
            raise FacesynthError("no real image could be read: there is nothing to calibrate the gates on.")
        crops = np.stack(self._crops)
        descriptors = describe(crops)
        shows = np.abs(descriptors).any(axis=1)
        if not shows.any():
            raise FacesynthError(
                "the real images are all of one flat gray: there is nothing to calibrate the gates on."
            )
        copies = imitate_copies(crops[shows], self._rng)
        similarity = (descriptors[shows] * describe(copies)).sum(axis=1)
        novelty = 1 - float(np.quantile(similarity, COPY_QUANTILE))
        unedited = 1 - float(np.quantile(registered_correlation(crops[shows], copies), COPY_QUANTILE))
        self.facts |= {"sampled": len(crops)}
        identity = {} if self._embedder is None else self._identity(descriptors, novelty)
        return {"novelty": novelty, "unedited": unedited} | identity

    def _identity(self, descriptors: Array, novelty: float) -> dict[str, float]:
        """Thresholds aligned and whole, on the same persons, told apart by the aligned faces, which is surer; and stranger."""
        whole, located = np.stack(self._whole), sorted(self._aligned)
        thresholds = {}
        persons = one_of_each(whole)
        if len(located) >= FEWEST:
            aligned = np.stack([self._aligned[position] for position in located])
            kept = one_of_each(aligned)
            found = [located[position] for position in kept]
            cosines = impostor_cosines(aligned[kept], descriptors[found], novelty)
            thresholds["aligned"] = float(np.quantile(cosines, 1 - FALSE_ACCEPT_RATE))
            thresholds["stranger"] = stranger_cosine(cosines, self._count)
            persons = found + sorted(set(range(len(whole))) - set(located))
        if len(persons) < 2:
            raise FacesynthError("the identity gate needs two real images or more to calibrate on; use --identity off.")
        cosines = impostor_cosines(whole[persons], descriptors[persons], novelty)
        thresholds["whole"] = float(np.quantile(cosines, 1 - FALSE_ACCEPT_RATE))
        thresholds.setdefault("stranger", stranger_cosine(cosines, self._count))
        self.facts |= {"located": len(located), "persons": len(persons)}
        return thresholds


def one_of_each(embeddings: Array) -> list[int]:
    """Rows of unit embeddings (N, D) that leave one image of each person, as far as cosines can tell.

    A dataset with several images of a person has genuine pairs among its "impostors": on a set with a fifth of such
    pairs the threshold would be 0.85 instead of 0.38. Pairs far above the bulk, whose spread is read off its lower half
    because genuine pairs only fill the upper tail, are taken for one person's; repeated, as a round narrows the bulk.
    """
    rows = list(range(len(embeddings)))
    for _ in range(3):
        if len(rows) < FEWEST:
            break
        cosines = embeddings[rows] @ embeddings[rows].T
        median, low = np.quantile(cosines[np.triu_indices(len(rows), 1)], [0.5, 0.1587])
        limit = median + LOOKALIKE * (median - low)
        kept: list[int] = []
        for position in range(len(rows)):
            if not (cosines[position, kept] >= limit).any():
                kept.append(position)
        rows = [rows[position] for position in kept]
    return rows


def impostor_cosines(embeddings: Array, descriptors: Array, novelty: float) -> Array:
    """Cosines (M,) of the pairs of faces (N, D), near-copies by descriptors (N, 256) left out.

    The identity thresholds are the cosines that FALSE_ACCEPT_RATE of them reach: with fewer than a thousand pairs
    (46 faces) the largest that was seen.
    """
    pairs = np.triu_indices(len(embeddings), 1)
    cosines = (embeddings @ embeddings.T)[pairs]
    different = 1 - correlations(descriptors, descriptors)[pairs] >= novelty
    if not different.any():
        raise FacesynthError(
            "the real images are copies of one, which cannot calibrate the identity gate; use --identity off."
        )
    found: Array = cosines[different]
    return found


def stranger_cosine(impostors: Array, count: int) -> float:
    """Cosine that CHANCE_MATCHES of `count` real faces reach with one who is none of them, by impostors' cosines (M,).

    So far out there are no pairs to count: the tail is taken for a normal one through the median and the quantile at
    FALSE_ACCEPT_RATE.
    """
    median, far = np.quantile(impostors, [0.5, 1 - FALSE_ACCEPT_RATE])
    deviation = (far - median) / norm.isf(FALSE_ACCEPT_RATE)
    return float(median + deviation * norm.isf(min(FALSE_ACCEPT_RATE, CHANCE_MATCHES / count)))
