"""`facesynth balance`: counts → target → wanted slots → screened synthetic faces in the rare classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facesynth import config as configs
from facesynth import dataset as datasets
from facesynth import runner
from facesynth.config import BalanceConfig
from facesynth.dataset import Dataset, Sample
from facesynth.plan import Plan, SynthesisResult
from facesynth.target import canonical_label, deficits, resolve

if TYPE_CHECKING:
    from facesynth.pipeline import Open
    from facesynth.synthesis import Slot


def balance(
    src: str | Path, target: str | None = None, *, preset: str | None = None, **settings: Any
) -> SynthesisResult:
    """Balance the training split of `src` and write the result beside it (or to `out`).

    `settings` are the fields of `BalanceConfig`, and go before those of `preset`, a name or a YAML file; `target` is uniform
    where neither says another. Returns what was made; `result.short` is non-empty where the target could not be met. Raises
    UsageError for wrong settings and FacesynthError when the run cannot go on; what was made is kept.
    """
    return run(configs.load(BalanceConfig, {"src": Path(src), "target": target, **settings}, preset=preset))


def run(config: BalanceConfig) -> SynthesisResult:
    """`balance` with validated settings."""
    return runner.run("balance", config, plan)


def plan(config: BalanceConfig, dataset: Dataset) -> Plan:
    """What is wanted, and from which sources. Raises UsageError for an impossible target; decodes nothing."""
    datasets.require_balanceable(dataset)
    counts = dataset.counts()
    target = resolve(config.target, counts)
    wanted = deficits(counts, target)
    return Plan(counts, target, wanted, Spread(dataset.samples["train"], wanted, config.seed))


class Spread:
    """Hands out sources evenly: none is used for a class again before every other eligible one has been tried.

    Eligible for a class are the images of all other classes. All classes go round the same random order of the images, each
    from a place of its own, so that one person's face rarely serves two classes. Calls must come in the order of the waves.
    """

    def __init__(self, samples: list[Sample], wanted: dict[str, int], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(samples))
        total, before = sum(wanted.values()), 0
        self._eligible: dict[str, list[Sample]] = {}
        self._given = dict.fromkeys(wanted, 0)
        for label, count in wanted.items():
            turned = np.roll(order, -(len(order) * before // max(total, 1)))
            own = canonical_label(label)
            self._eligible[label] = (
                [samples[k] for k in turned if canonical_label(samples[k].label) != own] if count else []
            )
            before += count

    def __call__(self, open_slots: list[Open], attempt: int) -> list[Slot]:
        """Give each open slot the next source of its class."""
        from facesynth.synthesis import Slot  # late: a plan alone needs no torch

        return [Slot(label, index, attempt, self._next(label)) for label, index in open_slots]

    def _next(self, label: str) -> Sample:
        eligible = self._eligible[label]
        self._given[label] += 1
        return eligible[(self._given[label] - 1) % len(eligible)]
