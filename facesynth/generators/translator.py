"""The translator: how it learns to repaint a face as it is asked (StarGAN, GANimation), and how it edits faces of any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from facesynth import weights
from facesynth.console import UsageError, did_you_mean, printable
from facesynth.generators import losses
from facesynth.generators.adversary import Adversary
from facesynth.generators.condition import CLASS, Group, Vocabulary
from facesynth.generators.latent import Layout, layout_of
from facesynth.generators.networks import place
from facesynth.generators.proposal import Edits
from facesynth.generators.samples import diversity
from facesynth.generators.translation import LAYOUTS, PatchCritic, Translator

if TYPE_CHECKING:
    from facesynth.labelled_faces import LabelledFaces
    from facesynth.recipe import Descend, Logs, TrainConfig, TranslatorSettings

Array = npt.NDArray[np.float32]

WEIGHTS = {"class": 1.0, "reconstruction": 10.0, "identity": 1.0} | {
    "measures": 160.0,
    "attention": 0.1,
    "smoothness": 1e-5,
}
"""Weights of the losses where the preset says nothing: Choi et al. 2018, section 5.1, and, for what is not in it, Pumarola et
al. 2018, section 5: their 4000 for a batch of 25, and their 0.1 for the mask, of which 0.0001 for its variation."""

ROWS = 2
"""Faces of each class on a sample sheet; of a dataset without classes there are four times as many."""

MEASURED = 512
"""Held-out faces that the closing figures look at, at most."""

CHECKED = 64
"""Held-out faces, in all and of a class, that are looked at during a training."""


def layout(settings: TranslatorSettings) -> Layout:
    """Size, channels and width of the images and networks of a training."""
    return layout_of(settings.network, settings.channels, settings.width, LAYOUTS)


@dataclass(frozen=True)
class _Batch:
    """Real faces (N, C, S, S) in [-1, 1] of one dataset.

    `known` (N, width) is what is known of them, `target` what they shall become, `condition` (N, size) asks for it and
    `back` for what they were.
    """

    real: Tensor
    known: Tensor
    target: Tensor
    condition: Tensor
    back: Tensor


class TranslatorRecipe:
    """A translator against a critic that also has to tell the labels, after Choi et al. 2018 (arXiv 1711.09020).

    Equations 1 to 6 under any loss of `Adversary`. Faces and what they are asked for are drawn evenly from all classes of a
    dataset; what is asked for is always known of some real face. With several datasets, each step learns from one of them
    in turn (section 3.3).

    Where faces have several groups of labels, some are not asked for: the critic then has to read there what the source
    has. So the translator learns to leave alone what nobody asked it to change, which the paper's is never asked.

    Where a face is asked for measures instead of a class, what is asked for is that of another real face, and the critic's
    head tells them under their mean squared error, after Pumarola et al. 2018 (arXiv 1807.09251). Masks of an attentive
    translator are held small and smooth, on the way there and on the way back.

    The second critic, where there is one, sees a face beside itself or beside its reconstruction, in the channels: unlike
    the L1 distance of the cycle it forgives no blur, and unlike a critic of single images no other person.
    """

    kind = "translator"

    def __init__(self, config: TrainConfig, faces: LabelledFaces) -> None:
        self.config, self.settings, self.faces = config, config.translator, faces
        self.vocabulary = faces.vocabulary
        self.adversary = Adversary(self.settings.loss, self.settings.label_smoothing, config.penalty_every)
        device, network, wanted = config.torch_device(), self.settings.network, layout(config.translator)
        shape = {"channels": wanted.channels, "width": wanted.width}
        self.translator = place(Translator(network, self.vocabulary.size, **shape), device)
        critics = {"realism": PatchCritic(network, self.vocabulary.labels, **shape)}
        if self.settings.identity_critic:
            critics["identity"] = PatchCritic(network, 0, **shape, images=2)
        self.critics = place(nn.ModuleDict(critics), device)
        self.models: dict[str, nn.Module] = {"translator": self.translator}
        self.models |= {f"{name}_critic": critic for name, critic in self.critics.items()}
        self.averaged = {"translator": self.translator}
        self.optimizers = {
            "translator": self._optimizer(self.translator, config.learning_rate),
            "critic": self._optimizer(self.critics, config.learning_rate * config.critic_rate),
        }
        self.weight: dict[str, float] = {}

    def _optimizer(self, networks: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(networks.parameters(), rate, betas=self.settings.betas, fused=True)

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """`critic_steps` updates of the critics, each on fresh faces, then one of the translator; all of one dataset."""
        defaults = WEIGHTS | {"penalty": self.adversary.penalty_weight}
        self.weight = defaults | self.config.loss_weights(number * self.config.batch_size)
        dataset = number % (1 + len(self.faces.also))
        logs: Logs = {}
        for _ in range(self.settings.critic_steps):
            logs = descend(
                "critic", lambda count: self._critic_loss(self._draw(count, rng, dataset), dataset, rng, number)
            )
        self.critics.requires_grad_(False)
        logs |= descend("translator", lambda count: self._translator_loss(self._draw(count, rng, dataset), dataset))
        self.critics.requires_grad_(True)
        return logs

    def _draw(self, count: int, rng: torch.Generator, dataset: int) -> _Batch:
        faces = (self.faces, *self.faces.also)[dataset]
        picked, others = (faces.pick_of(faces.draw_labels(count, rng), rng) for _ in range(2))
        images = faces.take(picked)[0]
        if self.settings.flips:
            mirrored = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
            images = torch.where(mirrored.to(images.device), images.flip(3), images)
        known, asked = faces.known(picked), faces.known(others)
        if len(faces.groups) > 1:
            asked = self.vocabulary.leave(asked, self.settings.leave, rng, dataset)
        target = self.vocabulary.fill(asked, known, dataset)
        condition, back = (self.vocabulary.condition(values, dataset) for values in (asked, known))
        return _Batch(2 * images - 1, known, target, condition, back)

    def _critic_loss(self, batch: _Batch, dataset: int, rng: torch.Generator, number: int) -> tuple[Tensor, Logs]:
        real = batch.real
        with self.config.autocast():
            with torch.no_grad():
                edited = self.translator(real, batch.condition)
            real_score, logits = self.critics["realism"](real)
            score, _ = self.critics["realism"](edited)
        adversarial = self.adversary.separation(real_score, score)
        told = self.vocabulary.loss(logits, batch.known, dataset)
        total = adversarial + self._weighted(told)
        logs = {"critic": adversarial.detach()} | {f"critic_{name}": term.detach() for name, term in told.items()}
        total = total + self._penalty("realism", (real, edited), rng, number)
        if "identity" in self.critics:
            with self.config.autocast():
                with torch.no_grad():
                    pairs = _pairs(real, self.translator(edited, batch.back))
                scores = [self.critics["identity"](pair)[0] for pair in pairs]
            identity = self.adversary.separation(*scores)
            logs["critic_identity"] = identity.detach()
            total = total + self.weight["identity"] * identity + self._penalty("identity", pairs, rng, number)
        return total, logs

    def _penalty(self, critic: str, images: tuple[Tensor, Tensor], rng: torch.Generator, number: int) -> Tensor | float:
        def score(faces: Tensor) -> Tensor:
            return self.critics[critic](faces)[0].mean(1)

        penalty = self.adversary.penalty(score, images, self.weight["penalty"], rng, number)
        return 0.0 if penalty is None else penalty

    def _translator_loss(self, batch: _Batch, dataset: int) -> tuple[Tensor, Logs]:
        real = batch.real
        with self.config.autocast():
            edited, mask = self._paint(real, batch.condition)
            reconstructed, mask_back = self._paint(edited, batch.back)
            score, logits = self.critics["realism"](edited)
            real_score = self.critics["realism"](real)[0] if self.adversary.paired else None
        terms = {
            "adversarial": self.adversary.deception(score, real_score),
            **self.vocabulary.loss(logits, batch.target, dataset),
            "reconstruction": (reconstructed - real).abs().mean(),
        }
        if mask is not None and mask_back is not None:
            terms["attention"] = losses.mask_size(mask) + losses.mask_size(mask_back)
            terms["smoothness"] = losses.mask_variation(mask) + losses.mask_variation(mask_back)
        if "identity" in self.critics:
            with self.config.autocast():
                same, other = (self.critics["identity"](pair)[0] for pair in _pairs(real, reconstructed))
            terms["identity"] = self.adversary.deception(other, same if self.adversary.paired else None)
        return self._weighted(terms), {name: term.detach() for name, term in terms.items()}

    def _paint(self, images: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images as the conditions ask, with their masks where there are some."""
        if self.translator.attentive:
            edited, mask = self.translator(images, conditions, masked=True)
            return edited, mask
        return self.translator(images, conditions), None

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weight.get(name, 1.0) * term for name, term in terms.items()]).sum()

    # --- what it leaves -------------------------------------------------------------------------------------------------

    def _wishes(self) -> list[tuple[str, slice, list[float]]]:
        """Everything that a face of the first dataset can be asked for: its name, where it stands, and what stands there."""
        return [
            (label if group.name == CLASS else f"{group.name}={label}", span, group.encode(label))
            for group, span in self.vocabulary.spans(0)
            for label in group.labels
        ]

    def _showing(self, name: str, span: slice, values: list[float]) -> Tensor:
        """Held-out faces (indices) that show what a wish asks for, or all of them where nobody knows."""
        held = self.faces.held
        if name in self.faces.classes:
            return held[self.faces.labels[held] == self.faces.classes.index(name)]
        shows = (self.faces.values[held][:, span] == torch.tensor(values)).all(1)
        return held[shows] if shows.any() else held

    def _edited(
        self, translator: Translator, images: Tensor, known: Tensor, span: slice, values: list[float]
    ) -> Tensor:
        """Images (N, C, S, S) in [0, 1], one thing asked for; the rest is asked to be what it is known to be."""
        asked = known.clone()
        asked[:, span] = torch.tensor(values).to(known)
        conditions = self.vocabulary.condition(asked, 0)
        parts = zip(torch.split(images, 32), torch.split(conditions, 32), strict=True)
        return torch.cat([(translator(2 * part - 1, asking) + 1) / 2 for part, asking in parts])

    def sheet(self, translator: Translator) -> Tensor:
        """Fixed held-out faces (rows) and all that they can be asked for (columns, the source first).

        An image (H, W) or (H, W, 3) in [0, 1].
        """
        labels = self.faces.labels[self.faces.held]
        rows = ROWS if len(self.faces.classes) > 1 else 4 * ROWS
        picked = torch.cat([self.faces.held[labels == k][:rows] for k in range(len(self.faces.classes))])
        images, known = self.faces.take(picked)[0], self.faces.known(picked)
        columns = [images, *(self._edited(translator, images, known, *wish[1:]) for wish in self._wishes())]
        faces = torch.stack(columns, 1).permute(0, 3, 1, 4, 2)
        count, side, across, _, channels = faces.shape
        return faces.reshape(count * side, across * side, channels).squeeze(2).cpu()

    def check(self, translator: Translator) -> dict[str, float]:
        """Diversity of held-out faces edited into each thing that they can be asked for, as diversity/NAME.

        It is measured by that of real faces which show it; stamps that cover the face lower it.
        """
        held = self.faces.held
        spread_out = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:CHECKED]]
        images, known = self.faces.take(spread_out)[0], self.faces.known(spread_out)
        found = {}
        for name, span, values in self._wishes():
            own = self.faces.take(self._showing(name, span, values)[:CHECKED])[0]
            if len(own) > 1:
                found[f"diversity/{name}"] = diversity(self._edited(translator, images, known, span, values), own)
        return found

    def finish(self, translator: Translator) -> dict[str, Any]:
        """What the weights' header says: the vocabulary, the classes, and figures on held-out faces of the first dataset.

        `mean_change` is the mean absolute difference, in shares of the range, that each thing asked for makes, and
        `reconstruction` what is left after the first of them and the way back.
        """
        picked = self.faces.held[:MEASURED]
        images, known = self.faces.take(picked)[0], self.faces.known(picked)
        change, edited = {}, images
        for name, span, values in reversed(self._wishes()):
            edited = self._edited(translator, images, known, span, values)
            change[name] = round((edited - images).abs().mean().item(), 4)
        back = self._edited(translator, edited, known, slice(0), [])
        return {
            "classes": list(_places(self.vocabulary)),
            "vocabulary": self.vocabulary.describe(),
            "view": self.faces.view,
            "left": [self._leaves(dataset) for dataset in range(len(self.vocabulary.datasets))],
            "mean_change": dict(reversed(change.items())),
            "reconstruction": round((back - images).abs().mean().item(), 4),
        }

    def _leaves(self, dataset: int) -> bool:
        """Whether a face of a dataset may be asked for less than everything."""
        return len(self.vocabulary.datasets[dataset]) == 1 or self.settings.leave > 0


def _pairs(real: Tensor, reconstructed: Tensor) -> tuple[Tensor, Tensor]:
    """Faces beside themselves, and beside their reconstruction: each (N, 2C, S, S)."""
    return torch.cat([real, real], 1), torch.cat([real, reconstructed], 1)


def _places(vocabulary: Vocabulary) -> dict[str, int]:
    """The classes of all datasets, each with the first dataset that has it."""
    places: dict[str, int] = {}
    for dataset, groups in enumerate(vocabulary.datasets):
        for group in groups:
            if group.name == CLASS:
                places |= {label: dataset for label in group.labels if label not in places}
    return places


class TranslationEditor:
    """A trained `Translator` at work: a `FaceEditor` that repaints, told the target, or how far to go from source to target.

    `attributes` are asked of every face beside its target class; whatever else there is stays as it is. `classes` are empty
    where the weights know attributes alone. Labels of several datasets are asked for one dataset after the other, each on
    what the one before has made. Raises UsageError for an attribute that the weights do not know, and where they have to
    be told all attributes, but are not.
    """

    intensity = photo_intensity = (0.8, 1.0)

    def __init__(
        self, loaded: weights.Weights, device: str = "cpu", attributes: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.digest = loaded.name, loaded.digest
        self.device = torch.device(device)
        self.model = place(loaded.module, self.device)
        self.size: int = loaded.module.size
        self.channels: int = loaded.module.channels
        self.view: str = loaded.info.get("view", "tight")
        self.classes: list[str] = list(loaded.info["classes"])
        self.vocabulary = Vocabulary.of(loaded.info["vocabulary"])
        self._dataset_of = _places(self.vocabulary)
        self._asked = self._ask(dict(attributes or {}))
        for dataset, leaves in enumerate(loaded.info["left"]):
            if not leaves and not self._complete(dataset):
                raise UsageError(
                    f"--attributes: {printable(self.name)} was trained with leave 0, so that it has to be told all attributes: "
                    f"{self.offer}."
                )

    @property
    def offer(self) -> str:
        """The attributes with what each may be, in words."""
        return "; ".join(
            printable(f"{group.name}={'|'.join(group.labels)}")
            for groups in self.vocabulary.datasets
            for group in groups
            if group.name != CLASS
        )

    def _ask(self, attributes: dict[str, str]) -> list[Tensor]:
        """Values (width,) for each dataset that say the attributes, zeros elsewhere."""
        asked = [torch.zeros(self.vocabulary.width(k)) for k in range(len(self.vocabulary.datasets))]
        for name, label in attributes.items():
            found = [
                (values, group, span)
                for dataset, values in enumerate(asked)
                for group, span in self.vocabulary.spans(dataset)
                if group.name == name != CLASS
            ]
            if not found or label not in found[0][1].labels:
                known = found[0][1].labels if found else [g.name for gs in self.vocabulary.datasets for g in gs]
                hint = did_you_mean(label if found else name, [word for word in known if word != CLASS])
                raise UsageError(
                    f"--attributes {printable(name)}={printable(label)}: {printable(self.name)} does not know it.{hint} "
                    f"It knows {self.offer or 'no attributes'}."
                )
            values, group, span = found[0]
            values[span] = torch.tensor(group.encode(label))
        return asked

    def _complete(self, dataset: int) -> bool:
        """Whether nothing but the class is left open for a dataset of which anything may be asked."""
        values = self._asked[dataset]
        told = [bool(values[span].any()) for group, span in self.vocabulary.spans(dataset) if group.name != CLASS]
        return all(told) or not (any(told) or dataset in self._dataset_of.values())

    @torch.inference_mode()
    def propose(
        self, crops: Array, source: list[int], target: list[int], draws: list[np.random.Generator], intensity: Array
    ) -> Edits:
        """See `FaceEditor`. Chance has no part in it.

        Intensity scales the difference, and the source's class has no part in it. Where the target is a point among measures,
        intensity is the share of the way there from the source's, or from zeros (no action unit) where that is not known.
        """
        faces = torch.from_numpy(crops).to(self.device)
        faces = faces[:, None] if self.channels == 1 else faces.permute(0, 3, 1, 2)
        faces = 2 * faces.contiguous(memory_format=torch.channels_last) - 1
        edited = faces
        for dataset in range(len(self.vocabulary.datasets)):
            values = self._values(dataset, source, target, intensity)
            rows = (values != 0).any(1)
            if rows.any():
                edited = edited.clone()
                edited[rows] = self.model(edited[rows], self.vocabulary.condition(values[rows], dataset))
        difference = ((edited - faces) / 2).permute(0, 2, 3, 1).cpu().numpy()
        graded = np.array([self._group(self.classes[k]).kind == "measures" if self.classes else False for k in target])
        scaled = difference * np.where(graded, np.float32(1), intensity)[:, None, None, None]
        return Edits(None, scaled[..., 0] if self.channels == 1 else scaled)

    def _values(self, dataset: int, source: list[int], target: list[int], intensity: Array) -> Tensor:
        """Values (N, width) that ask one dataset for its part of the targets (indices of `classes`) and attributes."""
        values = self._asked[dataset].repeat(len(target), 1)
        for group, span in self.vocabulary.spans(dataset):
            if group.name != CLASS:
                continue
            for row, start, end, share in zip(values, source, target, intensity.tolist(), strict=True):
                label = self.classes[end]
                if self._dataset_of[label] != dataset:
                    continue
                graded = group.kind == "measures"
                asked = group.between(self.classes[start], label, share) if graded else group.encode(label)
                row[span] = torch.tensor(asked)
        return values.to(self.device)

    def _group(self, label: str) -> Group:
        """The group that a class is asked of."""
        groups = self.vocabulary.datasets[self._dataset_of[label]]
        return next(group for group in groups if group.name == CLASS)
