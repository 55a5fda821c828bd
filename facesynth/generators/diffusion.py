"""How a diffusion model learns faces, and how it edits one: noised a little, and taken back as one of another class."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facesynth import weights
from facesynth.generators.denoiser import TIMES, Denoiser
from facesynth.generators.networks import place
from facesynth.generators.proposal import Edits
from facesynth.generators.samples import by_class, diversities, grid
from facesynth.geometry import CROP

Array = npt.NDArray[np.float32]

if TYPE_CHECKING:
    from facesynth.recipe import Descend, Logs, TrainConfig
    from facesynth.training_data import Faces

COLUMNS = 8
COMPARED = 64
"""Faces of a class that the closing figure draws."""

HELD_OUT = 512
"""Held-out faces that are looked at with each checkpoint, at most."""


@cache
def _scheduler() -> Any:
    """The cosine schedule of Nichol & Dhariwal 2021 (arXiv 2102.09672), whose last level is all but pure noise."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # begins at pure noise (Lin et al. 2023, arXiv 2305.08891)
    )


def denoise(
    model: Denoiser, faces: Tensor, noise: Tensor, labels: Tensor, starts: Tensor, steps: int, guidance: float
) -> Tensor:
    """Faces (N, 1, S, S) in [-1, 1], noised and taken back as faces of the classes `labels` (N,) by DDIM (arXiv 2010.02502).

    `starts` (N,) in [0, 1] is how far each goes on the way to pure noise, which has `steps` steps: SDEdit (Meng et al. 2022,
    arXiv 2108.01073). 0 leaves the face as it is and 1 nothing of it; between, the number of steps is rounded.
    `guidance` says how much more of the class there shall be than in a face of any: 1 for no more, 0 for none of it (Ho &
    Salimans 2022, arXiv 2207.12598, in the form of Imagen, arXiv 2205.11487, eq. 7).
    """
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    own_steps = (starts * steps).round().long()
    images = faces.clone()
    for left, time in zip(range(steps, 0, -1), scheduler.timesteps, strict=True):
        begins, active = own_steps == left, own_steps >= left
        if not active.any():
            continue
        images[begins] = scheduler.add_noise(faces[begins], noise[begins], time)
        noised = images[active]
        velocity = _guided(model, noised, time.to(faces.device), labels[active], guidance)
        images[active] = scheduler.step(velocity, time, noised, return_dict=False)[0]
    return images


def _guided(model: Denoiser, noised: Tensor, time: Tensor, labels: Tensor, guidance: float) -> Tensor:
    """The velocity (N, 1, S, S) of faces that are all as noisy."""
    if guidance == 1:
        return model(noised, time.expand(len(noised)), labels)
    nobody = torch.full_like(labels, model.nobody)
    times = time.expand(2 * len(noised))
    of_class, of_any = model(torch.cat([noised, noised]), times, torch.cat([labels, nobody])).chunk(2)
    return torch.lerp(of_any, of_class, guidance)


class DiffusionRecipe:
    """A `Denoiser` on noised faces (Ho et al. 2020, arXiv 2006.11239), all classes equally often and mirrored at random.

    Levels of noise are drawn evenly and weighted by min-SNR (Hang et al. 2023, arXiv 2303.09556); some labels are withheld,
    so that one network serves classifier-free guidance.
    """

    kind = "denoiser"

    def __init__(self, config: TrainConfig, faces: Faces) -> None:
        self.config, self.faces, self.settings = config, faces, config.diffusion
        self.device = config.torch_device()
        classes = list(faces.classes)
        self.denoiser = place(Denoiser(classes, config.diffusion.width, config.diffusion.multiples), self.device)
        self.models = {"denoiser": self.denoiser}
        self.averaged = {"denoiser": self.denoiser}
        self.optimizers = {
            "denoiser": torch.optim.AdamW(
                self.denoiser.parameters(),
                config.learning_rate,
                betas=(0.9, 0.99),
                weight_decay=config.weight_decay,
                fused=True,
            )
        }

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """One descent on fresh faces, levels and noise."""
        return descend("denoiser", lambda count: self._loss(count, rng))

    def _loss(self, count: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        labels = self.faces.draw_labels(count, rng)
        images = self.faces.draw_of(labels, rng)
        mirrored = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
        images = torch.where(mirrored.to(images.device), images.flip(3), images)
        withheld = torch.rand(count, generator=rng) < self.settings.label_dropout
        labels = torch.where(withheld, self.denoiser.nobody, labels)
        times = torch.randint(TIMES, (count,), generator=rng)
        noise = torch.randn(images.shape, generator=rng)
        with self.config.autocast():
            loss = self._error(self.denoiser, images, noise, times, labels).mean()
        return loss, {"denoising": loss.detach()}

    def _error(self, model: Denoiser, images: Tensor, noise: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Weighted squared errors (N,) on images in [0, 1] under given noise."""
        faces, scheduler = 2 * images - 1, _scheduler()
        noise, times, labels = noise.to(faces), times.to(faces.device), labels.to(faces.device)
        noised = scheduler.add_noise(faces, noise, times)
        error = model(noised, times, labels).float() - scheduler.get_velocity(faces, noise, times)
        kept = scheduler.alphas_cumprod.to(faces)[times]
        ratio = kept / (1 - kept)  # of signal to noise
        weight = ratio.clamp(max=self.settings.min_snr) / (ratio + 1)
        return weight * error.square().mean((1, 2, 3))

    def check(self, denoiser: Denoiser) -> dict[str, float]:
        """The loss on held-out faces under fixed noise, all levels alike: comparable along a training."""
        images, labels = self.faces.held_out()
        pick = torch.linspace(0, len(images) - 1, min(HELD_OUT, len(images))).long()
        images, labels = images[pick], labels[pick]
        rng = torch.Generator().manual_seed(self.config.seed)
        noise = torch.randn(images.shape, generator=rng)
        times = (torch.rand(len(images), generator=rng) * TIMES).long()
        parts = torch.split(torch.arange(len(images)), 64)
        errors = [self._error(denoiser, images[p], noise[p], times[p], labels[p]) for p in parts]
        return {"held_out": round(torch.cat(errors).mean().item(), 5)}

    def sheet(self, denoiser: Denoiser) -> Tensor:
        """Left, a class in each row drawn from fixed noise; right, a held-out face of it and its edits into every class.

        An image (classes * 48, (9 + classes) * 48) in [0, 1].
        """
        labels = self.faces.present.to(self.device)
        count = len(labels)
        rng = torch.Generator().manual_seed(self.config.seed)
        noise = torch.randn(COLUMNS, 1, CROP, CROP, generator=rng).to(self.device)
        drawn = self._drawn(denoiser, noise.repeat(count, 1, 1, 1), labels.repeat_interleave(COLUMNS))
        images, of = self.faces.held_out()
        sources = images[torch.stack([(of == k).nonzero()[0, 0] for k in labels])]
        targets = labels.repeat(count)
        starts = torch.full((count**2,), self.settings.intensity[1], device=self.device)
        repeated, noises = sources.repeat_interleave(count, 0), noise[:1].expand(count**2, -1, -1, -1)
        edited = self._denoised(denoiser, repeated, noises, targets, starts)
        return torch.cat([grid(drawn, COLUMNS), grid(sources, 1), grid(edited, count)], 1)

    def _drawn(self, denoiser: Denoiser, noise: Tensor, labels: Tensor) -> Tensor:
        """Faces (N, 1, S, S) in [0, 1] from pure noise."""
        return self._denoised(denoiser, torch.zeros_like(noise), noise, labels, torch.ones_like(labels).float())

    def _denoised(self, denoiser: Denoiser, images: Tensor, noise: Tensor, labels: Tensor, starts: Tensor) -> Tensor:
        """See `denoise`, but of images in [0, 1]."""
        sampling = self.settings.steps, self.settings.guidance
        parts = torch.split(torch.arange(len(images)), 64)
        edited = [denoise(denoiser, 2 * images[p] - 1, noise[p], labels[p], starts[p], *sampling) for p in parts]
        return (torch.cat(edited) + 1) / 2

    def finish(self, denoiser: Denoiser) -> dict[str, Any]:
        """Figures for the weights' header, `samples.diversities` of drawn faces among them, and how an edit is made."""
        rng = torch.Generator().manual_seed(self.config.seed)

        def drawn(k: int, count: int) -> Tensor:
            noise = torch.randn(count, 1, CROP, CROP, generator=rng).to(self.device)
            return self._drawn(denoiser, noise, torch.full((count,), k, device=self.device))

        sampling = self.settings.model_dump(mode="json", include={"steps", "guidance", "intensity"})
        figures = {
            "diversity": diversities(self.faces, by_class(self.faces), drawn, COMPARED, rng),
            "sampling": sampling,
        }
        return self.check(denoiser) | figures


class DiffusionEditor:
    """A trained `Denoiser` at work on gray face crops: a `FaceEditor` that paints the face anew from a noised one.

    Intensity is how far the face is noised on the way to pure noise (see `denoise`): at 0 it stays as it is, at 1 nothing of
    it is left but its class, which is another person's face. What lies between, by default, is what the weights' header says.
    """

    size, channels, view = CROP, 1, "tight"

    def __init__(self, loaded: weights.Weights, device: str = "cpu") -> None:
        self.name, self.digest = loaded.name, loaded.digest
        self.classes: list[str] = list(loaded.info["classes"])
        self.device = torch.device(device)
        self.model = place(loaded.module, self.device)
        sampling = loaded.info["sampling"]
        self.steps, self.guidance = int(sampling["steps"]), float(sampling["guidance"])
        low, high = sampling["intensity"]
        self.intensity = self.photo_intensity = (float(low), float(high))

    @torch.inference_mode()
    def propose(
        self, crops: Array, source: list[int], target: list[int], draws: list[np.random.Generator], intensity: Array
    ) -> Edits:
        """See `FaceEditor`; the class that a face has does not matter."""
        noise = np.stack([rng.standard_normal((1, *crops.shape[1:]), np.float32) for rng in draws])
        faces = torch.from_numpy(2 * crops[:, None] - 1).to(self.device)
        labels, starts = torch.tensor(target, device=self.device), torch.from_numpy(intensity).to(self.device)
        edited = denoise(
            self.model, faces, torch.from_numpy(noise).to(self.device), labels, starts, self.steps, self.guidance
        )
        return Edits(None, ((edited - faces) / 2)[:, 0].cpu().numpy())
