"""A trained generator at work: faces of people who do not exist, from noise that is the caller's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from facesynth import weights
from facesynth.generators.networks import place

Array = npt.NDArray[np.float32]


class FaceDrawer:
    """Draws faces of wanted classes; the same noise gives the same face, so that results can be repeated.

    Where it is not `conditional`, it knows no classes: the target changes nothing.
    """

    def __init__(self, loaded: weights.Weights, device: str = "cpu") -> None:
        self.name, self.digest = loaded.name, loaded.digest
        self.classes: list[str] = list(loaded.info["classes"])
        self.beside: dict[str, str] = loaded.info.get("beside", {})
        """Digests of the weights that were trained together with these, by file name."""
        self.device = torch.device(device)
        self.model = place(loaded.module, self.device)
        self.latent_size: int = loaded.module.latent
        self.size: int = loaded.module.size
        self.channels: int = loaded.module.channels
        self.conditional: bool = loaded.module.conditional
        self.emphasis = float(loaded.info.get("sampling", {}).get("emphasis", 1.0))

    @torch.inference_mode()
    def draw(self, target: list[int], noise: Array) -> Array:
        """Faces (N, size, size, channels) in [0, 1] of classes `target` (indices of `classes`).

        `noise` (N, latent_size) is standard normal. A face does not depend on the others of its batch.
        """
        labels = torch.tensor(target, device=self.device)
        images = self.model(torch.from_numpy(noise).to(self.device), labels, self.emphasis)
        return ((images + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
