"""The network of a diffusion model: it reads a noised face, how noisy it is and of which class, and tells face from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

TIMES = 1000
"""Levels of noise, from 0 (next to none) to 999 (nothing but noise)."""

PATCH = 2


class Denoiser(nn.Module):
    """Noised faces (N, 1, S, S), times (N,) and class indices (N,) → velocity (N, 1, S, S); S is a multiple of 8.

    The velocity is a · noise - s · face for a noised face a · face + s · noise (Salimans & Ho 2022, arXiv 2202.00512,
    section 4). The class `nobody`, one past the last, stands for none in particular. A U-Net of diffusers that works on
    patches of 2 x 2 pixels, which makes it four times as fast (Luhman & Luhman 2022, arXiv 2207.04316); its levels are
    `width` channels wide times each of `multiples`, with attention on the last.
    """

    def __init__(self, classes: list[str], width: int = 64, multiples: Sequence[int] = (1, 2, 2)) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # late: it takes seconds, and most weights are of other networks

        self.config: dict[str, Any] = {"classes": classes, "width": width, "multiples": list(multiples)}
        self.class_axes = {"unet.class_embedding.weight": (0, 0)}
        self.nobody = len(classes)
        plain = len(multiples) - 1
        self.unet: nn.Module = UNet2DModel(
            in_channels=PATCH**2,
            out_channels=PATCH**2,
            block_out_channels=tuple(width * multiple for multiple in multiples),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            layers_per_block=1,
            norm_num_groups=math.gcd(32, width),
            attention_head_dim=math.gcd(32, width),
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=len(classes) + 1,
        )

    def forward(self, noised: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        patches = F.pixel_unshuffle(noised, PATCH)
        return F.pixel_shuffle(self.unet(patches, times, labels, return_dict=False)[0], PATCH)
