from __future__ import annotations

import cv2
import numpy as np
import pytest
from faces import draw

from facesynth.geometry import CROP, TEMPLATE, Frame, crop, frame_of, put_back

STILL, DARK = np.zeros((2, CROP, CROP), np.float32), np.zeros((CROP, CROP), np.float32)


def photo(size: int, colour: bool = True) -> np.ndarray:
    return draw("happy", 3, size, colour).reshape(size, size, -1).astype(np.float32) / 255


def turned(angle: float, scale: float, centre: tuple[float, float]) -> np.ndarray:
    """The template's five points on a face of this size, turned by degrees: (5, 2)."""
    matrix = cv2.getRotationMatrix2D((24, 24), -angle, scale)
    matrix[:, 2] += np.array(centre) - 24
    return (TEMPLATE @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def frames() -> dict[str, tuple[np.ndarray, Frame]]:
    whole, large, wide = photo(48, colour=False), photo(350), photo(350)
    return {
        "48": (whole, frame_of(whole, None)),
        "350": (large, frame_of(large, None)),
        "aligned": (wide, frame_of(wide, turned(20, 3.5, (170, 180)))),
    }


@pytest.mark.parametrize("kind", frames())
def test_an_edit_of_nothing_gives_back_every_pixel(kind: str) -> None:
    pixels, frame = frames()[kind]
    assert np.array_equal(put_back(pixels, frame, STILL, DARK), pixels)


def test_a_frame_finds_its_landmarks_again() -> None:
    points = turned(-25, 2.5, (120, 90))
    frame = frame_of(photo(200), points)
    assert frame.aligned
    assert frame.scale == pytest.approx(2.5, rel=1e-4)
    mapped = np.hstack([TEMPLATE, np.ones((5, 1), np.float32)]) @ frame.matrix.T
    assert np.abs(mapped - points).max() < 1e-3


@pytest.mark.parametrize("kind", frames())
def test_a_flow_moves_the_face_by_as_many_crop_pixels(kind: str) -> None:
    pixels, frame = frames()[kind]
    flow = STILL.copy()
    flow[0] = 2  # each pixel shows what lay two crop pixels to the right, in the direction of the frame
    edited = put_back(pixels, frame, flow, DARK)
    moved = cv2.warpAffine(
        pixels,
        np.hstack([np.eye(2), (frame.matrix[:, :2] @ [2.0, 0.0])[:, None]]),
        pixels.shape[1::-1],
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    ).reshape(pixels.shape)
    middle = np.zeros((CROP, CROP), np.float32)
    middle[8:-8, 8:-8] = 1
    inside = cv2.warpAffine(middle, frame.matrix, pixels.shape[1::-1]) == 1
    assert np.abs(edited - moved)[inside].mean() < 0.002
    assert np.abs(edited - pixels)[inside].mean() > 0.01


def test_nothing_changes_outside_an_aligned_frame_and_no_seam_shows_at_its_edge() -> None:
    pixels, frame = frames()["aligned"]
    pixels = np.full_like(pixels, 0.5)
    change = put_back(pixels, frame, STILL, DARK + 0.4)[:, :, 0] - 0.5
    inside = cv2.warpAffine(np.ones((CROP, CROP), np.float32), frame.matrix, (350, 350), borderValue=0) > 0
    assert np.abs(change[~inside]).max() < 1e-6
    assert change.max() == pytest.approx(0.4, abs=0.01)
    steps = max(np.abs(np.diff(change, axis=axis)).max() for axis in (0, 1))
    assert steps < 0.4 / 6  # over six crop pixels or more: no edge


@pytest.mark.parametrize("kind", frames())
def test_the_crop_of_an_edited_photo_shows_the_edit(kind: str) -> None:
    pixels, frame = frames()[kind]
    difference = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (CROP, CROP)).astype(np.float32), (0, 0), 4)
    difference *= 0.1 / np.abs(difference).max()
    pixels = 0.25 + pixels / 2  # away from black and white, where light is cut off
    change = crop(put_back(pixels, frame, STILL, difference), frame) - crop(pixels, frame)
    assert np.abs(change - difference)[8:-8, 8:-8].max() < 0.01


@pytest.mark.parametrize("kind", frames())
def test_colour_that_is_added_arrives_in_its_channel(kind: str) -> None:
    pixels, frame = frames()[kind]
    pixels = np.repeat(np.full_like(pixels[:, :, :1], 0.5), 3, axis=2)
    reddish = np.zeros((CROP, CROP, 3), np.float32)
    reddish[:, :, 0] = 0.2
    change = put_back(pixels, frame, STILL, reddish) - pixels
    assert change[:, :, 0].max() == pytest.approx(0.2, abs=0.01)
    assert not change[:, :, 1:].any()


@pytest.mark.parametrize("size", [48, 100])
def test_an_edit_finer_than_the_photo_does_not_alias(size: int) -> None:
    fine = np.zeros((480, 480), np.float32)
    fine[:, ::2] = 0.1  # strokes of a width that no pixel of the photo has: on average, a light of 0.05
    pixels = np.full((size, size, 1), 0.4, np.float32)
    change = put_back(pixels, frame_of(pixels, None), None, fine) - pixels
    assert np.abs(change - 0.05).max() < 0.02
