"""How much faster the loop is than a plain one: python tests/benchmarks/training.py SRC [--preset NAME ...] [--device cpu].

For each preset, prints images/s of the loop as `facesynth train` runs it (its precision, memory format, optimisers and
compilation) and of a plain eager loop in full precision, contiguous, with optimisers that are not fused, on the same networks,
losses and batch, and the ratio of the two. They take turns in one process, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facesynth import config, console, training
from facesynth.loop import Loop
from facesynth.recipe import Logs, TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path)
    parser.add_argument("--preset", nargs="+", default=["cgan-48", "editor-48"], help="names or YAML files")
    parser.add_argument("--batch-size", type=int, help="the preset's where it is not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=8, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", default="auto", help="on, off or auto")
    arguments = parser.parse_args()
    console.set_quiet(True)
    for preset in arguments.preset:
        flags = {"batch_size": arguments.batch_size, "device": arguments.device, "compile": arguments.compile}
        told = config.load(TrainConfig, flags, preset=preset)
        ours, plain = _ours(arguments.src, told), _plain(arguments.src, told)
        rounds = [
            (_speed(ours, told, arguments.steps), _speed(plain, told, arguments.steps)) for _ in range(arguments.rounds)
        ]
        fast, slow = (max(speeds) for speeds in zip(*rounds, strict=True))
        print(f"{preset:16s} loop {fast:8.1f} img/s   plain {slow:8.1f} img/s   ratio {fast / slow:.2f}")


def _ours(src: Path, told: TrainConfig) -> Callable[[], object]:
    """A step of the loop, warm."""
    loop = Loop(_recipe(src, told), told, Path())
    loop._compile()
    loop.step()
    return loop.step


def _plain(src: Path, told: TrainConfig) -> Callable[[], object]:
    """The same step as a script of its own would do it, warm."""
    told = told.model_copy(update={"precision": "fp32"})
    recipe = _recipe(src, told)
    for model in recipe.models.values():
        model.to(memory_format=torch.contiguous_format)
    recipe.faces.take = _contiguous(recipe.faces.take)
    for optimizer in recipe.optimizers.values():
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=False)
    number = 0

    def descend(name: str, loss: Callable[[int], tuple[Tensor, Logs]]) -> Logs:
        recipe.optimizers[name].zero_grad()
        value, logs = loss(told.batch_size)
        value.backward()  # type: ignore[no-untyped-call]
        recipe.optimizers[name].step()
        return logs

    def step() -> None:
        nonlocal number
        recipe.step(torch.Generator().manual_seed(number), number, descend)
        number += 1

    step()
    return step


def _recipe(src: Path, told: TrainConfig) -> Any:
    torch.manual_seed(0)
    return training.RECIPES[told.recipe](told, training._load(src, told))


def _contiguous(take: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def taken(indices: Tensor) -> tuple[Tensor, ...]:
        images, *others = take(indices)
        return images.contiguous(memory_format=torch.contiguous_format), *others

    return taken


def _speed(step: Callable[[], object], told: TrainConfig, steps: int) -> float:
    """Images a second over some steps."""
    _wait(told)
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(told)
    return steps * told.batch_size / (time.perf_counter() - begun)


def _wait(told: TrainConfig) -> None:
    if told.torch_device().type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
