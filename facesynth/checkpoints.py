"""The states that a training can go on from: checkpoint-00012800.pt is that after so many images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from facesynth import console
from facesynth.console import FacesynthError
from facesynth.output import write_atomic


def write(folder: Path, images: int, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint, then remove all but the newest `keep`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(folder / f"checkpoint-{images:08d}.pt", buffer.getvalue())
    for path in _newest_first(folder)[keep:]:
        path.unlink(missing_ok=True)


def read_newest(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read, after a warning for each that cannot; None where there is no checkpoint yet.

    Raises FacesynthError where there are checkpoints and none can be read.
    """
    broken = []
    for path in _newest_first(folder):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds for a broken file
            broken.append(f"{path}: the checkpoint cannot be read ({type(error).__name__})")
            continue
        for line in broken:
            console.warn(f"{line}; going on from {path.name}.")
        return state
    if broken:
        raise FacesynthError(f"{broken[0]}, and there is no earlier one that can; choose another --out.")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.partition("-")[2]), reverse=True)
