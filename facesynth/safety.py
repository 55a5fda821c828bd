"""Are synthetic images safe to use? Copies of real images, leaks into validation and test, and labels in doubt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facesynth.evaluation import Copies, Doubt, Doubts, Leak, Leakage, LeakKind, Neighbour
from facesynth.fidelity import histogram
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.near_copies import Matches, closest, lenient_threshold, near_copies, similarity, strict_threshold

Array = NDArray[Any]
HeldOut = Literal["val", "test"]

SAMPLED = 2000
"""Real training images whose nearest neighbours stand for those of all."""

LISTED = 300
"""Neighbours, and images with doubtful labels, that a result lists; all are counted."""

_EDGES = np.linspace(0, 1, 51)


# --- copies -----------------------------------------------------------------------------------------------------------


def copies(real: ImageSet, synthetic: SyntheticSet, seed: int = 0) -> Copies:
    """Find synthetic images that are near-copies of real training images, and each one's nearest real image.

    The source of an image may be near, unless the image is practically the unedited source: as a whole face, aligned alike.
    Every other training image is compared as a whole picture. The threshold is the similarity (`near_copies.similarity`)
    that 95 % of imitated copies of the real images reach: edits change more than light, half a pixel and JPEG do. Of 3,000
    images that the gates let pass on FER2013, 1 reached it (median similarity to the source 0.92, threshold 0.988).
    `real_share` and `real_similarity` come from up to 2,000 training images, each against all others.
    """
    train = real.of("train")
    threshold = strict_threshold(train, seed)
    sources = source_rows(train, synthetic)
    nearest, alike = closest(synthetic, train, skip=sources)
    own = _source_similarity(train, synthetic, sources)
    is_unedited = own >= threshold
    is_copy = is_unedited | (alike >= threshold)
    real_alike = _real_similarity(train, seed)
    shown = np.where(is_unedited, own, alike)
    neighbours = [
        Neighbour(
            synthetic=synthetic.names[row],
            real=train.names[sources[row] if is_unedited[row] else nearest[row]],
            split="train",
            similarity=round(float(shown[row]), 4),
            is_source=bool(is_unedited[row]),
        )
        for row in np.argsort(-shown, kind="stable")[:LISTED]
    ]
    return Copies(
        images=len(synthetic),
        copies=int(is_copy.sum()),
        share=float(is_copy.mean()) if len(synthetic) else 0.0,
        real_share=float((real_alike >= threshold).mean()),
        threshold=0.0 if np.isnan(threshold) else threshold,
        synthetic_similarity=histogram(alike, _EDGES),
        real_similarity=histogram(real_alike, _EDGES),
        nearest=neighbours,
    )


def source_rows(train: ImageSet, synthetic: SyntheticSet) -> Array:
    """Row of each synthetic image's source among the training images, (M,) int64; -1 where none is known."""
    row_of = {name: row for row, name in enumerate(train.names)}
    return np.array([row_of.get(name, -1) if name else -1 for name in synthetic.sources], np.int64)


def _source_similarity(train: ImageSet, synthetic: SyntheticSet, sources: Array) -> Array:
    """Similarity of each image to its source, (M,), -1 where none is known; by the faces, which an edit is meant to change."""
    own = np.full(len(synthetic), -1.0)
    known = np.flatnonzero(sources >= 0)
    for rows in np.split(known, range(256, len(known), 256)):
        if len(rows):
            before, after = train.crops[sources[rows]] / np.float32(255), synthetic.crops[rows] / np.float32(255)
            own[rows] = similarity(before, after, np.zeros((len(rows), 2), np.int64))
    own[known[train.digests[sources[known]] == synthetic.digests[known]]] = 1
    return own


def _real_similarity(train: ImageSet, seed: int) -> Array:
    count = min(SAMPLED, len(train))
    rows = np.sort(np.random.default_rng(seed).choice(len(train), count, replace=False))
    return closest(train.take(rows), train, skip=rows)[1]


# --- leakage ----------------------------------------------------------------------------------------------------------


def leakage(real: ImageSet, synthetic: SyntheticSet, test: ImageSet | None = None, seed: int = 0) -> Leakage:
    """Find near-copies of validation and test images among the images, real or synthetic, that one trains on.

    `test` stands for REAL's own test split where it is given: another dataset, labelled by REAL's classes. An image
    leaks where its whole picture reaches `near_copies.lenient_threshold` with one of them, or has the same pixels; each
    is listed with the one that it is most alike. A source leaks as the training image that it is.
    """
    parts = {"train": real.of("train"), "val": real.of("val"), "test": real.of("test") if test is None else test}
    held_out: tuple[HeldOut, ...] = ("val", "test")
    leaks: list[Leak] = []
    counts: dict[str, int] = {}
    copied = _Copied(parts["test"])
    for split in held_out:
        if not len(parts[split]):
            continue
        threshold = lenient_threshold(parts["train"], parts[split], seed)
        searched: dict[LeakKind, ImageSet] = {"synthetic image": synthetic, "real training image": parts["train"]}
        if split == "test" and len(parts["val"]):
            searched["real validation image"] = parts["val"]
        for kind, images in searched.items():
            matches = near_copies(images, parts[split], threshold)
            found = _leaks(kind, split, images, parts[split], matches)
            if kind == "real training image":
                found += _of_sources(found, synthetic.sources)
                counts[f"source of a synthetic image in {split}"] = 0
            counts |= {f"{kind} in {split}": 0}
            leaks += found
            if split == "test" and kind != "synthetic image":
                copied.add(images, matches)
    counts |= Counter(f"{leak.kind} in {leak.split}" for leak in leaks)
    leaks.sort(key=lambda leak: (not leak.identical, -leak.similarity))
    return Leakage(
        counts=counts,
        leaks=leaks,
        test_copies=copied.names(copied.any),
        identical_test_copies=copied.names(copied.identical),
        label_conflicts=int(copied.conflict.sum()),
    )


class _Copied:
    """Which test images (T,) real images copy, are identical to, and contradict by their label."""

    def __init__(self, test: ImageSet) -> None:
        self._test = test
        self.any, self.identical, self.conflict = np.zeros((3, len(test)), bool)

    def names(self, which: Array) -> list[str]:
        return [self._test.names[row] for row in np.flatnonzero(which)]

    def add(self, images: ImageSet, matches: Matches) -> None:
        rows, others = matches.rows, matches.others
        self.any[others] = True
        self.identical |= np.isin(self._test.digests, images.digests)
        self.conflict[others[images.labels[rows] != self._test.labels[others]]] = True


def _leaks(kind: LeakKind, split: HeldOut, images: ImageSet, others: ImageSet, matches: Matches) -> list[Leak]:
    """One leak per image, the most alike: matches come in that order."""
    best = matches.take(np.unique(matches.rows, return_index=True)[1])
    return [
        Leak(
            kind=kind,
            image=images.names[row],
            of=others.names[other],
            split=split,
            similarity=round(float(value), 4),
            identical=bool(images.digests[row] == others.digests[other]),
        )
        for row, other, value in zip(best.rows, best.others, best.similarity, strict=True)
    ]


def _of_sources(leaks: list[Leak], sources: Sequence[str | None]) -> list[Leak]:
    used = set(sources)
    kind: LeakKind = "source of a synthetic image"
    return [leak.model_copy(update={"kind": kind}) for leak in leaks if leak.image in used]


# --- labels -----------------------------------------------------------------------------------------------------------


def label_doubts(real: ImageSet, first: Array, second: Array) -> Doubts:
    """Real images whose label two judges doubt: probabilities (N, K) of each, NaN rows for images they did not read.

    Confident learning (Northcutt et al. 2021, JAIR 70): a judge is confident of a class where its probability reaches the
    mean that images labelled so have from this judge, which no calibration or frequency of classes disturbs. A label is in
    doubt where both judges are most confident of one same other class, and neither reaches the label's own mean. Judges
    that were trained on an image hardly doubt it, they have learnt its label: pass readings of images that were not
    trained on, else doubts are missed (but none is made up). Most of what two judges agree on in a class that both read
    badly is their common fault: look before you relabel.
    """
    read = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    rows = np.flatnonzero(read)
    labels = real.labels[rows]
    one, two = (_Confidence(probabilities[rows], labels) for probabilities in (first, second))
    mean = (first[rows] + second[rows]) / 2
    doubted = np.flatnonzero((one.best == two.best) & (one.best >= 0) & (one.best != labels) & ~one.own & ~two.own)
    each = np.arange(len(rows))
    surety = mean[each, np.maximum(one.best, 0)] - mean[each, labels]
    ordered = doubted[np.argsort(-surety[doubted], kind="stable")]
    counts = np.bincount(labels[doubted], minlength=len(real.classes))
    return Doubts(
        checked=len(rows),
        counts=dict(zip(real.classes, counts.tolist(), strict=True)),
        images=[
            Doubt(
                image=real.names[rows[place]],
                split=str(real.splits[rows[place]]),
                label=real.classes[labels[place]],
                read_as=real.classes[one.best[place]],
                probability=round(float(mean[place, one.best[place]]), 4),
                own_probability=round(float(mean[place, labels[place]]), 4),
            )
            for place in ordered[:LISTED]
        ],
    )


class _Confidence:
    """What a judge is confident of, by the mean probability that each class has among the images labelled so.

    `best` (N,): the most probable of the classes that reach their mean, -1 where none does; `own` (N,): the label does.
    """

    def __init__(self, probabilities: Array, labels: Array) -> None:
        totals = np.bincount(
            labels, weights=probabilities[np.arange(len(labels)), labels], minlength=probabilities.shape[1]
        )
        images = np.bincount(labels, minlength=probabilities.shape[1])
        # A class without images has no mean to reach.
        means = np.divide(totals, images, out=np.full(len(totals), np.inf), where=images > 0)
        reached = probabilities >= means
        self.best = np.where(reached.any(axis=1), np.where(reached, probabilities, -1).argmax(axis=1), -1)
        self.own = reached[np.arange(len(labels)), labels]
