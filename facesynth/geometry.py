"""Where a face lies in a photo: cutting it out at the networks' size, and putting an edit back at the photo's own size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from facesynth.photo import to_colour, to_gray

Array = npt.NDArray[np.float32]

CROP = 48
"""Side in pixels of the face crops that the networks read."""

LARGE = 64
"""A photo with a side above this many pixels may hold more than the face: the face is looked for and aligned."""

TEMPLATE = np.array([[14.7, 18.6], [33.3, 18.6], [24.0, 28.8], [16.9, 36.9], [31.1, 36.9]], np.float32)
"""Eyes, nose and mouth corners (x, y) in a crop: their median places in FER2013's training images, made symmetric."""

CELEBA_CROP = 178
"""Side of the part in the middle of CelebA's images (178 x 218) that is used, as in Choi et al. 2018."""

CELEBA_FACE = np.array([[69, 111], [108, 111], [88, 136], [72, 152], [105, 152]], np.float32)
"""The same points in CelebA's aligned images: the means of list_landmarks_align_celeba.txt."""

VIEWS: dict[str, Array] = {
    "tight": TEMPLATE,
    "celeba": ((CELEBA_FACE - [0, 20] + 0.5) * CROP / CELEBA_CROP - 0.5).astype(np.float32),
}
"""Where the points lie in the crops that networks read; beside the tight one CelebA's, which shows hair and neck, too."""


@dataclass(frozen=True)
class Frame:
    """Affine map (2, 3) from crop pixels (x, y, 1) to photo pixels; `aligned` says that landmarks gave it."""

    matrix: Array
    aligned: bool

    @property
    def scale(self) -> float:
        """Photo pixels per crop pixel (geometric mean of the two directions)."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))


def may_hold_more(pixels: Array) -> bool:
    """Whether a photo (H, W, C) is so large that the face must be found in it: a smaller one is taken for a tight crop."""
    return max(pixels.shape[:2]) > LARGE


def frame_of(pixels: Array, landmarks: Array | None, view: str = "tight") -> Frame:
    """The frame of the face in a photo (H, W, C): by its landmarks (5, 2), or the whole photo where there are none.

    `view` is one of `VIEWS`.
    """
    height, width = pixels.shape[:2]
    if landmarks is None:
        sx, sy = width / CROP, height / CROP
        # Pixel centres lie at half-integers: the crop's corner maps to the photo's corner.
        return Frame(np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5]], np.float32), aligned=False)
    return Frame(_similarity(VIEWS[view], landmarks), aligned=True)


def _similarity(source: Array, target: Array) -> Array:
    """Least-squares rotation, scale and shift from points to points (Umeyama 1991), without mirroring: (2, 3)."""
    centre_s, centre_t = source.mean(0), target.mean(0)
    s, t = source - centre_s, target - centre_t
    # In the plane, a rotation with scale is one complex factor.
    factor = np.vdot(s[:, 0] + 1j * s[:, 1], t[:, 0] + 1j * t[:, 1]) / (s**2).sum()
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]], np.float32)
    return np.hstack([linear, (centre_t - linear @ centre_s)[:, None]]).astype(np.float32)


def crop(pixels: Array, frame: Frame, side: int = CROP, colour: bool = False) -> Array:
    """The face of a photo (H, W, C) as gray (side, side), or as RGB (side, side, 3), whose channels are equal in gray photos.

    Shrunk by area averaging, so that nothing aliases.
    """
    planes = to_colour(pixels) if colour else to_gray(pixels)
    if not frame.aligned:
        if planes.shape[:2] == (side, side):
            return np.ascontiguousarray(planes)
        # Area averaging enlarges in blocks; crops of 48 pixels, which weights have been trained on, stay as they were.
        enlarged = side > max(CROP, *planes.shape[:2])
        resized = cv2.resize(planes, (side, side), interpolation=cv2.INTER_LINEAR if enlarged else cv2.INTER_AREA)
        return resized.astype(np.float32)
    over = max(1, round(frame.scale * CROP / side))
    step = CROP / (side * over)
    fine = np.diag([step, step, 1]).astype(np.float32)
    fine[:2, 2] = step / 2 - 0.5
    size = (side * over, side * over)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(planes, frame.matrix @ fine, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)


def put_back(pixels: Array, frame: Frame, flow: Array | None, difference: Array) -> Array:
    """Apply an edit to a photo (H, W, C) at its own size and colour: pixels move along the flow, light changes are added.

    `flow` (2, S, S) is in pixels of a crop of side S (None: nothing moves), `difference` (S, S) in luma or (S, S, 3) in
    RGB. The source's fine detail is moved, not repainted (Animating Through Warping, arXiv 2008.00362), and pixels that
    the edit does not touch stay exactly as they are. An edit that is finer than the photo is shrunk by area averaging.
    """
    top, bottom, left, right = _box(pixels, frame)
    ys, xs = np.mgrid[top:bottom, left:right].astype(np.float32)
    to_crop = cv2.invertAffineTransform(frame.matrix)
    crop_x = to_crop[0, 0] * xs + to_crop[0, 1] * ys + to_crop[0, 2]
    crop_y = to_crop[1, 0] * xs + to_crop[1, 1] * ys + to_crop[1, 2]
    still = np.zeros((2, *difference.shape[:2]), np.float32)
    light = _in_channels_of(pixels, difference)
    moves = still if flow is None else flow * np.float32(CROP / len(difference))
    edit = _no_finer(np.dstack([*moves, light]).astype(np.float32), frame)
    side = edit.shape[0]
    step = CROP / side
    if frame.aligned:
        edit *= _feather(side)
    smooth = cv2.INTER_CUBIC if frame.scale * step > 1 else cv2.INTER_LINEAR
    place_x, place_y = (_rescaled(axis, step) for axis in (crop_x, crop_y))
    parts = edit[:, :, :2], edit[:, :, 2:]  # one after the other: more than four channels are too many for OpenCV
    fine = np.dstack([cv2.remap(part, place_x, place_y, smooth, borderMode=cv2.BORDER_REPLICATE) for part in parts])
    if frame.aligned:
        inside = (abs(crop_x - (CROP - 1) / 2) < CROP / 2) & (abs(crop_y - (CROP - 1) / 2) < CROP / 2)
        fine *= inside[:, :, None]
    linear = frame.matrix[:, :2]
    move_x = linear[0, 0] * fine[:, :, 0] + linear[0, 1] * fine[:, :, 1]
    move_y = linear[1, 0] * fine[:, :, 0] + linear[1, 1] * fine[:, :, 1]
    moved = cv2.remap(pixels, xs + move_x, ys + move_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    moved = moved.reshape(*moved.shape[:2], -1)
    region = pixels[top:bottom, left:right]
    # Resampling softens even by a hundredth of a pixel, so let it in only where something really moves.
    weight = np.clip(np.hypot(move_x, move_y) / 0.5 - 0.2, 0, 1)[:, :, None]
    out = pixels.copy()
    out[top:bottom, left:right] = region + weight * (moved - region) + fine[:, :, 2:]
    return np.clip(out, 0, 1)


def _no_finer(edit: Array, frame: Frame) -> Array:
    """An edit (S, S, K), or a smaller one of the photo's own resolution: sampled as it is, fine strokes would alias."""
    side = max(CROP, round(CROP * frame.scale))
    if side >= len(edit):
        return edit
    return cv2.resize(edit, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)


def _box(pixels: Array, frame: Frame) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of the photo that the crop can touch."""
    height, width = pixels.shape[:2]
    edge = CROP - 0.5
    corners = (
        np.array([[-0.5, -0.5, 1], [edge, -0.5, 1], [-0.5, edge, 1], [edge, edge, 1]], np.float32) @ frame.matrix.T
    )
    left, top = np.floor(corners.min(0)).astype(int)
    right, bottom = np.ceil(corners.max(0)).astype(int) + 1
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)


def _rescaled(axis: Array, step: float) -> Array:
    """Coordinates in pixels of a step of 1 as coordinates in pixels of another; centres lie at half-integers."""
    return axis if step == 1 else (axis + 0.5) / np.float32(step) - 0.5


def _in_channels_of(pixels: Array, difference: Array) -> Array:
    """A difference (S, S) in luma or (S, S, 3) in RGB for a photo with C channels: (S, S, 1) or (S, S, C)."""
    if difference.ndim == 2:
        return difference[:, :, None]
    return to_gray(difference)[:, :, None] if pixels.shape[2] == 1 else difference


def _feather(side: int, margin: float = 1 / 8) -> Array:
    """Window (side, side, 1) that falls smoothly to zero at the crop's edge, so that no seam shows in the photo.

    `margin` is the width of the fall as a share of the side.
    """
    distance = np.minimum(np.arange(side) + 0.5, side - 0.5 - np.arange(side)) / (margin * side)
    ramp = np.clip(distance, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return (ramp[:, None] * ramp[None])[:, :, None].astype(np.float32)
