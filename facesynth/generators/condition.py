"""What an editor can be asked for, as one vector: groups of labels one behind the other, then which dataset they are from.

Zeros say nothing: of what is known of a face that it is not known, of what is asked for that it shall stay as it is. Where
0 is a value like others, among measures, a 1 behind them says that something is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS = "class"
"""Name of the group that holds a dataset's classes; the others are attributes."""


@dataclass(frozen=True)
class Group:
    """Labels that exclude each other: a `choice` is a one-hot vector, a `switch` (off, on) one number, -1 or 1.

    Where the kind is `measures`, a face has numbers of its own, one for each name in `measures`, and then a 1; a label is
    the point among them that `prototypes` has in its place.
    """

    name: str
    labels: tuple[str, ...]
    kind: Literal["choice", "switch", "measures"] = "choice"
    measures: tuple[str, ...] = ()
    prototypes: tuple[tuple[float, ...], ...] = ()

    @property
    def width(self) -> int:
        """Numbers that it takes in the vector."""
        return {"choice": len(self.labels), "switch": 1, "measures": len(self.measures) + 1}[self.kind]

    def encode(self, label: str) -> list[float]:
        """The numbers that say `label`, one of `labels`."""
        place = self.labels.index(label)
        match self.kind:
            case "choice":
                return [float(k == place) for k in range(self.width)]
            case "switch":
                return [2.0 * place - 1]
            case _:
                return [*self.prototypes[place], 1.0]

    def between(self, start: str, end: str, share: float) -> list[float]:
        """The measures at a `share` (0 to 1) of the way between two labels; from zeros where `start` is not of the group."""
        target = self.encode(end)
        origin = self.encode(start) if start in self.labels else [0.0] * len(target)
        return [*(a + share * (b - a) for a, b in zip(origin[:-1], target[:-1], strict=True)), 1.0]

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy (N,) of a head's logits on what is known, both (N, width); of measures the mean squared error."""
        match self.kind:
            case "choice":
                return F.cross_entropy(logits, values, reduction="none")
            case "switch":
                return F.binary_cross_entropy_with_logits(logits, (values + 1) / 2, reduction="none")[:, 0]
            case _:
                return (logits[:, :-1] - values[:, :-1]).square().mean(1)


@dataclass(frozen=True)
class Vocabulary:
    """The groups of each dataset that takes part in a training.

    As in Choi et al. 2018 (section 3.3), each dataset's labels have places of their own, also where two datasets use the
    same name, since they may mean different things by it; a one-hot mask says whose labels a vector holds.
    """

    datasets: tuple[tuple[Group, ...], ...]

    @classmethod
    def of(cls, described: Sequence[Sequence[dict[str, Any]]]) -> Vocabulary:
        """The inverse of `describe`."""
        return cls(tuple(tuple(_group(one) for one in groups) for groups in described))

    def describe(self) -> list[list[dict[str, Any]]]:
        """All of it as JSON has it."""
        return [
            [
                asdict(group)
                | {"labels": list(group.labels), "measures": list(group.measures)}
                | {"prototypes": [list(point) for point in group.prototypes]}
                for group in groups
            ]
            for groups in self.datasets
        ]

    @property
    def losses(self) -> tuple[str, ...]:
        """Which of class and measures there are groups for, in any dataset."""
        there = {_loss(group) for groups in self.datasets for group in groups}
        return tuple(name for name in ("class", "measures") if name in there)

    @property
    def labels(self) -> int:
        """Numbers in all groups of all datasets: what the critic's class head has to tell."""
        return sum(self.width(dataset) for dataset in range(len(self.datasets)))

    @property
    def size(self) -> int:
        """Numbers in a condition: the labels, and the mask where there are several datasets."""
        return self.labels + (len(self.datasets) if len(self.datasets) > 1 else 0)

    def width(self, dataset: int) -> int:
        """Numbers in the groups of one dataset."""
        return sum(group.width for group in self.datasets[dataset])

    def spans(self, dataset: int) -> Iterator[tuple[Group, slice]]:
        """The dataset's groups, and where they lie among its own values."""
        start = 0
        for group in self.datasets[dataset]:
            yield group, slice(start, start + group.width)
            start += group.width

    def condition(self, values: Tensor, dataset: int) -> Tensor:
        """Values (N, width) of one dataset → conditions (N, size): zeros for the other datasets' labels, then the mask."""
        before = sum(self.width(other) for other in range(dataset))
        conditions = values.new_zeros(len(values), self.size)
        conditions[:, before : before + values.shape[1]] = values
        if self.size > self.labels:
            conditions[:, self.labels + dataset] = 1
        return conditions

    def loss(self, logits: Tensor, values: Tensor, dataset: int) -> dict[str, Tensor]:
        """The loss of each of `losses`: over the dataset's groups the sum of their means over the faces that they are known of.

        `logits` (N, labels) are a critic's, `values` (N, width) what is known.
        """
        before = sum(self.width(other) for other in range(dataset))
        totals = dict.fromkeys(self.losses, logits.sum() * 0)
        for group, span in self.spans(dataset):
            known = (values[:, span] != 0).any(1)
            own = logits[:, before + span.start : before + span.stop]
            mean = (group.loss(own, values[:, span]) * known).sum() / known.sum().clamp(min=1)
            totals[_loss(group)] = totals[_loss(group)] + mean
        return totals

    def leave(self, values: Tensor, share: float, rng: torch.Generator, dataset: int) -> Tensor:
        """Values (N, width) of one dataset with about `share` of their groups, drawn for each face, set to zeros."""
        widths = torch.tensor([group.width for group in self.datasets[dataset]])
        kept = torch.rand(len(values), len(widths), generator=rng) >= share
        return values * kept.repeat_interleave(widths, 1).to(values)

    def fill(self, values: Tensor, others: Tensor, dataset: int) -> Tensor:
        """Values (N, width), with those of `others` in the groups that are zeros."""
        parts = []
        for _, span in self.spans(dataset):
            said = (values[:, span] != 0).any(1, keepdim=True)
            parts.append(torch.where(said, values[:, span], others[:, span]))
        return torch.cat(parts, 1)


def _group(described: dict[str, Any]) -> Group:
    """A group as JSON gave it back; there were none of measures at first."""
    prototypes = tuple(tuple(point) for point in described.get("prototypes", ()))
    measures = tuple(described.get("measures", ()))
    return Group(described["name"], tuple(described["labels"]), described["kind"], measures, prototypes)


def _loss(group: Group) -> str:
    return "measures" if group.kind == "measures" else "class"
