"""What a training is told (`TrainConfig`) and what one family of networks brings to it (`Recipe`)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from facesynth.device import pick_device

if TYPE_CHECKING:
    from facesynth.training_data import Faces


class TrainConfig(BaseModel):
    """What a training preset may say; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")

    recipe: Literal["judge", "embedder", "editor"]
    images: int = Field(gt=0, description="training images to see in all")
    batch_size: int = Field(32, gt=1)
    learning_rate: float = Field(2e-4, gt=0)
    critic_rate: float = Field(1.0, gt=0, description="the discriminator's learning rate as a multiple of the editor's")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    ema_images: float = Field(10_000, ge=0, description="half-life of the averaged weights, in images")
    network: dict[str, Any] = {}
    losses: dict[str, float] = {}
    stages: dict[int, dict[str, float]] = Field({}, description="images seen → weights that change from there on")
    penalty_every: int = Field(8, gt=0, description="steps between gradient penalties")
    judge: str | None = None
    embedder: str | None = None
    editor: str | None = None
    checkpoint_minutes: float = Field(3.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    seed: int = 0

    def torch_device(self) -> torch.device:
        """The device to train on; `auto` takes CUDA when it is there."""
        return torch.device(pick_device(self.device)[0])

    def loss_weights(self, images: int) -> dict[str, float]:
        """The weights of the losses after so many training images."""
        weights = dict(self.losses)
        for start in sorted(self.stages):
            if images >= start:
                weights |= self.stages[start]
        return weights

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the hardware multiplies in bf16, else no-op."""
        device = self.torch_device()
        capabilities = torch.cpu.get_capabilities()
        pays = device.type == "cuda" or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        if self.precision == "bf16" or (self.precision == "auto" and pays):
            return torch.autocast(device.type, torch.bfloat16)
        return contextlib.nullcontext()


class Recipe(Protocol):
    """What one family brings to the loop: its networks, one optimisation step, and its closing figures."""

    kind: str
    models: dict[str, Any]
    averaged: dict[str, Any]
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, config: TrainConfig, faces: Faces) -> None: ...
    def step(self, rng: torch.Generator, number: int) -> dict[str, Tensor]:
        """One optimisation step, the `number`-th; returns what is logged."""

    def finish(self, model: Any) -> dict[str, Any]:
        """Calibrate the averaged network; returns what goes into its weights' header."""
