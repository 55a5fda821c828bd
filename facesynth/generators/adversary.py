"""The loss between a generator and its critic, whatever the two draw or edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from facesynth.generators import losses

PENALTY = {"wasserstein-gp": 10.0, "relativistic": 1.0}
"""Weight of the gradient penalty where the preset says nothing, for the losses that have one."""


@dataclass(frozen=True)
class Adversary:
    """One of the losses of `recipe.GanSettings`, for scores (N,) or, patch by patch, (N, P)."""

    loss: str
    label_smoothing: float
    penalty_every: int

    @property
    def paired(self) -> bool:
        """Whether the generator's loss compares its images with real ones."""
        return self.loss == "relativistic"

    @property
    def penalty_weight(self) -> float:
        """The usual weight of the gradient penalty; 0 where there is none."""
        return PENALTY.get(self.loss, 0.0)

    def separation(self, real: Tensor, generated: Tensor) -> Tensor:
        """How badly the critic's scores tell real from generated images."""
        match self.loss:
            case "bce":
                return losses.discrimination(real, generated, self.label_smoothing)
            case "relativistic":
                return losses.relativistic(real, generated)
            case _:
                return losses.wasserstein(real, generated)

    def deception(self, generated: Tensor, real: Tensor | None) -> Tensor:
        """How badly generated images pass for real ones; `real` scores are needed where it is `paired`."""
        if real is not None:
            return losses.relativistic(generated, real)
        return losses.fooling(generated) if self.loss == "bce" else -generated.mean()

    def penalty(
        self,
        score: Callable[[Tensor], Tensor],
        images: tuple[Tensor, Tensor],
        weight: float,
        rng: torch.Generator,
        number: int,
    ) -> Tensor | None:
        """The weighted gradient penalty of step `number` on (real, generated) images, if it has one; in full precision.

        `score` gives one number for each image.
        """
        if self.loss == "wasserstein-gp":
            return weight * losses.lipschitz_penalty(score, *images, rng)
        if self.loss == "relativistic" and number % self.penalty_every == 0:
            both = losses.gradient_penalty(score, images[0]) + losses.gradient_penalty(score, images[1])
            return self.penalty_every * weight / 2 * both
        return None
