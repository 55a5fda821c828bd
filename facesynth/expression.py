"""The expression judge: how it is trained and calibrated, and how it reads faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facesynth import weights
from facesynth.generators import losses
from facesynth.generators.networks import Classifier, place
from facesynth.target import canonical_label
from facesynth.training_data import Faces

if TYPE_CHECKING:
    from facesynth.recipe import Descend, Logs, TrainConfig


BATCH = 1024
"""Faces that are read at a time."""


class JudgeRecipe:
    """Trains a classifier with the logit-adjusted loss (Menon et al. 2021): what it learns is blind to class frequency.

    The share of faces that `Faces` holds out calibrates it: a temperature, and per class the lower quartile of the
    probability it gives to real faces of that class, which the expression gate uses as threshold.
    """

    kind = "classifier"

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        self.config, self.faces = config, faces
        self.model = place(Classifier(list(faces.classes), **config.network), config.torch_device())
        self.models = {"model": self.model}
        self.averaged = {"model": self.model}
        self.log_prior = log_prior(faces)
        self.present = faces.present.to(config.torch_device())
        parameters = self.model.parameters()
        self.optimizers = {
            "model": torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        }

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """One optimiser step on a batch drawn by the classes' own frequency."""
        return descend("model", lambda count: self._loss(count, rng))

    def _loss(self, count: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        images, labels, _ = self.faces.draw(count, rng)
        with self.config.autocast():
            logits = self.model(losses.augment(images, rng)).float()
        loss = losses.cross_entropy(logits + self.log_prior.to(logits), labels, self.present, label_smoothing=0.05)
        return loss, {"loss": loss.detach(), "accuracy": (logits.argmax(1) == labels).float().mean()}

    def finish(self, model: Classifier) -> dict[str, Any]:
        """Calibrate on the held-out faces; returns temperature, thresholds and figures for the weights' header."""
        images, labels = self.faces.held_out()
        return calibrate(model, images, labels, self.faces.classes)


def log_prior(faces: Faces) -> Tensor:
    """Log frequency (K,) of each class among the training faces: what the logits are adjusted by."""
    counts = torch.bincount(faces.labels[faces.training], minlength=len(faces.classes)).float()
    return (counts / counts.sum()).log()


def calibrate(model: Classifier, images: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What a judge's header says: its temperature, thresholds and figures on held-out faces.

    `images` (N, 1, 48, 48) are gray in [0, 1], `labels` (N,) index `classes`, and those of which there is no face are left out.
    """
    logits = torch.cat([model(batch) for batch in torch.split(images, 256)]).float()
    temperature = fit_temperature(logits, labels)
    probability = (logits / temperature).softmax(1)
    present = {k: name for k, name in enumerate(classes) if (labels == k).any()}
    own = {name: probability[labels == k, k] for k, name in present.items()}
    recall = {name: (logits[labels == k].argmax(1) == k).float().mean() for k, name in present.items()}
    return {
        "temperature": temperature,
        "thresholds": {name: round(p.quantile(0.25).item(), 4) for name, p in own.items()},
        "held_out": len(labels),
        "held_out_accuracy": round((logits.argmax(1) == labels).float().mean().item(), 4),
        "held_out_recall": {name: round(share.item(), 4) for name, share in recall.items()},
    }


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Temperature (Guo et al. 2017) that minimises the class-balanced cross-entropy of logits (N, K) on labels (N,)."""
    weight = 1 / torch.bincount(labels, minlength=logits.shape[1]).clamp(min=1).float()
    grid = torch.logspace(-1, 1, 81)
    scores = [F.cross_entropy(logits / t, labels, weight=weight).item() for t in grid]
    return round(float(grid[int(np.argmin(scores))]), 4)


class Judge:
    """Reads expressions: calibrated class probabilities under equal class frequencies."""

    def __init__(self, loaded: weights.Weights, device: str = "cpu") -> None:
        self.name, self.digest = loaded.name, loaded.digest
        self.full_name = f"{self.name}@{self.digest}"
        self.device = torch.device(device)
        self.model = place(loaded.module, self.device)
        self.classes: list[str] = list(loaded.info["classes"])
        self.thresholds: dict[str, float] = loaded.info["thresholds"]
        self.trained_with: str | None = loaded.info.get("trained_with")
        """The kind of network that this judge was trained together with, and that learned to suit it; None: it was not."""
        self._temperature: float = loaded.info["temperature"]

    @torch.inference_mode()
    def predict(self, gray: np.ndarray) -> np.ndarray:
        """Gray faces (N, 48, 48) in [0, 1] → probabilities (N, classes), rows summing to one."""
        batch = torch.from_numpy(np.ascontiguousarray(gray, dtype=np.float32))[:, None].to(self.device)
        return self.calibrated(self.model(batch).cpu().numpy())

    def read(self, crops: np.ndarray, classes: Sequence[str], logits: np.ndarray | None = None) -> np.ndarray | None:
        """Probabilities (N, K) of crops (N, 48, 48) uint8 by a dataset's classes; None where the judge does not know them all.

        `logits` (N, own classes) are the network's, where it has seen the crops already.
        """
        wanted = [canonical_label(name) for name in classes]
        if not set(wanted) <= set(self.classes):
            return None
        columns = [self.classes.index(name) for name in wanted]
        if logits is not None:
            return self.calibrated(logits)[:, columns]
        batches = [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]
        return np.concatenate([self.predict(batch.astype(np.float32) / 255)[:, columns] for batch in batches])

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """The network's logits (N, classes) → probabilities (N, classes), rows summing to one."""
        probabilities: np.ndarray = (torch.from_numpy(np.array(logits)) / self._temperature).softmax(1).numpy()
        return probabilities


def soft_labels(read_as: np.ndarray) -> np.ndarray:
    """What a judge reads (N, K) float32 as labels: rows sum to one, the classes that there are being all that can be meant."""
    return np.round(read_as / read_as.sum(axis=1, keepdims=True), 4).astype(np.float32)


def load_judge(spec: str, device: str = "cpu") -> Judge:
    """Load a judge by built-in name, path or hf://; raises WeightsError if the weights are of another kind."""
    return Judge(weights.load(spec, "classifier"), device)
