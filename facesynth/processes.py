"""The processes that train together: one, or as many as `accelerate launch` starts."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, reduce
from torch import Tensor, nn

from facesynth import console
from facesynth.console import UsageError
from facesynth.device import pick_device

PATIENCE = timedelta(hours=2)
"""How long the other processes wait for the first, which alone draws, checks and saves. One that dies ends them all."""


class Processes:
    """Who this process is among those that train together, and what they do in common.

    Networks are not wrapped: each process draws its own part of a batch, and gradients are averaged before an optimiser
    steps. So a training may have several networks, and penalties that differentiate twice.
    """

    def __init__(self) -> None:
        state = PartialState()
        self.index: int = state.process_index
        self.count: int = state.num_processes

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.index == 0

    def share(self, batch_size: int) -> int:
        """How many of a batch's faces this process draws; shares differ by one at most.

        Raises UsageError where there are more processes than faces.
        """
        if batch_size < self.count:
            raise UsageError(
                f"batch_size {batch_size} is for all processes together, and there are {self.count}; give at least one face "
                "to each."
            )
        return batch_size // self.count + (self.index < batch_size % self.count)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return numbers if self.count == 1 else reduce(numbers, "sum")

    @torch.no_grad()
    def equalise(self, models: Iterable[nn.Module]) -> None:
        """Give all processes the first one's weights and buffers."""
        if self.count > 1:
            for model in models:
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.copy_(broadcast(tensor.detach().clone(memory_format=torch.contiguous_format)))

    def from_main(self, value: Any) -> Any:
        """What the first process holds, a value that can be pickled; the others wait for it."""
        return broadcast_object_list([value])[0] if self.count > 1 else value


def join(device: str) -> Processes:
    """Meet the other processes, if `accelerate launch` started several; all but the first then fall silent.

    Raises UsageError where one device is asked for and there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            console.warn(
                "accelerate launch --cpu starts several processes only through mpirun, so this one trains alone; with "
                "--multi_gpu in its place it starts them on CPUs, too."
            )
        return Processes()
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device} is for one process; with several, each takes its own: leave --device out.")
    PartialState(cpu=pick_device(device)[0] == "cpu", timeout=PATIENCE)
    atexit.register(_part)
    processes = Processes()
    if not processes.main:
        console.mute()
    return processes


def _part() -> None:
    """Leave the other processes on CPUs. (NCCL's group is left to the system: it would wait for a process that died.)

    Gloo's threads still hold tensors after the last exchange, and one that lets go of its tensor while Python itself ends
    aborts the process.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
