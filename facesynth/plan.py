"""What a run sets out to do (`Plan`) and what it made (`SynthesisResult`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facesynth.pipeline import Assign


@dataclass(frozen=True)
class Plan:
    """Real counts, final counts and what is to be made, all per class; `assign` gives open slots their sources."""

    counts: dict[str, int]
    target: dict[str, int]
    wanted: dict[str, int]
    assign: Assign


@dataclass(frozen=True)
class SynthesisResult:
    """What a run made: images per class, candidates tried, and rejections (class → reason → count).

    `real` counts the source's training images, also where `with_real` says that the output goes without them.
    """

    verb: str
    out: Path
    real: dict[str, int]
    synthetic: dict[str, int]
    target: dict[str, int]
    report: Path | None = None
    tried: int = 0
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    identity: str = ""
    with_real: bool = True

    @property
    def short(self) -> dict[str, int]:
        """How many images each class still lacks, for those that lack any."""
        lacking = {label: self.target[label] - self.real[label] - self.synthetic[label] for label in self.target}
        return {label: count for label, count in lacking.items() if count > 0}
