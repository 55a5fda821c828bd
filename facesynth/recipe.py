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


class RecognizerSettings(BaseModel):
    """How a recogniser is trained, and on what: the vocabulary of the arms of an uplift.

    `sampling`: each image is drawn equally often, or each class. `loss`: plain, or logit-adjusted (Menon et al. 2021).
    `mixup`: alpha of its Beta distribution (Zhang et al. 2018), 0 for none. `synthetic` says where such images go:

    - none: nowhere
    - rare: beside the real ones, in the classes that are rarer than the largest
    - duplicates: as rare, but plain copies of real images take their places
    - share: they take the places of `synthetic_share` of the drawn images, alike in every class that has some
    - first: as share, but the share falls evenly to none at 60 % of the training
    - only: no real images at all

    The loss weight of a synthetic image is its own weight times `synthetic_weight`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampling: Literal["natural", "balanced"] = "natural"
    loss: Literal["cross-entropy", "logit-adjusted"] = "cross-entropy"
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    augmentation: Literal["light", "strong"] = "light"
    synthetic: Literal["none", "rare", "duplicates", "share", "first", "only"] = "none"
    synthetic_share: float = Field(default=0.5, gt=0, le=1)
    synthetic_weight: float = Field(default=1.0, gt=0)


class TrainConfig(BaseModel):
    """What a training preset may say; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")

    recipe: Literal["judge", "embedder", "editor", "recognizer"]
    images: int = Field(gt=0, description="training images to see in all")
    batch_size: int = Field(default=32, gt=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    critic_rate: float = Field(
        default=1.0, gt=0, description="the discriminator's learning rate as a multiple of the editor's"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_images: float = Field(
        default=10_000, ge=0, description="the learning rate rises over so many images at the start"
    )
    ema_images: float = Field(default=10_000, ge=0, description="half-life of the averaged weights, in images")
    network: dict[str, Any] = {}
    losses: dict[str, float] = {}
    stages: dict[int, dict[str, float]] = Field(
        default={}, description="images seen → weights that change from there on"
    )
    penalty_every: int = Field(default=8, gt=0, description="steps between gradient penalties")
    recognizer: RecognizerSettings = RecognizerSettings()
    judge: str | None = None
    embedder: str | None = None
    editor: str | None = None
    checkpoint_minutes: float = Field(default=3.0, gt=0)
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


class Trainable(Protocol):
    """What the loop steps: networks, those to average among them, and one optimisation step."""

    models: dict[str, Any]
    averaged: dict[str, Any]
    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, rng: torch.Generator, number: int) -> dict[str, Tensor]:
        """One optimisation step, the `number`-th; returns what is logged."""


class Recipe(Trainable, Protocol):
    """What one family of networks is to `train`: built from the faces, stepped by the loop, with closing figures.

    It may also have `sheet(model)`, a picture to leave beside each checkpoint, `check(model)`, figures to log with it, and
    `draw(out, figures)`, pictures at the end.
    """

    kind: str

    def __init__(self, config: TrainConfig, faces: Faces) -> None: ...

    def finish(self, model: Any) -> dict[str, Any]:
        """Calibrate the averaged network; returns what goes into its weights' header."""
