"""The networks: one residual classifier trunk, the editor and its discriminator. All work on 48 x 48 gray faces.

Every module is rebuilt from the keyword arguments it was made with (`module.config`), which travel in the header of its
weights file. Of those that know classes, `class_axes` says where: tensor → the axis along which it has a part for each
class, and where on it the first one's is. So a network can be given further classes (see `finetuning`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def place(module: Module, device: torch.device) -> Module:
    """The module on a device, in the memory format in which convolutions run fastest."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016), batch-normalised, with an optional stride."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + residual)


def _trunk(width: int) -> nn.Sequential:
    """Gray face (N, 1, 48, 48) in [0, 1] → pooled features (N, 4 * width)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width, width),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 2 * width),
        ResidualBlock(2 * width, 4 * width, 2),
        ResidualBlock(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _resnet18() -> nn.Module:
    """Gray face (N, 1, 48, 48) in [0, 1] → pooled features (N, 512).

    ResNet-18 (He et al. 2016) with a stem for small gray images: 3 x 3 with stride 2, and no pooling after it.
    """
    from torchvision.models import resnet18

    network: nn.Module = resnet18(num_classes=1)
    network.conv1 = nn.Conv2d(1, 64, 3, 2, 1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


class Classifier(nn.Module):
    """Expression classifier: (N, 1, 48, 48) gray in [0, 1] → (N, classes) logits.

    `architecture` is "small", whose first layer has `width` channels, or "resnet18", which has its own widths.
    """

    def __init__(self, classes: list[str], width: int = 48, dropout: float = 0.2, architecture: str = "small") -> None:
        super().__init__()
        if architecture not in ("small", "resnet18"):
            raise ValueError(f"architecture {architecture!r} is neither 'small' nor 'resnet18'")
        self.config: dict[str, Any] = {
            "classes": classes,
            "width": width,
            "dropout": dropout,
            "architecture": architecture,
        }
        small = architecture == "small"
        self.trunk = _trunk(width) if small else _resnet18()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width if small else 512, len(classes))
        self.class_axes = {"head.weight": (0, 0), "head.bias": (0, 0)}

    def forward(self, gray: Tensor) -> Tensor:
        return self.head(self.dropout(self.trunk(gray - 0.5)))


class Embedder(nn.Module):
    """Appearance embedder: (N, 1, 48, 48) gray in [0, 1] → (N, size) rows of length one."""

    def __init__(self, size: int = 128, width: int = 32) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"size": size, "width": width}
        self.class_axes: dict[str, tuple[int, int]] = {}
        self.trunk = _trunk(width)
        self.head = nn.Linear(4 * width, size)

    def forward(self, gray: Tensor) -> Tensor:
        return F.normalize(self.head(self.trunk(gray - 0.5)).float(), dim=1)


class ConditionedBlock(nn.Module):
    """Pre-activation residual block whose group norm is scaled and shifted by the condition (AdaGN, Dhariwal & Nichol 2021)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.modulation = nn.Linear(condition, 2 * channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        # Zero start: the block begins as its shortcut, so that the whole editor begins as the identity.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        h = F.leaky_relu(self.norm(x) * (1 + scale) + shift, 0.2)
        return x + self.conv2(F.leaky_relu(self.conv1(h), 0.2))


def upsample(x: Tensor) -> Tensor:
    """Twice the side (N, C, 2H, 2W)."""
    # Bilinear, never pixel-shuffle or transposed convolution: both leave checkerboards (Odena et al. 2016).
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Editor(nn.Module):
    """Predicts the edit that turns a face into another expression: a flow field, a mask and a painted face.

    Faces are (N, 1, 48, 48) gray in [0, 1]; `source` and `target` are (N,) class indices; `style` is (N, style) in
    [-1, 1] and picks among the ways to show one expression. See `apply_edit` for what the three outputs mean.
    """

    MAX_FLOW = 0.2
    """Largest displacement in units of half the face's side (0.2 = 4.8 of 48 pixels)."""

    def __init__(self, classes: list[str], style: int = 4, channels: tuple[int, int, int] = (48, 96, 160)) -> None:
        super().__init__()
        c24, c12, c6 = channels
        self.config: dict[str, Any] = {"classes": classes, "style": style, "channels": list(channels)}
        width = 128
        self.target = nn.Embedding(len(classes), width)
        self.source = nn.Embedding(len(classes), width)
        self.class_axes = {"target.weight": (0, 0), "source.weight": (0, 0)}
        self.style = nn.Linear(style, width)
        self.condition = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width))
        self.fine = nn.Conv2d(1, 16, 3, 1, 1)
        self.stem = nn.Conv2d(16, c24, 4, 2, 1)
        self.down24 = ConditionedBlock(c24, width)
        self.to12 = nn.Conv2d(c24, c12, 4, 2, 1)
        self.down12 = ConditionedBlock(c12, width)
        self.to6 = nn.Conv2d(c12, c6, 4, 2, 1)
        self.core = nn.ModuleList(ConditionedBlock(c6, width) for _ in range(2))
        self.from6 = nn.Conv2d(c6, c12, 1)
        self.up12 = nn.ModuleList(ConditionedBlock(c12, width) for _ in range(2))
        self.from12 = nn.Conv2d(c12, c24, 1)
        self.up24 = ConditionedBlock(c24, width)
        self.flow = nn.Conv2d(c24, 2, 3, 1, 1)
        self.from24 = nn.Conv2d(c24, 16, 1)
        self.paint1 = nn.Conv2d(32, 24, 3, 1, 1)
        self.paint2 = nn.Conv2d(24, 2, 3, 1, 1)
        nn.init.zeros_(self.flow.weight)
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    def forward(self, face: Tensor, source: Tensor, target: Tensor, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return flow (N, 2, 48, 48) in [-MAX_FLOW, MAX_FLOW], mask (N, 1, 48, 48) in [0, 1], paint likewise."""
        condition = self.condition(self.target(target) + self.source(source) + self.style(style))
        fine = F.leaky_relu(self.fine(2 * face - 1), 0.2)
        h24 = self.down24(self.stem(fine), condition)
        h12 = self.down12(self.to12(F.leaky_relu(h24, 0.2)), condition)
        h = self.to6(F.leaky_relu(h12, 0.2))
        for block in self.core:
            h = block(h, condition)
        h = upsample(self.from6(h)) + h12
        for block in self.up12:
            h = block(h, condition)
        h = self.up24(upsample(self.from12(h)) + h24, condition)
        flow = self.MAX_FLOW * torch.tanh(upsample(self.flow(F.leaky_relu(h, 0.2))).float())
        painted = torch.cat([upsample(self.from24(h)), fine], dim=1)
        mask, paint = self.paint2(F.leaky_relu(self.paint1(painted), 0.2)).float().chunk(2, dim=1)
        return flow, torch.sigmoid(mask - 1.0), torch.sigmoid(paint)


def identity_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Sampling grid (1, height, width, 2) of x, y in [-1, 1] that leaves an image where it is."""
    ys = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * 2 / height - 1
    xs = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * 2 / width - 1
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Move `image` (N, C, H, W) along `flow` (N, 2, H, W), given in units of half the image's side."""
    grid = identity_grid(image.shape[2], image.shape[3], like=image) + flow.permute(0, 2, 3, 1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def apply_edit(face: Tensor, edit: tuple[Tensor, Tensor, Tensor], intensity: Tensor | float = 1.0) -> Tensor:
    """Warp the face, then blend the painted face in where the mask says so; `intensity` in [0, 1] scales both."""
    flow, mask, paint = edit
    warped = warp(face, flow * intensity)
    return warped + intensity * mask * (paint - warped)


class DiscriminatorBlock(nn.Module):
    """Norm-free residual block: normalisation in a critic breaks its gradient penalty (Gulrajani et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))


class Discriminator(nn.Module):
    """Projection discriminator (Miyato & Koyama 2018) with a class head and a head that reads the style back.

    (N, 1, 48, 48) gray in [0, 1] and (N,) class indices → realism scores (N,), class logits (N, classes), style (N, style).
    """

    def __init__(self, classes: int, style: int = 4, channels: tuple[int, int, int, int] = (24, 48, 96, 160)) -> None:
        super().__init__()
        c48, c24, c12, c6 = channels
        self.stem = nn.Conv2d(1, c48, 3, 1, 1)
        self.trunk = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(c48, c24, 4, 2, 1),
            DiscriminatorBlock(c24),
            nn.Conv2d(c24, c12, 4, 2, 1),
            DiscriminatorBlock(c12),
            nn.Conv2d(c12, c6, 4, 2, 1),
            DiscriminatorBlock(c6),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(36 * c6, 192),
            nn.LeakyReLU(0.2),
        )
        self.realism = nn.Linear(192, 1)
        self.projection = nn.Embedding(classes, 192)
        self.classes = nn.Linear(192, classes)
        self.style = nn.Linear(192, style)
        self._initialise()

    def _initialise(self) -> None:
        """Keep the signal's size through the depth (He et al. 2015): without norms nothing else does."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in self.modules():
            if isinstance(layer, DiscriminatorBlock):
                nn.init.zeros_(layer.conv2.weight)
        for head in (self.realism, self.classes, self.style):
            nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(self.projection.weight)

    def forward(self, gray: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(self.stem(2 * gray - 1)).float()
        score = self.realism(features)[:, 0] + (self.projection(labels) * features).sum(1)
        return score, self.classes(features), self.style(features)
