"""How a generator and an expression recogniser are trained together, after FESGAN (Yan et al. 2020, arXiv 2002.02194).

From the paper's abstract: a GAN that draws new people from a prior is trained first; then a recogniser is learned jointly
with it. Its classification loss teaches both, and an intra-class loss pulls synthetic images to real ones of their class,
with real-data-guided back-propagation (RDBP): the real ones lead and are not pulled themselves. What that leaves open is
decided here:

- The networks, the adversarial loss and the condition are any that `GanSettings` can combine.
- A step is one of the generator's training, then one of the recogniser, each with the other held still.
- The recogniser sees real images as often as they come and synthetic ones of all classes alike, augmented as a judge's,
  each kind with its logits adjusted by its own class frequencies (Menon et al. 2021).
- The intra-class loss is taken on pooled features, to the mean of the real ones of the class in the batch. It is part of
  the recogniser's loss and of the generator's.
- Where the generator is taught, the recogniser reads by its running statistics, so that no image changes what is read
  from another. Where itself is, batch normalisation sees real and synthetic images as one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facesynth import expression
from facesynth.generators import losses
from facesynth.generators.gan import GanRecipe
from facesynth.generators.networks import Classifier, place
from facesynth.geometry import CROP
from facesynth.recipe import Companion

if TYPE_CHECKING:
    from facesynth.recipe import Descend, Logs, TrainConfig
    from facesynth.training_data import Faces

LUMA = (0.299, 0.587, 0.114)
"""Of RGB, as `photo.to_gray` has it."""

WEIGHTS = {"synthetic": 1.0, "expression": 0.1, "intra_class": 0.1}
"""Of the losses that come to a generator's, where the preset says nothing; see `JointRecipe`."""


class JointRecipe(GanRecipe):
    """A `GanRecipe` until `joint.from_images` images are seen; from then on a recogniser is learned, too.

    Three losses can be weighed beside the GAN's: `synthetic`, what a synthetic image counts for in the recogniser's loss
    where a real one counts 1; `expression`, the recogniser's cross-entropy on generated images, in the generator's loss;
    and `intra_class`, in both. A large `intra_class` makes the faces of a class alike.

    It leaves the generator, and beside it the recogniser as recognizer.safetensors, calibrated like a judge. The generator
    has learned to be read by this recogniser, which therefore must not be what scores its images.
    """

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        super().__init__(config, faces)
        self.recognizer = place(Classifier(list(faces.classes), **config.network), config.torch_device())
        self.log_prior = expression.log_prior(faces)
        self.models["recognizer"] = self.recognizer
        self.averaged["recognizer"] = self.recognizer
        self.optimizers["recognizer"] = torch.optim.AdamW(
            self.recognizer.parameters(),
            config.learning_rate * config.joint.recognizer_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.defaults |= WEIGHTS
        self.together = False

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """As the generator's alone; then, once both are trained together, one update of the recogniser."""
        self.together = number * self.config.batch_size >= self.config.joint.from_images
        self.recognizer.requires_grad_(False)
        logs = super().step(rng, number, descend)
        self.recognizer.requires_grad_(True)
        if self.together:
            logs |= descend("recognizer", lambda count: self._recognizer_loss(count, rng))
        return logs

    def _with_others(
        self, total: Tensor, logs: Logs, images: tuple[Tensor, Tensor], labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """The generator's loss with what the recogniser says of the generated images, which are `images[0]`."""
        if not self.together:
            return total, logs
        generated, real = images
        self.recognizer.eval()
        with self.config.autocast():
            features, logits = self._read(self._seen(generated, rng))
            with torch.no_grad():
                guides, _ = self._read(self._seen(real, rng))
        told = F.cross_entropy(logits, labels)
        apart = intra_class(features, labels, guides, labels)
        logs |= {"expression": told.detach(), "generator_intra_class": apart.detach()}
        return total + self.weight["expression"] * told + self.weight["intra_class"] * apart, logs

    def _recognizer_loss(self, count: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        synthetic = max(1, round(count * self.config.joint.share))
        images, labels, _ = self.faces.draw(max(1, count - synthetic), rng)
        asked = self.faces.draw_labels(synthetic, rng).to(labels)
        self.recognizer.train()
        with self.config.autocast():
            with torch.no_grad():
                generated = self.generator(self._noise(synthetic, rng), asked, self.emphasis)
            both = torch.cat([self._seen(2 * images - 1, rng), self._seen(generated, rng)])
            features, logits = (part.tensor_split([len(labels)]) for part in self._read(both))
        present = self.faces.present.to(labels)
        of_real = losses.cross_entropy(logits[0] + self.log_prior.to(logits[0]), labels, present, label_smoothing=0.05)
        of_synthetic = losses.cross_entropy(logits[1], asked, present, label_smoothing=0.05)
        apart = intra_class(features[1], asked, features[0], labels)
        counts_for = synthetic * self.weight["synthetic"]
        told = (len(labels) * of_real + counts_for * of_synthetic) / (len(labels) + counts_for)
        logs = {
            "recognizer": told.detach(),
            "intra_class": apart.detach(),
            "accuracy": (logits[0].detach().argmax(1) == labels).float().mean(),
            "synthetic_accuracy": (logits[1].detach().argmax(1) == asked).float().mean(),
        }
        return told + self.weight["intra_class"] * apart, logs

    def _read(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Gray faces (N, 1, 48, 48) in [0, 1] → the recogniser's pooled features (N, D) and its logits (N, classes)."""
        features = self.recognizer.trunk(faces - 0.5)
        return features.float(), self.recognizer.head(self.recognizer.dropout(features)).float()

    @staticmethod
    def _seen(images: Tensor, rng: torch.Generator) -> Tensor:
        """Images (N, C, S, S) in [-1, 1] as the recogniser learns from them."""
        return losses.augment(as_crops((images + 1) / 2), rng)

    def beside(self, averaged: dict[str, Any]) -> dict[str, Companion]:
        """The recogniser, calibrated on the held-out faces."""
        images, labels = self.faces.held_out()
        figures = expression.calibrate(averaged["recognizer"], as_crops(images), labels, self.faces.classes)
        return {"recognizer": Companion("classifier", averaged["recognizer"], {"trained_with": self.kind} | figures)}


def intra_class(synthetic: Tensor, asked: Tensor, real: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of synthetic features (M, D) to the mean of the real ones (N, D) of their class; over D, too.

    `asked` (M,) and `labels` (N,) are their classes. A class without a real face in the batch counts for nothing. The real
    features are guides (RDBP): no gradient reaches them.
    """
    alike = (asked[:, None] == labels[None]).to(real)
    found = alike.sum(1)
    guides = alike @ real.detach() / found.clamp(min=1)[:, None]
    distances = (synthetic - guides).square().mean(1)
    return (distances * (found > 0)).sum() / (found > 0).sum().clamp(min=1)


def as_crops(images: Tensor) -> Tensor:
    """Images (N, C, S, S) as a judge reads them, (N, 1, 48, 48) gray, in the same range."""
    if images.shape[1] == 3:
        images = (images * torch.tensor(LUMA).to(images)[:, None, None]).sum(1, keepdim=True)
    return images if images.shape[2] == CROP else F.interpolate(images, size=CROP, mode="area")
