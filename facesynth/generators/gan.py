"""How a generator learns to draw faces from noise: any network of `latent` under any loss and condition of `GanSettings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facesynth.generators import losses
from facesynth.generators.adversary import Adversary
from facesynth.generators.latent import Critic, Generator, Layout, layout_of
from facesynth.generators.networks import place
from facesynth.generators.samples import by_class, diversities, grid

if TYPE_CHECKING:
    from facesynth.recipe import Descend, GanSettings, Logs, TrainConfig
    from facesynth.training_data import Faces

CRITIC_NORM = {"wasserstein-gp": "layer", "relativistic": "none"}
"""The critic's normalisation under these losses; batch under others. A gradient penalty is about single images, which batch
normalisation mixes; Gulrajani et al. 2017 (section 4) put layer normalisation there, R3GAN does without."""

COLUMNS = 8
COMPARED = 256
"""Images of a class that the closing figure looks at, at most."""

CHECKED = 64
"""Images of a class that are looked at during a training."""


def layout(settings: GanSettings) -> Layout:
    """Size, channels and width of the images and networks of a training."""
    return layout_of(settings.network, settings.channels, settings.width)


class GanRecipe:
    """A generator against a critic, on images in [-1, 1].

    A conditional generator sees all classes equally often, real and asked for, because the rare ones are what it is for;
    another sees faces as often as they come.
    """

    kind = "generator"

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        self.config, self.faces, self.settings = config, faces, config.gan
        self.adversary = Adversary(config.gan.loss, config.gan.label_smoothing, config.penalty_every)
        device = config.torch_device()
        classes = list(faces.classes)
        wanted = layout(config.gan)
        network, condition, loss = config.gan.network, config.gan.condition, config.gan.loss
        shape = {"channels": wanted.channels, "width": wanted.width}
        self.generator = place(
            Generator(network, classes, config.gan.latent, conditional=condition != "none", **shape), device
        )
        # Dropout is for the classifier that the critic is under cross-entropy; distances and slopes need the whole critic.
        dropout = 0.3 if loss == "bce" else 0.0
        norm = CRITIC_NORM.get(loss, "batch")
        self.critic = place(Critic(network, len(classes), condition, norm, dropout, **shape), device)
        self.models: dict[str, torch.nn.Module] = {"generator": self.generator, "critic": self.critic}
        self.averaged: dict[str, torch.nn.Module] = {"generator": self.generator}
        rates = {"generator": config.learning_rate, "critic": config.learning_rate * config.critic_rate}
        self.optimizers = {name: self._optimizer(model, rates[name]) for name, model in self.models.items()}
        self.defaults = {"class": 1.0, "penalty": self.adversary.penalty_weight}
        self.weight: dict[str, float] = {}
        self.emphasis = 1.0
        self._fixed = torch.randn(COLUMNS**2, config.gan.latent, generator=torch.Generator().manual_seed(config.seed))

    def _optimizer(self, model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        if self.settings.optimizer == "rmsprop":
            return torch.optim.RMSprop(model.parameters(), rate)
        return torch.optim.Adam(model.parameters(), rate, betas=self.settings.betas, fused=True)

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """`critic_steps` updates of the critic, each on fresh images, then one of the generator."""
        self.weight = self.defaults | self.config.loss_weights(number * self.config.batch_size)
        self.emphasis = self._emphasis(number * self.config.batch_size)
        logs: Logs = {}
        for _ in range(self.settings.critic_steps):
            logs = descend("critic", lambda count: self._critic_loss(count, rng, number))
            if self.settings.loss == "wasserstein":
                self._clip()
        self.critic.requires_grad_(False)
        logs |= descend("generator", lambda count: self._generator_loss(count, rng))
        self.critic.requires_grad_(True)
        return logs

    def _critic_loss(self, count: int, rng: torch.Generator, number: int) -> tuple[Tensor, Logs]:
        real, labels = self._real(count, rng)
        with self.config.autocast():
            with torch.no_grad():
                generated = self.generator(self._noise(count, rng), labels, self.emphasis)
            real, generated = self._augmented(real, rng), self._augmented(generated, rng)
            real_score, real_logits = self.critic(real, labels, self.emphasis)
            score, logits = self.critic(generated, labels, self.emphasis)
        total = self.adversary.separation(real_score, score)
        logs = {"critic": total.detach()}
        if logits is not None:
            told = F.cross_entropy(real_logits, labels)
            logs["critic_class"] = told.detach()
            total = total + self.weight["class"] * (told + F.cross_entropy(logits, labels))

        def score_of(images: Tensor) -> Tensor:
            return self.critic(images, labels, self.emphasis)[0]

        penalty = self.adversary.penalty(score_of, (real, generated), self.weight["penalty"], rng, number)
        if penalty is not None:
            total = total + penalty
        return total, logs

    @torch.no_grad()
    def _clip(self) -> None:
        for parameter in self.critic.parameters():
            parameter.clamp_(-self.settings.clip, self.settings.clip)

    def _generator_loss(self, count: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        real, labels = self._real(count, rng)
        with self.config.autocast():
            generated = self.generator(self._noise(count, rng), labels, self.emphasis)
            score, logits = self.critic(self._augmented(generated, rng), labels, self.emphasis)
            real_score = None
            if self.adversary.paired:
                real_score = self.critic(self._augmented(real, rng), labels, self.emphasis)[0]
        total = self.adversary.deception(score, real_score)
        logs = {"generator": total.detach()}
        if logits is not None:
            told = F.cross_entropy(logits, labels)
            logs["generator_class"] = told.detach()
            total = total + self.weight["class"] * told
        return self._with_others(total, logs, (generated, real), labels, rng)

    def _with_others(
        self, total: Tensor, logs: Logs, images: tuple[Tensor, Tensor], labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """The generator's loss with what a recipe built on this one adds; `images` are (generated, real) ones of `labels`."""
        return total, logs

    def _real(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Real images (count, C, S, S) in [-1, 1] with their labels."""
        if not self.generator.conditional:
            images, labels, _ = self.faces.draw(count, rng)
        else:
            labels = self.faces.draw_labels(count, rng)
            images = self.faces.draw_of(labels, rng)
        return 2 * images - 1, labels.to(images.device)

    def _emphasis(self, images: int) -> float:
        """How much of the condition is let in after so many images: 0 to 1."""
        start, end = self.settings.transition
        return 1.0 if images >= end else max(0.0, (images - start) / (end - start))

    def _augmented(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Images in [-1, 1] as the critic sees them."""
        strength = self.settings.diffaugment
        if not strength:
            return images
        return 2 * losses.augment((images + 1) / 2, rng, strength, cutout=strength / 2) - 1

    def _noise(self, count: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(count, self.settings.latent, generator=rng)
        return noise.to(self.config.torch_device())

    def sheet(self, generator: Generator) -> Tensor:
        """Faces from fixed noise: an image (H, W) or (H, W, 3) in [0, 1].

        Rows are classes and columns hold the noise; where there is no condition, each face has a noise of its own.
        """
        noise = self._fixed
        labels = torch.zeros(len(noise), dtype=torch.long)
        if generator.conditional:
            classes = len(self.faces.classes)
            noise, labels = noise[:COLUMNS].repeat(classes, 1), torch.arange(classes).repeat_interleave(COLUMNS)
        return grid(self._drawn(generator, noise, labels), COLUMNS)

    def _drawn(self, generator: Generator, noise: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, S, S) in [0, 1], as the finished generator draws them."""
        device = self.config.torch_device()
        parts = zip(torch.split(noise.to(device), 32), torch.split(labels.to(device), 32), strict=True)
        return torch.cat([(generator(*part, self.settings.emphasis) + 1) / 2 for part in parts])

    def finish(self, generator: Generator) -> dict[str, Any]:
        """For the weights' header: how faces are drawn, and `samples.diversities` per class, or of all without a condition."""
        sampling = {"sampling": {"emphasis": self.settings.emphasis}} if generator.conditional else {}
        return {**sampling, "diversity": self._diversity(generator, COMPARED)}

    def check(self, generator: Generator) -> dict[str, float]:
        """Diversity on fewer faces, as diversity/CLASS."""
        return {f"diversity/{name}": value for name, value in self._diversity(generator, CHECKED).items()}

    def _diversity(self, generator: Generator, count: int) -> dict[str, float]:
        rng = torch.Generator().manual_seed(self.config.seed)
        groups = by_class(self.faces) if generator.conditional else {"all": self.faces.training}

        def drawn(k: int, count: int) -> Tensor:
            noise = torch.randn(count, self.settings.latent, generator=rng)
            return self._drawn(generator, noise, torch.full((count,), k))

        return diversities(self.faces, groups, drawn, count, rng)
