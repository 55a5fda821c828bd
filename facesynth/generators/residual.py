"""The residual pair for drawing 48 x 48 faces of wanted classes where some classes are rare (`residual-48`).

Small and modern, after R3GAN (arXiv 2501.05441): residual blocks, bilinear resampling, no normalisation in the critic. The
class enters the generator above its lowest resolution only (UTLO, arXiv 2402.17065): what makes a face a face is learned
from all classes together, so that a rare one has only its expression to learn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesynth.generators.networks import ConditionedBlock, DiscriminatorBlock, upsample

BASE = 6
"""Side in pixels of the first feature map."""

CONDITION = 128
"""Size of the vector that steers the blocks."""


class ResidualTrunk(nn.Module):
    """Noise and, where `classes` is not 0, a one-hot class beside it (N, latent + classes) → images (N, channels, 48, 48).

    A learned 6 x 6 map, each channel scaled by the noise, grows through residual blocks that the noise steers (AdaGN,
    Dhariwal & Nichol 2021), from 12 x 12 on together with the class. `width` is the number of channels at 24 x 24.
    """

    def __init__(self, latent: int, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.split = [latent, classes]
        self.base = nn.Parameter(torch.randn(1, 4 * width, BASE, BASE))
        self.scale = nn.Linear(latent, 4 * width)
        self.noise = nn.Sequential(nn.Linear(latent, CONDITION), nn.LeakyReLU(0.2), nn.Linear(CONDITION, CONDITION))
        self.label = nn.Linear(classes, CONDITION, bias=False) if classes else None
        self.at6 = ConditionedBlock(4 * width, CONDITION)
        self.to12 = nn.Conv2d(4 * width, 2 * width, 1)
        self.at12 = nn.ModuleList(ConditionedBlock(2 * width, CONDITION) for _ in range(2))
        self.to24 = nn.Conv2d(2 * width, width, 1)
        self.at24 = nn.ModuleList(ConditionedBlock(width, CONDITION) for _ in range(2))
        self.fine = nn.Conv2d(width, width // 2, 3, 1, 1)
        self.image = nn.Conv2d(width // 2, channels, 3, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        noise, label = torch.split(inputs, self.split, 1)
        steer = self.noise(noise)
        x = self.at6(self.base * self.scale(noise)[:, :, None, None], steer)
        if self.label is not None:
            steer = steer + self.label(label)
        x = upsample(self.to12(x))
        for block in self.at12:
            x = block(x, steer)
        x = upsample(self.to24(x))
        for block in self.at24:
            x = block(x, steer)
        x = F.leaky_relu(self.fine(upsample(F.leaky_relu(x, 0.2))), 0.2)
        return torch.tanh(self.image(x))


def residual_critic(inputs: int, width: int) -> nn.Sequential:
    """Images (N, inputs, 48, 48) → features (N, 4 * width); norm-free residual blocks at 24, 12 and 6 pixels.

    Weights start by He et al. 2015, which keeps the signal's size through the depth: without norms nothing else does. Each
    block starts as its shortcut.
    """
    w = width
    trunk = nn.Sequential(
        nn.Conv2d(inputs, w // 2, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(w // 2, w, 4, 2, 1),
        DiscriminatorBlock(w),
        nn.Conv2d(w, 2 * w, 4, 2, 1),
        DiscriminatorBlock(2 * w),
        nn.Conv2d(2 * w, 4 * w, 4, 2, 1),
        DiscriminatorBlock(4 * w),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(BASE**2 * 4 * w, 4 * w),
        nn.LeakyReLU(0.2),
    )
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for layer in trunk:
        if isinstance(layer, DiscriminatorBlock):
            nn.init.zeros_(layer.conv2.weight)
    return trunk
