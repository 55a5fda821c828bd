"""The expression recogniser: how it mixes real with synthetic faces, how it is trained, and how it reads.

An uplift trains it in many ways on the same faces; `facesynth train --preset recognizer` trains the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from facesynth.console import UsageError, note, printable, warn
from facesynth.curves import draw_curves, save_figure
from facesynth.expression import fit_temperature, load_judge, soft_labels
from facesynth.generators import losses
from facesynth.generators.networks import Classifier, place
from facesynth.recipe import Descend, Logs, RecognizerSettings, TrainConfig
from facesynth.significance import recognition
from facesynth.training_data import Faces, load_split

Array = NDArray[Any]

FIRST_ENDS = 0.6
"""Share of the training after which `synthetic: first` shows real images alone."""

CHECKED = 1000
"""Held-out faces that are looked at during a training."""


@dataclass(frozen=True)
class Examples:
    """Faces to train on: crops (N, 48, 48) uint8, labels (N,) int64, synthetic (N,) bool, weights (N,) float in the loss.

    `probabilities` (N, K) float are a judge's, for soft labels.
    """

    crops: Tensor
    labels: Tensor
    synthetic: Tensor
    weights: Tensor
    classes: tuple[str, ...]
    probabilities: Tensor | None = None


# --- which faces ------------------------------------------------------------------------------------------------------


class _ByClass:
    """Rows in groups by class, to draw one of a given class."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        self._order = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=classes)
        self._starts = self.counts.cumsum(0) - self.counts

    def draw(self, classes: Tensor, chance: Tensor) -> Tensor:
        """One row of each class in `classes` (B,), as `chance` (B,) in [0, 1) says; classes without rows give any row."""
        within = (chance * self.counts[classes]).long()
        return self._order[(self._starts[classes] + within).clamp(max=len(self._order) - 1)]


class Mixer:
    """Draws training faces as the settings say: rows of `Examples`, and their weights in the loss.

    A batch is drawn from the base (real images, with whatever `rare`, `duplicates` or `only` make of them); then `share`
    and `first` put synthetic images of the same class in some places. The same random numbers thus draw the same real
    images, whatever the settings. Where a class counts for more or less because its images have other weights than 1,
    the weights are scaled until each class counts as often as `sampling` draws it; `rare` and `duplicates` under natural
    sampling alone leave that as it comes.
    """

    def __init__(self, examples: Examples, settings: RecognizerSettings) -> None:
        self.settings, self.labels = settings, examples.labels
        count = len(examples.classes)
        self.weights = torch.where(examples.synthetic, settings.synthetic_weight, 1.0) * examples.weights
        self._real = (~examples.synthetic).nonzero()[:, 0]
        self._made = examples.synthetic.nonzero()[:, 0]
        self.base, self.base_weights = self._choose_base()
        if not len(self.base) or (settings.synthetic in ("share", "first") and not len(self._made)):
            raise UsageError(f"there is no image to train on with synthetic: {settings.synthetic}; give some.")
        labels = self.labels[self.base]
        self._base_by_class, self._made_by_class = _ByClass(labels, count), _ByClass(self.labels[self._made], count)
        self._present = self._base_by_class.counts.nonzero()[:, 0]
        base_weight = torch.bincount(labels, self.base_weights, minlength=count)
        made_weight = torch.bincount(self.labels[self._made], self.weights[self._made], minlength=count)
        balanced = settings.sampling == "balanced"
        self._base_mean = base_weight / self._base_by_class.counts.clamp(min=1) if balanced else torch.ones(count)
        self._made_mean = made_weight / self._made_by_class.counts.clamp(min=1)
        self.prior = (self._base_by_class.counts > 0).float() if balanced else base_weight
        """Frequency of each class as it is trained on, up to a factor."""

    def _choose_base(self) -> tuple[Tensor, Tensor]:
        """Rows that batches are drawn from, and their weights."""
        kind = self.settings.synthetic
        if kind == "only":
            return self._made, self.weights[self._made]
        extra = torch.empty(0, dtype=torch.long)
        if kind in ("rare", "duplicates"):
            counts = torch.bincount(self.labels[self._real], minlength=int(self.labels.max()) + 1)
            extra = self._made[(counts < counts.max())[self.labels[self._made]]]
        if kind == "rare":
            return torch.cat([self._real, extra]), torch.cat([self.weights[self._real], self.weights[extra]])
        copies = self._copies(self.labels[extra])
        copy_weights = self.weights[copies] * self.settings.synthetic_weight
        return torch.cat([self._real, copies]), torch.cat([self.weights[self._real], copy_weights])

    def _copies(self, labels: Tensor) -> Tensor:
        """A real row for each of `labels`, each image of a class as often as the others, give or take one."""
        shuffled = self._real[torch.randperm(len(self._real), generator=torch.Generator().manual_seed(0))]
        copies = [torch.empty(0, dtype=torch.long)]
        for k, wanted in enumerate(torch.bincount(labels).tolist()):
            rows = shuffled[self.labels[shuffled] == k]
            copies.append(rows.repeat(-(-wanted // max(1, len(rows))))[:wanted])
        return torch.cat(copies)

    def share(self, progress: float) -> float:
        """Share of the drawn images whose place a synthetic one takes, when `progress` (0 to 1) of the training is done."""
        if self.settings.synthetic == "share":
            return self.settings.synthetic_share
        if self.settings.synthetic == "first":
            return self.settings.synthetic_share * max(0.0, 1 - progress / FIRST_ENDS)
        return 0.0

    def draw(self, count: int, progress: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (count,) of the examples and their weights (count,)."""
        chance = torch.rand(4, count, generator=rng, dtype=torch.float64)
        if self.settings.sampling == "balanced":
            classes = self._present[(chance[0] * len(self._present)).long()]
            places = self._base_by_class.draw(classes, chance[1])
        else:
            places = (chance[1] * len(self.base)).long()
        rows, weights = self.base[places], self.base_weights[places]
        share = self.share(progress)
        has_made = self._made_by_class.counts > 0
        if share:
            swapped = (chance[2] < share) & has_made[self.labels[rows]]
            made = self._made[self._made_by_class.draw(self.labels[rows], chance[3])]
            rows, weights = torch.where(swapped, made, rows), torch.where(swapped, self.weights[made], weights)
        expected = torch.where(has_made, torch.lerp(self._base_mean, self._made_mean, share), self._base_mean)
        return rows, weights / expected[self.labels[rows]].clamp(min=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


class Recognizer:
    """One way to train the classifier on some faces; a `Recipe` but for its closing figures."""

    kind = "classifier"

    def __init__(self, config: TrainConfig, examples: Examples) -> None:
        self.config, self.settings = config, config.recognizer
        self.device = config.torch_device()
        self.crops, self.labels = examples.crops.to(self.device), examples.labels
        self.mixer = Mixer(examples, self.settings)
        self._probabilities = self._of_judge(examples)
        self.log_prior = self.mixer.prior.clamp(min=0.5).log().to(self.device)
        self.present = torch.arange(len(examples.classes), device=self.device)
        self.model = place(Classifier(list(examples.classes), **config.network), self.device)
        self.models = {"model": self.model}
        self.averaged = {"model": self.model}
        parameters = self.model.parameters()
        optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": optimizer}

    def _of_judge(self, examples: Examples) -> Tensor | None:
        if not self.settings.soft_labels:
            return None
        if examples.probabilities is None:
            raise UsageError("soft_labels needs a judge that knows the classes: give one, for example judge: judge-48.")
        return examples.probabilities

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """One optimiser step, the `number`-th, on faces drawn by the `Mixer`."""
        progress = number * self.config.batch_size / self.config.images
        return descend("model", lambda count: self._loss(count, progress, rng))

    def _loss(self, count: int, progress: float, rng: torch.Generator) -> tuple[Tensor, Logs]:
        rows, weights = self.mixer.draw(count, progress, rng)
        images = self.crops[rows.to(self.device)][:, None].float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        labels, weights = self.labels[rows].to(self.device), weights.float().to(self.device)
        told = self._told(rows, labels)
        images = self.augment(images, rng)
        with self.config.autocast():
            if self.settings.mixup:
                loss, logits = self._mixed_loss(images, told, weights)
            else:
                logits = self.model(images).float()
                loss = (self._losses(logits, told) * weights).sum() / weights.sum().clamp(min=1e-6)
        return loss, {"loss": loss.detach(), "accuracy": (logits.detach().argmax(1) == labels).float().mean()}

    def _told(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The labels (B,), or soft ones (B, K) where a judge has a share in them."""
        if self._probabilities is None:
            return labels
        read_as = self._probabilities[rows].to(labels.device)
        return torch.lerp(F.one_hot(labels, read_as.shape[1]).float(), read_as, self.settings.soft_labels)

    def augment(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Light: flips, small moves and light changes; strong: twice as large, and a patch cut out of half the faces."""
        strong = self.settings.augmentation == "strong"
        return losses.augment(images, rng, strength=1.0 if strong else 0.5, cutout=0.5 if strong else 0.0)

    def _mixed_loss(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Loss on blends of each face with the face before it in the batch (mixup), and the logits."""
        alpha = torch.full((len(images),), self.settings.mixup)
        part = torch.distributions.Beta(alpha, alpha).sample().to(images)
        blend = part[:, None, None, None]
        logits = self.model(images * blend + images.roll(1, 0) * (1 - blend)).float()
        own, other = part * weights, (1 - part) * weights.roll(1)
        both = self._losses(logits, labels) * own + self._losses(logits, labels.roll(1)) * other
        return both.sum() / (own + other).sum().clamp(min=1e-6), logits

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.settings.loss == "logit-adjusted":
            logits = logits + self.log_prior
        smoothing = self.settings.label_smoothing
        return losses.cross_entropy(logits, labels, self.present, smoothing, reduction="none")


@torch.no_grad()
def read(model: Any, crops: Array, config: TrainConfig, batch: int = 512) -> Array:
    """Log-odds (N, K) float32 that the classifier gives crops (N, 48, 48) uint8: the mean of each face and its mirror image."""
    device = config.torch_device()
    found = [torch.empty(0, len(model.config["classes"]))]
    for start in range(0, len(crops), batch):
        images = torch.from_numpy(np.array(crops[start : start + batch]))[:, None].to(device).float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        with config.autocast():
            found.append((model(images).float() + model(images.flip(3)).float()).cpu() / 2)
    return torch.cat(found).numpy()


class RecognizerRecipe(Recognizer):
    """The user's own recogniser: trained on real and synthetic faces, measured on held-out and on test faces."""

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        assert faces.origins is not None, "read the faces with load_examples"
        rows = faces.training
        synthetic, weights = (torch.from_numpy(a)[rows] for a in (faces.origins.synthetic, faces.origins.weights))
        parts = faces.crops[rows], faces.labels[rows], synthetic, weights, faces.classes
        examples = Examples(*parts, probabilities=_probabilities(config, faces, rows))
        super().__init__(_possible(config, examples), examples)
        self.faces, self._synthetic, self.present = faces, synthetic, faces.present.to(self.device)
        self._held_out = faces.crops[faces.held].numpy(), faces.labels[faces.held].numpy()

    def check(self, model: Classifier) -> dict[str, float]:
        """Accuracy on some held-out faces, for the training curve."""
        crops, labels = (part[:: -(-len(part) // CHECKED)] for part in self._held_out)
        right = read(model, crops, self.config).argmax(axis=1) == labels
        return {"held_out_accuracy": round(float(right.mean()), 4)}

    def finish(self, model: Classifier) -> dict[str, Any]:
        """Scores on the held-out faces and, where there is one, on the test split; a temperature and thresholds as a judge's.

        The test split is read here for the first time; `test_no_copies` leaves out the faces that equal a
        training or held-out one pixel by pixel.
        """
        crops, labels = self._held_out
        logits = torch.from_numpy(read(model, crops, self.config))
        temperature = fit_temperature(logits, torch.from_numpy(labels))
        probabilities = (logits / temperature).softmax(1).numpy()
        own = {self.faces.classes[k]: probabilities[labels == k, k] for k in self.faces.present.tolist()}
        figures: dict[str, Any] = {
            "trained_on": {"real": int((~self._synthetic).sum()), "synthetic": int(self._synthetic.sum())},
            "temperature": temperature,
            "thresholds": {name: round(float(np.quantile(p, 0.25)), 4) for name, p in own.items()},
            "held_out": self._scores(model, crops, labels),
        }
        assert self.faces.src is not None
        crops, labels = load_split(self.faces.src, "test")
        labels = self.faces.places.numpy()[labels]
        if len(labels):
            known = {crop.tobytes() for crop in self.faces.crops.numpy()}
            fresh = np.array([crop.tobytes() not in known for crop in crops])
            figures["test"] = self._scores(model, crops, labels)
            figures["test_no_copies"] = self._scores(model, crops[fresh], labels[fresh])
        return figures

    def _scores(self, model: Classifier, crops: Array, labels: Array) -> dict[str, Any]:
        read_as = read(model, crops, self.config).argmax(axis=1)
        return recognition(labels, read_as, self.faces.classes).model_dump()

    def draw(self, out: Path, figures: dict[str, Any]) -> None:
        """Leave curves.png (from log.jsonl) and confusion.png (test split, else held-out faces) in `out`."""
        accuracy = {"accuracy": "in training (augmented)", "held_out_accuracy": "held-out faces"}
        draw_curves(out / "curves.png", {"loss": {"loss": "loss in training"}, "accuracy": accuracy})
        part = "test" if "test" in figures else "held_out"
        _draw_confusion(out / "confusion.png", figures[part], self.faces.classes, part.replace("_", "-"))


def _possible(config: TrainConfig, examples: Examples) -> TrainConfig:
    """The settings without what these faces do not allow, so that a preset is good for every dataset."""
    update: dict[str, Any] = {}
    if config.recognizer.synthetic in ("share", "first") and not examples.synthetic.any():
        note("no synthetic image is there to train on: real ones alone")
        update["synthetic"] = "none"
    if config.recognizer.soft_labels and config.judge and examples.probabilities is None:
        warn(f"the judge {printable(config.judge)} does not know all classes: labels stay as they are.")
        update["soft_labels"] = 0.0
    return config.model_copy(update={"recognizer": config.recognizer.model_copy(update=update)})


def _probabilities(config: TrainConfig, faces: Faces, rows: Tensor) -> Tensor | None:
    """What the judge reads in the faces at `rows`, where the settings want soft labels and it knows the classes.

    Classes without faces are not learnt, so none of what it reads goes to them.
    """
    if not config.recognizer.soft_labels or config.judge is None:
        return None
    found = load_judge(config.judge, str(config.torch_device())).read(faces.crops[rows].numpy(), faces.classes)
    if found is None:
        return None
    has_faces = np.isin(np.arange(len(faces.classes)), faces.present.numpy())
    return torch.from_numpy(soft_labels(found * has_faces))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _draw_confusion(path: Path, scores: dict[str, Any], classes: tuple[str, ...], part: str) -> None:
    """Shares of each true class (rows) that are read as each class (columns)."""
    counts = np.array(scores["confusion"], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 + 0.75 * len(classes),) * 2, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="read as", ylabel="true class", title=f"{part} faces: accuracy {scores['accuracy']:.1%}")
    save_figure(path, figure)
