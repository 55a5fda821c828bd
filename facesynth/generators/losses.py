"""Losses and the differentiable augmentation they are computed under. All take and return float32 tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from facesynth.generators.networks import warp


def relativistic(scores: Tensor, opponents: Tensor) -> Tensor:
    """Relativistic pairing loss (Jolicoeur-Martineau 2018, as in R3GAN, arXiv 2501.05441): `scores` should exceed `opponents`."""
    return F.softplus(opponents - scores).mean()


def discrimination(real: Tensor, generated: Tensor, smoothing: float = 0.0) -> Tensor:
    """The critic's cross-entropy on scores (N,) as log-odds of being real (Goodfellow et al. 2014, eq. 1).

    Real images count as real by 1 - `smoothing` (one-sided label smoothing, Salimans et al. 2016, section 3.4).
    """
    labels = torch.full_like(real, 1 - smoothing)
    return F.binary_cross_entropy_with_logits(real, labels) + F.softplus(generated).mean()


def fooling(generated: Tensor) -> Tensor:
    """The generator's cross-entropy in the form that does not saturate (Goodfellow et al. 2014, section 3): -log D(G(z))."""
    return F.softplus(-generated).mean()


def wasserstein(scores: Tensor, opponents: Tensor) -> Tensor:
    """Negative difference of the means (Arjovsky et al. 2017, eq. 3): minimised, it estimates minus the Wasserstein distance."""
    return opponents.mean() - scores.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1 on real, R2 on generated images (Mescheder et al. 2018): mean squared norm of the critic's input gradient."""
    return _input_gradient(critic, images).square().sum(1).mean()


def lipschitz_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor, rng: torch.Generator
) -> Tensor:
    """Mean of (norm of the input gradient - 1)², at random points between real and generated (Gulrajani et al. 2017, eq. 3)."""
    place = torch.rand(len(real), 1, 1, 1, generator=rng).to(real)
    return (_input_gradient(critic, torch.lerp(real, generated, place)).norm(dim=1) - 1).square().mean()


def _input_gradient(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient (N, C * H * W) of each image's score with respect to the image; it can be differentiated itself."""
    images = images.detach().requires_grad_(True)
    with torch.compiler.set_stance("force_eager"):  # compiled networks can be differentiated only once
        score = critic(images).sum()
    (gradient,) = torch.autograd.grad(score, images, create_graph=True)
    return gradient.flatten(1)


def stamp_penalty(edits: Tensor, labels: Tensor, tolerance: float = 0.05) -> Tensor:
    """Mean cosine between the edits (N, 1, H, W) of different faces of one target class, above `tolerance`.

    A generator that pastes the same glasses or the same hand on every face makes its edits correlate; edits that follow
    the face in hand do not.
    """
    flat = F.normalize(edits.flatten(1) - edits.flatten(1).mean(1, keepdim=True), dim=1)
    pairs = (labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    cosines = (flat @ flat.T)[pairs]
    return F.relu(cosines.mean() - tolerance) if len(cosines) else edits.sum() * 0


def cross_entropy(
    logits: Tensor, labels: Tensor, present: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of logits (N, K) on labels (N,), or on soft ones (N, K), over the classes in `present`, whose indices ascend.

    Classes without faces are not learned to be wrong: what a network knew of them before is left to it.
    """
    labels = labels[:, present] if labels.is_floating_point() else torch.searchsorted(present, labels)
    return F.cross_entropy(logits[:, present], labels, label_smoothing=label_smoothing, reduction=reduction)


def total_variation(field: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring values of a field (N, C, H, W)."""
    return field.diff(dim=2).abs().mean() + field.diff(dim=3).abs().mean()


def mask_size(masks: Tensor) -> Tensor:
    """Mean Euclidean norm of attention masks (N, 1, H, W), without which they saturate (Pumarola et al. 2018, eq. 3)."""
    return masks.flatten(1).norm(dim=1).mean()


def mask_variation(masks: Tensor) -> Tensor:
    """Mean over masks (N, 1, H, W) of the sum of squared differences between neighbours (Pumarola et al. 2018, eq. 3)."""
    return (masks.diff(dim=2).square().sum((1, 2, 3)) + masks.diff(dim=3).square().sum((1, 2, 3))).mean()


def bending(flow: Tensor) -> Tensor:
    """Mean squared second difference of a flow field (N, 2, H, W), in the field's own units.

    Small for any smooth motion however far it goes, large for folds and kinks (the thin-plate energy without its mixed term).
    """
    return flow.diff(n=2, dim=2).square().mean() + flow.diff(n=2, dim=3).square().mean()


def contrastive(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al. 2020, SimCLR eq. 1) over two views (N, D) of N faces; rows have length one."""
    views = torch.cat([first, second])
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    count = len(first)
    partner = torch.arange(2 * count, device=views.device).roll(count)
    return F.cross_entropy(similarity, partner)


def augment(faces: Tensor, rng: torch.Generator, strength: float = 1.0, cutout: float = 0.5) -> Tensor:
    """Random flip, rotation, zoom, shift, brightness, contrast and cutout of each face, differentiable in the faces.

    DiffAugment (arXiv 2006.10738) with small rotation and zoom beside it. Faces are (N, 1, H, W) in [0, 1]; `strength` 1
    means up to 12 degrees, 12 % zoom, 8 % shift, 20 % light; `cutout` is the share of faces that lose a patch.
    """
    count, _, height, width = faces.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=rng) * (high - low) + low

    angle = uniform(-1, 1) * math.radians(12) * strength
    zoom = 1 + uniform(-1, 1) * 0.12 * strength
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift_x, shift_y = uniform(-0.16, 0.16) * strength, uniform(-0.16, 0.16) * strength
    rows = [torch.stack([cos * flip, -sin, shift_x], 1), torch.stack([sin * flip, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(faces), list(faces.shape), align_corners=False)
    out = F.grid_sample(faces, grid, padding_mode="border", align_corners=False)

    contrast = (1 + uniform(-0.3, 0.3) * strength).to(faces)[:, None, None, None]
    light = (uniform(-0.2, 0.2) * strength).to(faces)[:, None, None, None]
    mean = out.mean((1, 2, 3), keepdim=True)
    out = (out - mean) * contrast + mean + light
    return out * _patch_mask(count, height, width, cutout, rng).to(faces)


def _patch_mask(count: int, height: int, width: int, share: float, rng: torch.Generator) -> Tensor:
    """Ones (N, 1, H, W) with a square of zeros, a third of the side wide, in about `share` of the rows."""
    side = height // 3
    top = torch.randint(-side // 2, height - side // 2, (count, 1), generator=rng)
    left = torch.randint(-side // 2, width - side // 2, (count, 1), generator=rng)
    used = torch.rand(count, 1, 1, generator=rng) < share
    ys, xs = torch.arange(height)[None], torch.arange(width)[None]
    inside = ((ys >= top) & (ys < top + side))[:, :, None] & ((xs >= left) & (xs < left + side))[:, None, :]
    return 1 - (inside & used)[:, None].float()


def random_warp(faces: Tensor, rng: torch.Generator, size: float = 0.08) -> Tensor:
    """Move parts of each face (N, 1, H, W) by a smooth random field of up to about `size` half-sides."""
    coarse = torch.randn(len(faces), 2, 5, 5, generator=rng).to(faces) * (size / 2)
    return warp(faces, F.interpolate(coarse, size=faces.shape[2:], mode="bicubic", align_corners=False))
