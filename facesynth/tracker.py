"""Where the figures of a training go beside log.jsonl: TensorBoard, or another tracker that Accelerate knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import LoggerType

from facesynth.console import UsageError, did_you_mean, printable

KNOWN = ("none", *sorted(str(kind) for kind in LoggerType if kind != LoggerType.ALL))

SHOWS_PICTURES: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}, "swanlab": {}}
"""Trackers that take a list of pictures, and what they have to be told about it."""


def require(name: str) -> None:
    """Raise UsageError unless `name` is none, or a tracker that is known and installed."""
    if name not in KNOWN:
        raise UsageError(f"no tracker '{printable(name)}'.{did_you_mean(name, KNOWN)} Trackers: {', '.join(KNOWN)}.")
    if name != "none" and not filter_trackers([name], logging_dir="."):
        raise UsageError(
            f"tracker {name} is not installed: pip install {name}, or leave --tracker out for TensorBoard."
        )


class Tracker:
    """One training's line in a tracker. `images` seen are its steps; `settings` are stored with it."""

    def __init__(self, name: str, out: Path, images: int, settings: Mapping[str, Any]) -> None:
        require(name)
        self.name = name
        self._accelerator = Accelerator(log_with=None if name == "none" else name, project_dir=str(out))
        # A training that goes on after a stop comes by some points again: TensorBoard forgets what it knew of them.
        options = {"tensorboard": {"purge_step": images}, "wandb": {"name": out.name, "dir": str(out)}}
        if name == "tensorboard":
            self._accelerator.init_trackers("tensorboard", init_kwargs=options)  # the name of its folder in `out`
        else:
            plain = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
            self._accelerator.init_trackers("facesynth", plain, init_kwargs=options)

    def log(self, figures: Mapping[str, float], images: int) -> None:
        """Add figures."""
        self._accelerator.log(dict(figures), step=images)

    def show(self, name: str, pixels: np.ndarray, images: int) -> None:
        """Add a picture (H, W) or (H, W, 3) uint8, if the tracker can show one."""
        if self.name in SHOWS_PICTURES:
            coloured = np.broadcast_to(pixels if pixels.ndim == 3 else pixels[..., None], (*pixels.shape[:2], 3))
            for tracker in self._accelerator.trackers:
                tracker.log_images({name: coloured[None]}, step=images, **SHOWS_PICTURES[self.name])

    def close(self) -> None:
        """Finish what is being written. (`Accelerator.end_training` would part the processes, too.)"""
        for tracker in self._accelerator.trackers:
            tracker.finish()
