"""One step down a gradient: in parts that fit into memory, together with other processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from facesynth import console
from facesynth.console import FacesynthError
from facesynth.processes import Processes
from facesynth.recipe import Logs


class PartTooLargeError(Exception):
    """A part of the batch was too large for this process or for another one; no optimiser has stepped since."""


class Descent:
    """A `recipe.Descend`: draws this process's share of the batch in `parts`, whose gradients add up to the batch's mean.

    Losses that compare the faces of a batch with each other (contrastive, relativistic) and batch normalisation see one
    part of one process at a time, so with more parts or processes they compare fewer faces. What is logged is the mean over
    this process's parts; `gradient/NAME` is the norm of the whole gradient.
    """

    def __init__(
        self, optimizers: Mapping[str, torch.optim.Optimizer], batch_size: int, parts: int, processes: Processes
    ) -> None:
        self.optimizers, self.batch_size, self.processes = optimizers, batch_size, processes
        self._share = processes.share(batch_size)
        self._most = batch_size // processes.count
        self.parts = 1
        self.divide(parts)

    def divide(self, parts: int) -> None:
        """Work in at least so many parts, as far as there are faces."""
        self.parts = max(self.parts, min(parts, self._most))

    def __call__(self, name: str, loss: Callable[[int], tuple[Tensor, Logs]]) -> Logs:
        """See `recipe.Descend`. Raises PartTooLargeError in all processes where one of them has too little for a part."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        try:
            logs, failed = self._accumulate(loss), False
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            logs, failed = {}, True
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.processes.count > 1:
            failed = self._average(parameters, failed)
        if failed:  # outside the handler, whose exception holds on to the tensors that were too large
            optimizer.zero_grad()
            clear_device_cache(garbage_collection=True)
            raise PartTooLargeError
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        logs[f"gradient/{name}"] = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        return logs

    def _accumulate(self, loss: Callable[[int], tuple[Tensor, Logs]]) -> Logs:
        """Add up the gradients of the parts, and average what they log."""
        sums: Logs = {}
        for k in range(self.parts):
            count = self._share // self.parts + (k < self._share % self.parts)
            value, logs = loss(count)
            (value * (count / self.batch_size)).backward()  # type: ignore[no-untyped-call]
            for name, logged in logs.items():
                sums[name] = sums.get(name, 0) + logged * (count / self._share)
        return sums

    def _average(self, parameters: list[torch.nn.Parameter], failed: bool) -> bool:
        """Add up the gradients of all processes, in one message; returns whether any of them failed.

        Beside the gradients go whether there is one, as a weight that no process used has to stay as it is, and the failure.
        """
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters] + [float(failed)])
        # A failed process may lack gradients that others have.
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([*(gradient.flatten().float() for gradient in flat), used.to(flat[0].device)])
        total = self.processes.total(message)
        *present, failures = total[-len(used) :].tolist()
        place = 0
        for parameter, count in zip(parameters, present, strict=True):
            size = parameter.numel()
            if count:
                parameter.grad = total[place : place + size].view_as(parameter).to(parameter)
            place += size
        return bool(failures)

    def halve(self) -> None:
        """Make the parts half as large; raises FacesynthError where they hold one face each."""
        if self.parts >= self._most:
            raise FacesynthError(
                "out of memory with one face at a time; train a smaller network, or free memory that other programs use."
            )
        self.divide(2 * self.parts)
        console.note(
            f"out of memory: going on with {-(-self._share // self.parts)} faces at a time; a step still sees "
            f"{self.batch_size} ({self.parts} parts)."
        )
