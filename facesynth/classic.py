"""Classic augmentation: flip, small affine, crop, light, noise and erasing, at a photo's own size and colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from facesynth.photo import Photo, Pixels


def augment_photo(photo: Photo, rng: np.random.Generator) -> Photo:
    """A random variation of a photo, of the same shape and encoding; all randomness comes from `rng`.

    What the encoding carries beside the colours (alpha, say) moves along, but keeps its values.
    """
    colours, carried = photo.pixels.shape[2], photo.encoding.carried
    planes: list[Pixels] = [photo.pixels]
    if carried is not None:
        planes.append(carried[:, :, None].astype(np.float32) / np.float32(255))
    image = _move(torch.from_numpy(np.concatenate(planes, axis=2)).permute(2, 0, 1), rng)
    pixels = _relight(image[:colours], rng).clamp(0, 1).permute(1, 2, 0).contiguous().numpy()
    if carried is None:
        return replace(photo, pixels=pixels)
    moved = (image[colours].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Photo(pixels, replace(photo.encoding, carried=moved))


def _move(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Flip; up to 10 degrees, 5 % shift and 5 degrees of shear, repeating the border; a crop of 85 to 100 % a side."""
    height, width = image.shape[1:]
    if rng.random() < 0.5:
        image = F.horizontal_flip(image)
    padded = F.pad(image, [max(1, width // 4), max(1, height // 4)], padding_mode="edge")
    shift = [int(rng.uniform(-0.05, 0.05) * width), int(rng.uniform(-0.05, 0.05) * height)]
    shear = [rng.uniform(-5, 5), 0.0]
    moved = F.affine(padded, rng.uniform(-10, 10), shift, 1.0, shear, interpolation=InterpolationMode.BILINEAR)
    image = F.center_crop(moved, [height, width])
    share = rng.uniform(0.85, 1.0)
    size = (max(1, round(height * share)), max(1, round(width * share)))
    top, left = rng.integers(0, height - size[0] + 1), rng.integers(0, width - size[1] + 1)
    return F.resized_crop(image, int(top), int(left), *size, [height, width], antialias=True)


def _relight(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Brightness and contrast by up to a quarter, noise of up to 3 %, and in a quarter of the photos an erased patch."""
    height, width = image.shape[1:]
    mean = image.mean()
    image = ((image - mean) * rng.uniform(0.8, 1.25) + mean) * rng.uniform(0.8, 1.2)
    image = image + torch.from_numpy(rng.normal(0, rng.uniform(0, 0.03), tuple(image.shape)).astype(np.float32))
    if rng.random() < 0.25:
        side = (max(1, int(height * rng.uniform(0.1, 0.3))), max(1, int(width * rng.uniform(0.1, 0.3))))
        top, left = rng.integers(0, height - side[0] + 1), rng.integers(0, width - side[1] + 1)
        image = F.erase(image, int(top), int(left), *side, v=image.mean((1, 2), keepdim=True))
    return image
