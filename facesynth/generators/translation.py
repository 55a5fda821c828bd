"""Networks that repaint a face as a condition says, and their critics: images are (N, C, size, size) in [-1, 1].

The vocabulary: `stargan-128` and `stargan-256` after Choi et al. 2018 (arXiv 1711.09020, Tables 4 and 5), `ganimation-128`
with the attention of Pumarola et al. 2018 (arXiv 1807.09251), and `stargan-48` and `ganimation-48`, the same at the size of
FER2013 and half as wide. Translators are rebuilt from `module.config`; critics live only in trainings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from facesynth.generators.latent import Layout, layout_of

LAYOUTS = {
    "stargan-48": Layout(48, 1, 32),
    "stargan-128": Layout(128, 3, 64),
    "stargan-256": Layout(256, 3, 64),
    "ganimation-48": Layout(48, 1, 32),
    "ganimation-128": Layout(128, 3, 64),
}

ATTENTIVE = ("ganimation-48", "ganimation-128")
"""Translators that choose where to repaint."""

BLOCKS = 6
"""Residual blocks in the middle of a translator."""

MOST_LAYERS = 6
"""Strided layers of a critic, at most."""


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, instance-normalised (Table 4, bottleneck)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            *_norm_and_relu(channels),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x` (N, channels, H, W)."""
        return x + self.layers(x)


class Translator(nn.Module):
    """Images (N, channels, size, size) in [-1, 1] and conditions (N, condition) → images of the same shape and range.

    The condition is laid beside the image as planes of equal numbers. Three convolutions down, six residual blocks, three
    up; `network` is one of `LAYOUTS`, `channels` (1 or 3) and `width` (channels of the first layer) default to what the
    layout says. Instance norm looks at each image by itself also at work: no running statistics. Raises ValueError for an
    unknown network.

    `ATTENTIVE` ones end in two convolutions beside each other: colours, and a mask in [0, 1] that says how much of the
    image stays (Pumarola et al. 2018, equation 1).
    """

    def __init__(self, network: str, condition: int, channels: int | None = None, width: int | None = None) -> None:
        super().__init__()
        layout = layout_of(network, channels, width, LAYOUTS)
        self.size, self.channels, self.condition = layout.size, layout.channels, condition
        self.config: dict[str, Any] = {
            "network": network,
            "condition": condition,
            "channels": layout.channels,
            "width": layout.width,
        }
        self.class_axes = {"layers.0.weight": (1, layout.channels)}  # of the condition's numbers
        w = layout.width
        layers: list[nn.Module] = [
            nn.Conv2d(layout.channels + condition, w, 7, 1, 3, bias=False),
            *_norm_and_relu(w),
            nn.Conv2d(w, 2 * w, 4, 2, 1, bias=False),
            *_norm_and_relu(2 * w),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1, bias=False),
            *_norm_and_relu(4 * w),
            *(Block(4 * w) for _ in range(BLOCKS)),
            nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1, bias=False),
            *_norm_and_relu(2 * w),
            nn.ConvTranspose2d(2 * w, w, 4, 2, 1, bias=False),
            *_norm_and_relu(w),
        ]
        colour = [nn.Conv2d(w, layout.channels, 7, 1, 3, bias=False), nn.Tanh()]
        self.attentive = network in ATTENTIVE
        self.layers = nn.Sequential(*layers) if self.attentive else nn.Sequential(*layers, *colour)
        if self.attentive:
            self.colour = nn.Sequential(*colour)
            self.attention = nn.Sequential(nn.Conv2d(w, 1, 7, 1, 3, bias=False), nn.Sigmoid())

    def forward(self, images: Tensor, conditions: Tensor, masked: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The images as the conditions ask; where `masked`, with their masks (N, 1, size, size), if it is attentive."""
        planes = conditions.to(images)[:, :, None, None].expand(-1, -1, *images.shape[2:])
        features = self.layers(torch.cat([images, planes], 1)).float()
        if not self.attentive:
            return features
        colour, mask = self.colour(features), self.attention(features).float()
        edited = (1 - mask) * colour.float() + mask * images
        return (edited, mask) if masked else edited


class PatchCritic(nn.Module):
    """Images (N, channels * images, size, size) in [-1, 1] → scores (N, patches), logits (N, labels) or None.

    PatchGAN (Isola et al. 2017): each score is about one patch. Convolutions halve the side up to six times, as long as it
    is even, and one more, as large as what is left, reads the labels, where there are any (Table 5). A critic of several
    `images` reads them side by side in the channels.
    """

    def __init__(
        self, network: str, labels: int, channels: int | None = None, width: int | None = None, images: int = 1
    ) -> None:
        super().__init__()
        layout = layout_of(network, channels, width, LAYOUTS)
        before, after, side = layout.channels * images, layout.width, layout.size
        layers: list[nn.Module] = []
        while side % 2 == 0 and len(layers) < 2 * MOST_LAYERS:
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.01)]
            before, after, side = after, 2 * after, side // 2
        self.trunk = nn.Sequential(*layers)
        self.realism = nn.Conv2d(before, 1, 3, 1, 1, bias=False)
        self.labels = nn.Conv2d(before, labels, side, bias=False) if labels else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores of the patches, and logits where there is a class head."""
        features = self.trunk(images)
        logits = None if self.labels is None else self.labels(features).float().flatten(1)
        return self.realism(features).float().flatten(1), logits


def _norm_and_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(channels, affine=True), nn.ReLU()
