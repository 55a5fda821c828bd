"""Networks that draw a face from noise, and their critics: images are (N, C, size, size) in [-1, 1].

The vocabulary: `dcgan-64` and `dcgan-128` after Radford et al. 2016 (arXiv 1511.06434), `conv-48`, the same idea at the
size of FER2013, and `residual-48` (see `generators.residual`). Generators are rebuilt from `module.config`; critics live
only in trainings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesynth.generators.residual import ResidualTrunk, residual_critic


@dataclass(frozen=True)
class Layout:
    """What a network draws unless it is told otherwise: side and channels of the image, and channels of its widest layer."""

    size: int
    channels: int
    width: int


LAYOUTS = {
    "dcgan-64": Layout(64, 3, 64),
    "dcgan-128": Layout(128, 3, 128),
    "conv-48": Layout(48, 1, 64),
    "residual-48": Layout(48, 1, 48),
}


class Generator(nn.Module):
    """Noise (N, latent) and class indices (N,) → images (N, channels, size, size) in [-1, 1].

    `network` is one of `LAYOUTS`; `channels` (1 or 3) and `width`, of which all its layers are multiples, default to
    what the layout says. A `conditional` one reads the class as a one-hot vector beside the noise (Mirza & Osindero 2014,
    arXiv 1411.1784); another ignores it. Raises ValueError for an unknown network.
    """

    def __init__(
        self,
        network: str,
        classes: list[str],
        latent: int = 100,
        conditional: bool = False,
        channels: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        layout = layout_of(network, channels, width)
        self.size, self.channels, self.latent, self.conditional = layout.size, layout.channels, latent, conditional
        self.classes = len(classes)
        self.config: dict[str, Any] = {
            "network": network,
            "classes": classes,
            "latent": latent,
            "conditional": conditional,
            "channels": layout.channels,
            "width": layout.width,
        }
        known = self.classes * conditional
        if network == "residual-48":
            self.layers: nn.Module = ResidualTrunk(latent, known, layout.channels, layout.width)
        else:
            self.layers = (_hourglass if network == "dcgan-128" else _upsampler)(latent + known, layout)
            _initialise(self)
        first = ("layers.label.weight", (1, 0)) if network == "residual-48" else ("layers.0.weight", (1, latent))
        self.class_axes = dict([first] if conditional else [])

    def forward(self, noise: Tensor, labels: Tensor, emphasis: float = 1.0) -> Tensor:
        """Images of the noise. `emphasis` is how much of the labels is let in; an unconditional network ignores them."""
        if self.conditional:
            noise = torch.cat([noise, emphasis * F.one_hot(labels, self.classes).to(noise)], 1)
        return self.layers(noise).float()


class Critic(nn.Module):
    """Images (N, C, size, size) in [-1, 1] and class indices (N,) → scores (N,), class logits (N, classes) or None.

    Under `condition` label it reads the class as one-hot planes beside the image, under auxiliary it has a class head
    (Odena et al. 2017, arXiv 1610.09585), under projection the score gains the product of the image's features with a
    vector of the class (Miyato & Koyama 2018, arXiv 1802.05637). `norm` (batch, layer or none) is the normalisation where
    the network has any, `dropout` the share of values that are dropped where it drops any.
    """

    def __init__(
        self,
        network: str,
        classes: int,
        condition: str = "none",
        norm: str = "batch",
        dropout: float = 0.3,
        channels: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        layout = layout_of(network, channels, width)
        self.planes = classes if condition == "label" else 0
        self.trunk, features = _critic_trunk(network, layout, self.planes, norm, dropout)
        self.realism = nn.Linear(features, 1)
        self.classes = nn.Linear(features, classes) if condition == "auxiliary" else None
        self.projection = nn.Embedding(classes, features) if condition == "projection" else None
        _initialise(self if network != "residual-48" else nn.ModuleList(filter(None, [self.realism, self.classes])))
        if self.projection is not None:
            nn.init.zeros_(self.projection.weight)

    def forward(self, images: Tensor, labels: Tensor, emphasis: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """Scores, and class logits where there is a class head; `emphasis` 0 hides the labels from the scores."""
        if self.planes:
            planes = emphasis * F.one_hot(labels, self.planes).to(images)[:, :, None, None]
            images = torch.cat([images, planes.expand(-1, -1, *images.shape[2:])], 1)
        features = self.trunk(images).float()
        score = self.realism(features)[:, 0].float()
        if self.projection is not None:
            score = score + emphasis * (self.projection(labels) * features).sum(1)
        return score, None if self.classes is None else self.classes(features).float()


def layout_of(
    network: str, channels: int | None = None, width: int | None = None, layouts: Mapping[str, Layout] = LAYOUTS
) -> Layout:
    """The layout of a network with these channels and this width, where they are given; ValueError if it is unknown."""
    if network not in layouts:
        raise ValueError(f"network {network!r} is none of {', '.join(layouts)}")
    default = layouts[network]
    return Layout(default.size, channels or default.channels, width or default.width)


def _upsampler(inputs: int, layout: Layout) -> nn.Sequential:
    """Dense, batch norm, LeakyReLU, then transposed convolutions that double the side and halve the channels."""
    widths = _widths(layout)[::-1]
    side = layout.size >> len(widths)
    layers: list[nn.Module] = [
        nn.Linear(inputs, widths[0] * side * side, bias=False),
        nn.Unflatten(1, (widths[0], side, side)),
    ]
    for before, after in pairwise(widths):
        layers += [_norm("batch", before), nn.LeakyReLU(0.2), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
    last = nn.ConvTranspose2d(widths[-1], layout.channels, 4, 2, 1)
    return nn.Sequential(*layers, _norm("batch", widths[-1]), nn.LeakyReLU(0.2), last, nn.Tanh())


def _widths(layout: Layout) -> list[int]:
    """Channels of the critic's layers, each half as large as the one before: 4 at 64 pixels, 3 at 48."""
    return [layout.width << k for k in range(4 if layout.size == 64 else 3)]


def _hourglass(inputs: int, layout: Layout) -> nn.Sequential:
    """The dcgan-128 generator: noise becomes an image at once, which is convolved down to 16 x 16 and up again.

    The layers, and where an activation follows them, are the source recipe's.
    """
    c, w, size = layout.channels, layout.width, layout.size
    return nn.Sequential(
        nn.Linear(inputs, c * size * size, bias=False),
        nn.Unflatten(1, (c, size, size)),
        *_same(c, w),
        nn.Conv2d(w, w, 4, 2, 1, bias=False),
        _norm("batch", w),
        nn.LeakyReLU(0.2),
        *_same(w, 2 * w),
        nn.Conv2d(2 * w, 2 * w, 4, 2, 1, bias=False),
        _norm("batch", 2 * w),
        nn.LeakyReLU(0.2),
        *_same_transposed(2 * w, 4 * w),
        nn.Conv2d(4 * w, 4 * w, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        *_same_transposed(4 * w, 4 * w),
        nn.ConvTranspose2d(4 * w, 4 * w, 4, 2, 1, bias=False),
        _norm("batch", 4 * w),
        nn.LeakyReLU(0.2),
        *_same_transposed(4 * w, 2 * w),
        nn.ConvTranspose2d(2 * w, 2 * w, 4, 2, 1, bias=False),
        _norm("batch", 2 * w),
        nn.ConvTranspose2d(2 * w, w, 4, 2, 1, bias=False),
        *_same_transposed(w, w),
        _norm("batch", w),
        *_same_transposed(w, c, bias=True),
        nn.Tanh(),
    )


def _same(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 4 x 4 convolution with stride 1 that keeps the side: Keras pads one before and two after."""
    return nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(inputs, outputs, 4, bias=False)


def _same_transposed(inputs: int, outputs: int, bias: bool = False) -> tuple[nn.Module, ...]:
    """Its transpose: one row and column is cut before (the padding of 1) and two after (one more by the negative pad)."""
    return nn.ConvTranspose2d(inputs, outputs, 4, 1, 1, bias=bias), nn.ZeroPad2d((0, -1, 0, -1))


def _critic_trunk(network: str, layout: Layout, planes: int, norm: str, dropout: float) -> tuple[nn.Sequential, int]:
    """Convolutions with stride 2 and LeakyReLU, and how many features (N, features) they leave.

    dcgan-64 drops values after each; the others normalise: dcgan-128 before all activations but the last, conv-48 but the
    first. residual-48 does neither. Where dcgan-64 drops nothing, it may normalise by batch, before all activations but
    the first, as Radford et al. do: with clipped weights alone it sees little but brightness and lattices.
    """
    w = layout.width
    if network == "residual-48":
        return residual_critic(layout.channels + planes, w), 4 * w
    widths = [w, w, 2 * w, 2 * w, 4 * w] if network == "dcgan-128" else _widths(layout)
    by_batch = norm == "batch" and not dropout
    normalised = {"dcgan-64": [1, 2, 3] if by_batch else [], "dcgan-128": [0, 1, 2, 3], "conv-48": [1, 2]}[network]
    layers: list[nn.Module] = []
    before = layout.channels + planes
    for k, after in enumerate(widths):
        layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=network != "dcgan-128" and k not in normalised))
        if k in normalised:
            layers.append(_norm(norm, after))
        layers.append(nn.LeakyReLU(0.2))
        if network == "dcgan-64":
            layers.append(nn.Dropout(dropout))
        before = after
    return nn.Sequential(*layers, nn.Flatten()), before * (layout.size >> len(widths)) ** 2


def _norm(kind: str, channels: int) -> nn.Module:
    return {"batch": nn.BatchNorm2d(channels), "layer": nn.GroupNorm(1, channels), "none": nn.Identity()}[kind]


def _initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02²), as in Radford et al. 2016, section 4."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
