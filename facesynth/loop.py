"""The training loop that every recipe shares.

Trainings resume exactly, because the random numbers of step n come from (seed, n, process).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from PIL import Image
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from facesynth import checkpoints, console
from facesynth.console import FacesynthError
from facesynth.curves import draw_losses
from facesynth.descent import Descent, PartTooLargeError
from facesynth.guard import Guard
from facesynth.output import write_atomic
from facesynth.processes import Processes
from facesynth.recipe import Logs, Trainable, TrainConfig
from facesynth.tracker import Tracker

LOG_SECONDS = 10
"""Between two lines of the log, each the mean of the steps since the last."""

PROVEN = 32
"""Steps after which it is known how much memory a step takes, lazy penalties included."""


class Loop:
    """Steps, averages, logs and checkpoints; knows nothing of what is trained.

    `run` does all of it; `step` alone leaves nothing on disk. Where several processes train together, each has a loop of
    its own on its own part of each batch, weights stay the same in all of them, and the first alone writes and speaks.
    """

    def __init__(self, recipe: Trainable, config: TrainConfig, out: Path) -> None:
        self.recipe, self.config, self.out = recipe, config, out
        self.processes = Processes()
        self.processes.equalise(recipe.models.values())
        self.number = 0
        self._attempts = 0
        for optimizer in recipe.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.ema = {name: copy.deepcopy(model).eval().requires_grad_(False) for name, model in recipe.averaged.items()}
        self._descend = Descent(recipe.optimizers, config.batch_size, config.accumulate, self.processes)

    @property
    def images(self) -> int:
        """Training images seen so far, by all processes."""
        return self.number * self.config.batch_size

    @property
    def result(self) -> Any:
        """The averaged network that the training is for: the first in the recipe's `averaged`."""
        return next(iter(self.ema.values()))

    # --- the whole of it ----------------------------------------------------------------------------------------------

    def run(self) -> float:
        """Step until the configured number of images is seen; returns the seconds it took."""
        begun = time.monotonic()
        self._compile()
        if self.processes.main:
            self._run_and_tell()
        else:
            while self.images < self.config.images:
                self.step()
        return time.monotonic() - begun

    def _run_and_tell(self) -> None:
        settings = self.config.model_dump(mode="json")
        tracker = Tracker(self.config.tracker, self.out, self.images, settings)
        guard = Guard(self.config.images)
        saved = logged = time.monotonic()
        sums: Logs = {}
        steps: Counter[str] = Counter()  # of each name: not every step logs them all
        try:
            with console.progress("training", self.config.images, self.images) as bar:
                while self.images < self.config.images:
                    logs = self.step()
                    sums |= {name: value + sums.get(name, 0) for name, value in logs.items()}
                    steps.update(logs.keys())
                    bar.advance(self.config.batch_size)
                    now = time.monotonic()
                    due = now - saved > 60 * self.config.checkpoint_minutes
                    if due or now - logged > LOG_SECONDS or self.images >= self.config.images:
                        means = {name: round(float(value) / steps[name], 5) for name, value in sums.items()}
                        self._log(means, tracker, guard)
                        losses = (f"{name} {value:.3g}" for name, value in means.items() if "/" not in name)
                        bar.describe(" ".join(losses))
                        sums, steps, logged = {}, Counter(), now
                    if due and self.images < self.config.images:
                        self._save(tracker, guard)
                        saved = time.monotonic()
                self._save(tracker, guard)
        finally:
            tracker.close()

    def _save(self, tracker: Tracker, guard: Guard) -> None:
        """Leave a checkpoint and what can be seen of the training so far."""
        checkpoints.write(self.out, self.images, self._state(), self.config.keep_checkpoints)
        self._draw_sheet(tracker)
        check = getattr(self.recipe, "check", None)
        if check is not None:
            with torch.no_grad():
                self._log(check(self.result), tracker, guard)
        draw_losses(self.out / "losses.png")

    def _log(self, figures: dict[str, float], tracker: Tracker, guard: Guard) -> None:
        guard.watch(self.images, figures)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps({"images": self.images, **figures}) + "\n")
        tracker.log(figures, self.images)

    def _draw_sheet(self, tracker: Tracker) -> None:
        """What the recipe shows of its averaged network, where it does."""
        sheet = getattr(self.recipe, "sheet", None)
        if sheet is None:
            return
        with torch.no_grad():
            pixels: np.ndarray = (sheet(self.result).clamp(0, 1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(self.out / f"sheet-{self.images:08d}.png")
        tracker.show("sheet", pixels, self.images)

    # --- one step -----------------------------------------------------------------------------------------------------

    def step(self) -> Logs:
        """One optimisation step with the random numbers of this step alone, then the moving average.

        Where memory runs out, the step is begun again in smaller parts.
        """
        for name, optimizer in self.recipe.optimizers.items():
            wait = self.config.critic_first if name in self.recipe.averaged else 0
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._schedule(wait)
        logs = self._try()
        while logs is None:
            logs = self._try()
        self.number += 1
        self._average()
        return logs

    def _try(self) -> Logs | None:
        """The recipe's step; None, with all as it was but for what stood in its way, where it has to be begun again.

        Weights are put back in the first steps alone, where it shows how much memory is needed: it costs a copy of them. Were
        another program to take the memory later, then what a step had done would be done again.
        """
        learning = {p: p.requires_grad for model in self.recipe.models.values() for p in model.parameters()}
        before = recursively_apply(_kept, self._networks()) if self._attempts < PROVEN else None
        self._attempts += 1
        # Mixed into 32 bits, because PyTorch's generator on the CPU passes over all others.
        numbers = [self.config.seed, self.processes.index, self.number]
        seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout draws from the global generator
        try:
            return self.recipe.step(rng, self.number, self._descend)
        except PartTooLargeError:
            self._descend.halve()
        except TorchDynamoException as error:
            self._run_uncompiled(error)
        for parameter, learns in learning.items():
            parameter.requires_grad_(learns)
        if before is not None:
            self._load_networks(before)
        return None

    def _schedule(self, wait: int) -> float:
        """The learning rate as a share of the configured one, none over the first `wait` images."""
        if self.images < wait:
            return 0.0
        warm = min(1.0, (self.images - wait + 1) / max(1.0, self.config.warmup_images))
        if self.config.schedule == "constant":
            return warm
        if self.config.schedule == "linear":
            return warm * min(1.0, (1 - self.images / self.config.images) / self.config.decay_share)
        return warm * 0.5 * (1 + math.cos(math.pi * self.images / self.config.images))

    @torch.no_grad()
    def _average(self) -> None:
        # The half-life grows with what has been seen, so that the average forgets the start early (EDM, Karras et al. 2022).
        half_life = min(self.config.ema_images, 0.05 * self.images)
        decay = 0.5 ** (self.config.batch_size / max(half_life, 1e-8))
        for name, average in self.ema.items():
            live = self.recipe.averaged[name]
            for mean, value in zip(average.parameters(), live.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for mean, value in zip(average.buffers(), live.buffers(), strict=True):
                mean.copy_(value)

    def _compile(self) -> None:
        """Compile the networks in place where that pays: on CUDA. The averaged ones, which only draw now and then, stay."""
        wanted = self.config.compile
        if wanted == "on" or (wanted == "auto" and self.config.torch_device().type == "cuda"):
            for model in self.recipe.models.values():
                model.compile()

    def _run_uncompiled(self, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0]
        if self.config.compile == "on":
            raise FacesynthError(f"the networks cannot be compiled here ({reason}); set compile: off.") from error
        console.note(f"the networks cannot be compiled here ({reason}): going on without.")
        for model in self.recipe.models.values():
            model._compiled_call_impl = None  # what `compile` has set, and offers no way to take back

    # --- what it goes on from -----------------------------------------------------------------------------------------

    def _networks(self) -> dict[str, Any]:
        return {
            "models": {name: model.state_dict() for name, model in self.recipe.models.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.recipe.optimizers.items()},
        }

    def _load_networks(self, state: dict[str, Any]) -> None:
        for name, model in self.recipe.models.items():
            model.load_state_dict(state["models"][name])
        for name, optimizer in self.recipe.optimizers.items():
            rates = [group["initial_lr"] for group in optimizer.param_groups]  # may be lower than before the stop
            optimizer.load_state_dict(state["optimizers"][name])
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["initial_lr"] = rate

    def _state(self) -> dict[str, Any]:
        # Batch norm's running statistics are those of the first process: an unbiased part of what all have seen.
        ema = {name: model.state_dict() for name, model in self.ema.items()}
        return self._networks() | {"number": self.number, "parts": self._descend.parts, "ema": ema}

    def restore(self) -> None:
        """Go on from the newest checkpoint that can be read, if there is one yet."""
        state = self.processes.from_main(checkpoints.read_newest(self.out) if self.processes.main else None)
        if state is None:
            console.note(f"{self.out}: no checkpoint yet; starting from the beginning.")
            return
        try:
            self._load_networks(state)
            for name, model in self.ema.items():
                model.load_state_dict(state["ema"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise FacesynthError(
                f"{self.out}: its checkpoint is of other networks; choose another --out ({type(error).__name__})."
            ) from error
        self.number = state["number"]
        self._descend.divide(state["parts"])
        if self.processes.main:
            self._cut_log()

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint: those steps come again."""
        path = self.out / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["images"] <= self.images]
        write_atomic(path, "".join(kept).encode())


def _kept(tensor: Tensor) -> Tensor:
    """A copy where it takes no memory from the step."""
    return tensor.detach().to("cpu", copy=True)
