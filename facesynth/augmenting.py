"""`facesynth augment`: variations of every training image; what a generator makes passes the same gates as in `balance`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from facesynth import config as configs
from facesynth import runner
from facesynth.config import AugmentConfig
from facesynth.console import UsageError, did_you_mean, printable
from facesynth.dataset import Dataset, Sample
from facesynth.plan import Plan, SynthesisResult
from facesynth.target import canonical_label

if TYPE_CHECKING:
    from facesynth.pipeline import Open
    from facesynth.synthesis import Slot


def augment(
    src: str | Path, per_image: int | None = None, *, preset: str | None = None, **settings: Any
) -> SynthesisResult:
    """Make `per_image` variations of every training image of `src`, for each expression asked for.

    A generator that draws makes as many new faces instead, which are variations of no image.

    `settings` are the fields of `AugmentConfig`, and go before those of `preset`, a name or a YAML file; `per_image` is 1
    where neither says another. Returns what was made; `result.short` names the classes for which some variations passed no
    gate. Raises UsageError for wrong settings and FacesynthError when the run cannot go on.
    """
    return run(configs.load(AugmentConfig, {"src": Path(src), "per_image": per_image, **settings}, preset=preset))


def run(config: AugmentConfig) -> SynthesisResult:
    """`augment` with validated settings."""
    return runner.run("augment", config, plan, method=config.method)


def plan(config: AugmentConfig, dataset: Dataset) -> Plan:
    """Every image of every expression asked for, `per_image` times; a slot keeps its source through all attempts."""
    counts = dataset.counts()
    labels = _labels(config, list(counts))
    if config.method == "classic" and config.expressions != "same":
        raise UsageError(
            "--method classic cannot change an expression; use --expressions same, or --method editor+classic."
        )
    sources: dict[str, list[Sample]] = {label: [] for label in counts}
    for sample in dataset.samples["train"]:
        for label in [sample.label] if config.expressions == "same" else labels:
            sources[label] += [sample] * config.per_image
    wanted = {label: len(listed) for label, listed in sources.items()}
    target = {label: counts[label] + wanted[label] for label in counts}

    def assign(open_slots: list[Open], attempt: int) -> list[Slot]:
        from facesynth.synthesis import Slot  # late: a plan alone needs no torch

        return [Slot(label, index, attempt, sources[label][index]) for label, index in open_slots]

    return Plan(counts, target, wanted, assign)


def _labels(config: AugmentConfig, known: list[str]) -> list[str]:
    if isinstance(config.expressions, str):
        return known
    by_canonical = {canonical_label(label): label for label in known}
    for name in config.expressions:
        if name not in known and canonical_label(name) not in by_canonical:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"--expressions: no class '{printable(name)}'.{hint} Classes: {', '.join(map(printable, known))}."
            )
    return [name if name in known else by_canonical[canonical_label(name)] for name in config.expressions]
