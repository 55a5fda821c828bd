"""Which device the networks run on."""

from __future__ import annotations

import os
from functools import cache

import torch

from facesynth.console import UsageError


@cache  # asked for at every training step
def pick_device(device: str) -> tuple[str, str]:
    """Turn `auto` into cuda or cpu, or what `accelerate launch` says; returns the device and what to tell the person.

    Raises UsageError for a device that is not there.
    """
    if device == "auto":
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
            return "cpu", "cpu (accelerate launch --cpu)"
        if torch.cuda.is_available():
            return "cuda", torch.cuda.get_device_name()
        return "cpu", "cpu (no CUDA device found)"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used here ({reason}); use auto or cpu.") from error
    return device, device
