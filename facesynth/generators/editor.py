"""The expression editor: how it is trained, and how it edits a face of any size and colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from facesynth import weights
from facesynth.generators import losses
from facesynth.generators.networks import Discriminator, Editor, apply_edit, place, warp
from facesynth.generators.proposal import Edits
from facesynth.generators.samples import diversity
from facesynth.geometry import CROP
from facesynth.target import match

Array = npt.NDArray[np.float32]

CHECKED = 64
"""Held-out faces, in all and of a class, that are looked at during a training."""

if TYPE_CHECKING:
    from facesynth.recipe import Descend, Logs, TrainConfig
    from facesynth.training_data import Faces


@dataclass(frozen=True)
class _Edited:
    """Edited faces (N, 1, 48, 48) with real ones of the target class, the targets (N,) and the styles (N, S)."""

    fake: Tensor
    real: Tensor
    target: Tensor
    style: Tensor


class EditorRecipe:
    """Adversarial face-to-face translation (StarGAN's idea, Choi et al. 2018) with what keeps rare classes alive.

    Target classes are drawn evenly and sources from all classes, so the variety of people in a rare class comes from the
    plentiful ones. Relativistic loss with lazy R1 + R2, DiffAugment, class losses ramped in (Transitional-cGAN), an identity
    loss, a penalty on stamps, a style that the discriminator must be able to read back (InfoGAN), EMA.
    """

    kind = "editor"

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        self.config, self.faces = config, faces
        self.weight = config.loss_weights(0)
        device = config.torch_device()
        classes = list(faces.classes)
        self.editor = place(Editor(classes, **config.network), device)
        self.style_size: int = self.editor.config["style"]
        self.critic = place(Discriminator(len(classes), self.style_size), device)
        self.models = {"editor": self.editor, "critic": self.critic}
        self.averaged = {"editor": self.editor}
        rates = {"editor": config.learning_rate, "critic": config.learning_rate * config.critic_rate}
        self.optimizers = {
            name: torch.optim.Adam(model.parameters(), rates[name], betas=(0.0, 0.99), fused=True)
            for name, model in self.models.items()
        }
        self.judge = self._frozen(config.judge, "classifier")
        self.read_as = self._classes_of_judge().to(device)
        self.embedder = self._frozen(config.embedder, "embedder")
        self.sure = self._sure_enough()
        self.number = 0

    def _frozen(self, spec: str | None, kind: str) -> Any:
        if not spec:
            return None
        return place(weights.load(spec, kind).module, self.config.torch_device())

    def _classes_of_judge(self) -> Tensor:
        """Which of the judge's classes each class is: (classes,), -1 for one without faces that the judge does not know."""
        if self.judge is None:
            return torch.full((len(self.faces.classes),), -1)
        known: list[str] = self.judge.config["classes"]
        places = [match(name, known) for name in self.faces.classes]
        if any(places[k] is None for k in self.faces.present.tolist()):
            raise weights.WeightsError(
                f"{self.config.judge}: knows {known}, the dataset has {list(self.faces.classes)}; train a judge on it first "
                "(--preset judge-48), and give that by --judge."
            )
        return torch.tensor([-1 if place is None else place for place in places])

    @torch.no_grad()
    def _sure_enough(self) -> Tensor:
        """The judge's median cross-entropy on real held-out faces of each class: (classes,)."""
        images, labels = self.faces.held_out()
        sure = torch.zeros(len(self.faces.classes), device=images.device)
        if self.judge is None:
            return sure
        logits = torch.cat([self.judge(batch).float() for batch in torch.split(images, 256)])
        loss = F.cross_entropy(logits, self.read_as[labels], reduction="none")
        for k in self.faces.present.tolist():
            sure[k] = loss[labels == k].median()
        return sure

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """One step of the editor, then one of the discriminator, on the same edited faces."""
        self.number = number
        self.weight = self.config.loss_weights(number * self.config.batch_size)
        edited: list[_Edited] = []
        self.critic.requires_grad_(False)
        logs = descend("editor", lambda count: self._editor_loss(count, rng, edited))
        self.critic.requires_grad_(True)
        return logs | descend("critic", lambda _: self._critic_loss(edited.pop(0), rng))

    def _editor_loss(self, count: int, rng: torch.Generator, edited: list[_Edited]) -> tuple[Tensor, Logs]:
        """The loss on `count` faces, which are left in `edited` for the discriminator."""
        faces, source, _ = self.faces.draw(count, rng)
        target = self.faces.draw_labels(count, rng).to(source)
        style = (torch.rand(count, self.style_size, generator=rng) * 2 - 1).to(faces)
        real = self.faces.draw_of(target, rng)
        with self.config.autocast():
            edit = self.editor(faces, source, target, style)
            fake = apply_edit(faces, edit)
            seen = self._augment(fake, rng)
            with torch.no_grad():
                real_score = self.critic(self._augment(real, rng), target)[0]
            score, class_logits, read_style = self.critic(seen, target)
        terms = {
            "adversarial": losses.relativistic(score, real_score),
            "class": F.cross_entropy(class_logits, target),
            "style": F.mse_loss(read_style, style),
            **self._preservation(faces, fake, edit, source == target, target),
            **self._guidance(faces, fake, seen, target),
        }
        ramp = min(1.0, self.number * self.config.batch_size / 6_000)
        weight = {
            name: value * (ramp if name in ("class", "judge", "style") else 1) for name, value in self.weight.items()
        }
        total = torch.stack([weight[name] * term for name, term in terms.items()]).sum()
        edited.append(_Edited(fake.detach(), real, target, style))
        return total, {name: term.detach() for name, term in terms.items()}

    @staticmethod
    def _augment(faces: Tensor, rng: torch.Generator) -> Tensor:
        return losses.augment(faces, rng, strength=0.6, cutout=0.3)

    def _preservation(
        self, faces: Tensor, fake: Tensor, edit: tuple[Tensor, Tensor, Tensor], same: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """What must not change: the face where no expression asks for it, and all of it where the class stays."""
        flow = edit[0]
        painted = fake - warp(faces, flow)
        change = (fake - faces).abs().mean((1, 2, 3))
        return {
            "change": (change * torch.where(same, 4.0, 1.0)).mean(),
            "smoothness": losses.total_variation(flow),
            "bending": losses.bending(flow * faces.shape[-1] / 2),
            "stamp": losses.stamp_penalty(fake - faces, target),
            "painted_stamp": losses.stamp_penalty(painted, target),
            "painted_strokes": losses.total_variation(painted),
        }

    def _guidance(self, faces: Tensor, fake: Tensor, seen: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What frozen networks say: the judge should read the target, the embedder the same face."""
        terms: dict[str, Tensor] = {}
        with self.config.autocast():
            if self.judge is not None:
                # Hinged: more certainty than real faces of the class give only buys overshoot.
                loss = F.cross_entropy(self.judge(seen).float(), self.read_as[target], reduction="none")
                terms["judge"] = F.relu(loss - self.sure[target]).mean()
            if self.embedder is not None:
                with torch.no_grad():
                    person = self.embedder(faces)
                terms["identity"] = F.relu(0.95 - (person * self.embedder(fake)).sum(1)).mean()
        return terms

    def _critic_loss(self, edited: _Edited, rng: torch.Generator) -> tuple[Tensor, Logs]:
        target, style = edited.target, edited.style
        fake, real = self._augment(edited.fake, rng), self._augment(edited.real, rng)
        with self.config.autocast():
            scores, class_logits, read_style = self.critic(torch.cat([real, fake]), torch.cat([target, target]))
        real_score, fake_score = scores.chunk(2)
        adversarial = losses.relativistic(real_score, fake_score)
        class_loss = F.cross_entropy(class_logits[: len(real)], target)
        total = (
            adversarial
            + self.weight["class"] * class_loss
            + self.weight["style"] * F.mse_loss(read_style[len(real) :], style)
        )
        logs = {"critic": adversarial.detach(), "critic_class": class_loss.detach()}
        if self.number % self.config.penalty_every == 0:
            penalty = sum(
                losses.gradient_penalty(lambda x: self.critic(x, target)[0], images) for images in (real, fake)
            )
            total = total + self.config.penalty_every * self.weight["penalty"] / 2 * penalty
        return total, logs

    def sheet(self, editor: Editor) -> Tensor:
        """Fixed held-out faces (rows) in every class (columns, the source first): an image (H, W) in [0, 1]."""
        images, labels = self.faces.held_out()
        pick = torch.cat([(labels == k).nonzero()[:2, 0] for k in range(len(self.faces.classes))])
        images, labels = images[pick], labels[pick]
        style = torch.zeros(len(images), self.style_size, device=images.device)
        columns = [images]
        for k in range(len(self.faces.classes)):
            columns.append(apply_edit(images, editor(images, labels, torch.full_like(labels, k), style)))
        return torch.cat([torch.cat(list(column[:, 0]), 0) for column in columns], 1).cpu()

    def check(self, editor: Editor) -> dict[str, float]:
        """Diversity of held-out faces edited into each class, as diversity/CLASS: stamps that cover the face lower it."""
        images, labels = self.faces.held_out()
        own = [images[labels == k][:CHECKED] for k in range(len(self.faces.classes))]
        spread_out = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CHECKED]
        images, labels = images[spread_out], labels[spread_out]
        style = torch.zeros(len(images), self.style_size, device=images.device)
        found = {}
        for k, name in enumerate(self.faces.classes):
            if len(own[k]) > 1:
                edited = apply_edit(images, editor(images, labels, torch.full_like(labels, k), style))
                found[f"diversity/{name}"] = diversity(edited, own[k])
        return found

    def finish(self, editor: Editor) -> dict[str, Any]:
        """Figures on held-out faces for the weights' header: how much an edit changes, per class."""
        images, labels = self.faces.held_out()
        images, labels = images[:1000], labels[:1000]
        style = torch.zeros(len(images), self.style_size, device=images.device)
        change = {}
        for k, name in enumerate(self.faces.classes):
            edited = apply_edit(images, editor(images, labels, torch.full_like(labels, k), style))
            change[name] = round((edited - images).abs().mean().item(), 4)
        return {"mean_change": change}


class FlowEditor:
    """A trained `Editor` at work on gray face crops: a `FaceEditor` that moves and repaints."""

    size, channels, view = CROP, 1, "tight"
    # Trainings show the editor's results at 1; a little below it the person is held better, and the expression is read
    # nearly as well.
    intensity = (0.8, 0.95)
    # In a photo the same movement goes over many pixels, and looks broad. The judge still reads most of these expressions.
    photo_intensity = (0.6, 0.8)

    def __init__(self, loaded: weights.Weights, device: str = "cpu") -> None:
        self.name, self.digest = loaded.name, loaded.digest
        self.classes: list[str] = list(loaded.info["classes"])
        self.device = torch.device(device)
        self.model = place(loaded.module, self.device)
        self.style_size: int = loaded.module.config["style"]

    @torch.inference_mode()
    def propose(
        self, crops: Array, source: list[int], target: list[int], draws: list[np.random.Generator], intensity: Array
    ) -> Edits:
        """See `FaceEditor`; intensity scales the flow and the difference alike."""
        style = np.stack([rng.uniform(-1, 1, self.style_size) for rng in draws]).astype(np.float32)
        faces = torch.from_numpy(crops)[:, None].to(self.device, memory_format=torch.channels_last)
        labels = torch.tensor([source, target], device=self.device)
        flow, mask, paint = self.model(faces, *labels, torch.from_numpy(style).to(self.device))
        strength = torch.from_numpy(intensity).to(self.device)[:, None, None, None]
        flow = flow * strength
        difference = strength * mask * (paint - warp(faces, flow))
        half_side = crops.shape[-1] / 2
        return Edits((flow * half_side).cpu().numpy(), difference[:, 0].cpu().numpy())
