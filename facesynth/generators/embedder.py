"""How the fallback embedder is trained: self-supervised, one face under every change but that of the person is one identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from facesynth import weights
from facesynth.generators import losses
from facesynth.generators.networks import Editor, Embedder, apply_edit, place

if TYPE_CHECKING:
    from facesynth.recipe import Descend, Logs, TrainConfig
    from facesynth.training_data import Faces


class EmbedderRecipe:
    """SimCLR (Chen et al. 2020) on faces: two views of one face attract, other faces repel.

    Views differ by geometry, light and a random smooth warp, and, where the preset names an `editor`, by expression: one of
    them is edited into a random class at a random intensity.
    """

    kind = "embedder"

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        self.config, self.faces = config, faces
        self.model = place(Embedder(**config.network), config.torch_device())
        self.models = {"model": self.model}
        self.averaged = {"model": self.model}
        parameters = self.model.parameters()
        self.optimizers = {
            "model": torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        }
        self.editor: Editor | None = None
        if config.editor:
            self.editor = place(weights.load(config.editor, "editor").module, config.torch_device())

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """One optimiser step on two views of a batch of faces."""
        return descend("model", lambda count: self._loss(count, rng))

    def _loss(self, count: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        images, _, _ = self.faces.draw(count, rng)
        with self.config.autocast():
            second = losses.random_warp(self.change_expression(images, rng), rng)
            views = torch.cat([losses.augment(images, rng), losses.augment(second, rng)])
            embedded = self.model(views)
        first, second = embedded.chunk(2)
        loss = losses.contrastive(first, second, temperature=0.1)
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def change_expression(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Edit each face (N, 1, 48, 48) into a random class at a random intensity; unchanged without an editor."""
        if self.editor is None:
            return images
        count, classes = len(images), len(self.editor.config["classes"])
        source, target = torch.randint(classes, (2, count), generator=rng).to(images.device)
        style = (torch.rand(count, self.editor.config["style"], generator=rng) * 2 - 1).to(images)
        intensity = torch.rand(count, 1, 1, 1, generator=rng).to(images)
        return apply_edit(images, self.editor(images, source, target, style), intensity)

    def finish(self, model: Embedder) -> dict[str, Any]:
        """Figures on held-out faces: how near two views of one face are, and how far two faces."""
        images, _ = self.faces.held_out()
        images = images[:1000]
        rng = torch.Generator().manual_seed(0)
        views = [model(images), model(losses.augment(self.change_expression(images, rng), rng, cutout=0.0))]
        cosines = views[0] @ views[1].T
        others = cosines[~torch.eye(len(images), dtype=torch.bool)]
        threshold = others.quantile(0.999) if len(others) < 2**24 else others[: 2**24].quantile(0.999)
        return {
            "same_face_cosine": round(cosines.diagonal().median().item(), 4),
            "impostor_cosine_99.9": round(threshold.item(), 4),
            "true_accepts_at_1e-3": round((cosines.diagonal() > threshold).float().mean().item(), 4),
        }
