"""Does balancing treat groups of people alike? Shares, acceptance, source reuse and accuracy, and what of it stands out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from natsort import natsorted
from numpy.typing import NDArray
from scipy import stats

from facesynth.evaluation import Bias, Group, Interval
from facesynth.groups import Groups
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.safety import source_rows
from facesynth.significance import confusion_counts

if TYPE_CHECKING:
    from facesynth.synthesis import Row

Array = NDArray[Any]

LEVEL = 0.05
"""Chance that a set without any bias gets a sentence, over all comparisons together."""

LEAST = 0.02
"""Smaller differences of shares are not told, even where chance does not explain them."""

FEWEST_SOURCES = 8
"""With fewer used sources on a side the rank test, which knows ties by its normal approximation only, would be wrong."""

NOTE = (
    "Intervals are Wilson's; images of one source count as the fewer independent ones that they are. Groups differ in their "
    "mix of classes, too: a difference is a place to look at, not yet its cause."
)


def bias(
    real: ImageSet,
    synthetic: SyntheticSet,
    groups: Groups,
    tried: Iterable[Row] = (),
    before: Array | None = None,
    after: Array | None = None,
) -> Bias:
    """Compare groups before balancing (real training images) and after (with the synthetic ones).

    `tried`: every candidate of the run, accepted or not. `before` and `after` (T,): what classifiers without and with
    synthetic images, or one independent judge, read in the images of REAL's test split, as indices into the classes.

    A sentence stands for each difference that two-sided exact tests call real at 5 % over all of them (Holm 1979), and that
    is two points or more: of a group against all others in its column, and of accuracy before and after (McNemar).
    """
    rows = list(tried)
    found: list[Group] = []
    comparisons: list[_Comparison] = []
    for column in groups.real:
        counts = _Counts(
            real, synthetic, groups.real[column], groups.synthetic[column], rows, {"before": before, "after": after}
        )
        names = natsorted({*groups.real[column].tolist(), *groups.synthetic[column].tolist()} - {""})
        found += [_group(column, name, counts) for name in names]
        # With two groups one comparison says it all.
        for name in names[: 1 if len(names) == 2 else None]:
            comparisons += _comparisons(column, name, counts) if len(names) > 1 else ()
        if len(names) == 2:
            comparisons += _change(column, names[1], counts)
    return Bias(origin=groups.origin, groups=found, sentences=_sentences(comparisons), note=NOTE)


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """`hits` of `total` cases, and how many independent cases these amount to."""

    hits: int
    total: int
    independent: float

    @property
    def share(self) -> float:
        return self.hits / self.total if self.total else 0.0

    @property
    def whole(self) -> tuple[int, int]:
        """Hits and cases in whole numbers, of independent ones."""
        cases = round(self.independent)
        return round(self.share * cases), cases

    def interval(self) -> Interval:
        hits, cases = self.whole
        if not cases:
            return Interval(value=0.0, low=0.0, high=1.0)
        found = stats.binomtest(hits, cases).proportion_ci(method="wilson")
        return Interval(value=self.share, low=min(found.low, self.share), high=max(found.high, self.share))


class _Counts:
    """All that is counted for one column; of every count, the images that are in a group or in none of the others."""

    def __init__(
        self,
        real: ImageSet,
        synthetic: SyntheticSet,
        of_real: Array,
        of_synthetic: Array,
        tried: list[Row],
        read: dict[str, Array | None],
    ) -> None:
        train, test = real.of("train"), real.of("test")
        self.classes = len(real.classes)
        self._train, self._test, self._synthetic = (
            of_real[real.splits == "train"],
            of_real[real.splits == "test"],
            of_synthetic,
        )
        sources = source_rows(train, synthetic)
        # An image without a known source is its own.
        self._sources = np.where(sources < 0, -1 - np.arange(len(synthetic)), sources)
        row_of = {name: row for row, name in enumerate(train.names)}
        shown = [
            (row_of[row.source], row.accepted)
            for row in tried
            if row.source and row.source in row_of and not (row.reason or "").startswith("source:")
        ]
        self._tried = np.array([source for source, _ in shown], np.int64)
        self._accepted = np.array([accepted for _, accepted in shown], bool)
        self._labels = test.labels
        self.read = read

    def share_before(self, group: str) -> _Part:
        known = self._train != ""
        return _Part(int((self._train == group).sum()), int(known.sum()), float(known.sum()))

    def share_made(self, group: str) -> _Part:
        """Share of the synthetic images alone."""
        known = self._synthetic != ""
        hits = int((self._synthetic == group).sum())
        return _Part(hits, int(known.sum()), _independent(self._sources[known]))

    def share_after(self, group: str) -> _Part:
        parts = self.share_before(group), self.share_made(group)
        hits, total, independent = zip(*((part.hits, part.total, part.independent) for part in parts), strict=True)
        return _Part(sum(hits), sum(total), sum(independent))

    def acceptance(self, group: str, others: bool = False) -> _Part:
        rows = self._members(self._train[self._tried], group, others)
        return _Part(int(self._accepted[rows].sum()), int(rows.sum()), _independent(self._tried[rows]))

    def images_per_source(self, group: str, others: bool = False) -> Array:
        """How many images each used source has given."""
        rows = self._members(self._synthetic, group, others) & (self._sources >= 0)
        return np.unique(self._sources[rows], return_counts=True)[1]

    def accuracy(self, group: str, when: str, others: bool = False) -> _Part | None:
        read = self.read[when]
        rows = self._members(self._test, group, others)
        if read is None or not rows.any():
            return None
        return _Part(int((read[rows] == self._labels[rows]).sum()), int(rows.sum()), float(rows.sum()))

    def confusion(self, group: str, when: str) -> list[list[int]]:
        read = self.read[when]
        rows = self._test == group
        return [] if read is None else confusion_counts(self._labels[rows], read[rows], self.classes).tolist()

    def gained_and_lost(self, group: str) -> tuple[int, int]:
        """Test images that only the second classifier reads right, and those that only the first does."""
        before, after = self.read["before"], self.read["after"]
        if before is None or after is None:
            return 0, 0
        rows = self._test == group
        first, second = (read[rows] == self._labels[rows] for read in (before, after))
        return int((second & ~first).sum()), int((first & ~second).sum())

    @staticmethod
    def _members(values: Array, group: str, others: bool) -> Array:
        return np.asarray((values != group) & (values != "") if others else values == group)


def _independent(sources: Array) -> float:
    """Kish's (1965) effective number of cases where several share a source: n² / Σ (cases of a source)²."""
    counts = np.unique(sources, return_counts=True)[1].astype(float)
    return float(counts.sum() ** 2 / (counts**2).sum()) if len(counts) else 0.0


def _group(column: str, name: str, counts: _Counts) -> Group:
    acceptance, reuse = counts.acceptance(name), counts.images_per_source(name)
    before, after = (counts.accuracy(name, when) for when in ("before", "after"))
    return Group(
        column=column,
        group=name,
        share_before=counts.share_before(name).interval(),
        share_after=counts.share_after(name).interval(),
        acceptance=acceptance.interval() if acceptance.total else None,
        source_reuse=float(reuse.mean()) if len(reuse) else None,
        accuracy_before=before.interval() if before else None,
        accuracy_after=after.interval() if after else None,
        confusion_before=counts.confusion(name, "before"),
        confusion_after=counts.confusion(name, "after"),
    )


# --- what stands out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Comparison:
    """What would be said of a difference, its p-value, and whether it is large enough to be said."""

    sentence: str
    p: float
    matters: bool


def _comparisons(column: str, name: str, counts: _Counts) -> Iterator[_Comparison]:
    who = f"{column} '{name}'"
    made, real = counts.share_made(name), counts.share_before(name)
    yield from _compare(f"{who} makes up {{}} of the synthetic images but {{}} of the real ones", made, real)
    tries = counts.acceptance(name), counts.acceptance(name, others=True)
    yield from _compare(
        f"candidates from sources of {who} pass the gates in {{}} of the tries, the others in {{}}", *tries
    )
    yield from _reuse(who, counts.images_per_source(name), counts.images_per_source(name, others=True))
    for when in ("before", "after"):
        right, others = counts.accuracy(name, when), counts.accuracy(name, when, others=True)
        if right and others:
            yield from _compare(f"{when} balancing, {who} is read right in {{}}, the others in {{}}", right, others)
    yield from _change(column, name, counts)


def _compare(sentence: str, one: _Part, other: _Part) -> Iterator[_Comparison]:
    (hits, cases), (other_hits, other_cases) = one.whole, other.whole
    if cases and other_cases:
        table = [[hits, cases - hits], [other_hits, other_cases - other_hits]]
        p = float(stats.fisher_exact(table).pvalue)
        yield _Comparison(
            sentence.format(f"{one.share:.0%}", f"{other.share:.0%}"), p, abs(one.share - other.share) >= LEAST
        )


def _reuse(who: str, images: Array, others: Array) -> Iterator[_Comparison]:
    if min(len(images), len(others)) >= FEWEST_SOURCES:
        p = float(stats.mannwhitneyu(images, others).pvalue)
        said = f"each used source of {who} gives {images.mean():.1f} images, the others {others.mean():.1f}"
        yield _Comparison(said, p, f"{images.mean():.1f}" != f"{others.mean():.1f}")


def _change(column: str, name: str, counts: _Counts) -> Iterator[_Comparison]:
    before, after = (counts.accuracy(name, when) for when in ("before", "after"))
    gained, lost = counts.gained_and_lost(name)
    if before and after and gained + lost:
        p = float(stats.binomtest(gained, gained + lost).pvalue)
        verb = "raises" if after.share > before.share else "lowers"
        said = f"balancing {verb} the accuracy on {column} '{name}' from {before.share:.0%} to {after.share:.0%}"
        yield _Comparison(said, p, abs(after.share - before.share) >= LEAST)


def _sentences(comparisons: list[_Comparison]) -> list[str]:
    """Sentences of the differences that stand out, the surest first: Holm's step-down procedure."""
    said = []
    largest = 0.0
    for rank, one in enumerate(sorted(comparisons, key=lambda one: one.p)):
        largest = max(largest, min(1.0, one.p * (len(comparisons) - rank)))
        if largest > LEVEL:
            break
        if one.matters:
            p = f"p = {largest:.3f}" if largest >= 0.001 else "p < 0.001"
            said.append(f"{one.sentence[0].upper()}{one.sentence[1:]} ({p}).")
    return said
