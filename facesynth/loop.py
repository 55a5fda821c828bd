"""The training loop that every recipe shares.

Trainings resume exactly, because the random numbers of step n come from (seed, n).
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from facesynth import console
from facesynth.console import FacesynthError
from facesynth.output import write_atomic
from facesynth.recipe import Logs, Trainable, TrainConfig


class Loop:
    """Steps, averages, logs and checkpoints; knows nothing of what is trained.

    `run` does all of it; `step` alone leaves nothing on disk. The random numbers of step n come from (seed, n).
    """

    def __init__(self, recipe: Trainable, config: TrainConfig, out: Path) -> None:
        self.recipe, self.config, self.out = recipe, config, out
        self.number = 0
        for optimizer in recipe.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.ema = {name: copy.deepcopy(model).eval().requires_grad_(False) for name, model in recipe.averaged.items()}

    @property
    def images(self) -> int:
        """Training images seen so far."""
        return self.number * self.config.batch_size

    def run(self) -> float:
        """Step until the configured number of images is seen; returns the seconds it took."""
        from torch.utils.tensorboard import SummaryWriter

        begun = saved = logged = time.monotonic()
        sums: Logs = {}
        steps = 0
        with (
            console.progress("training", self.config.images, self.images) as bar,
            SummaryWriter(str(self.out / "tensorboard"), purge_step=self.images) as board,
        ):
            while self.images < self.config.images:
                logs = self.step()
                sums = {name: value + sums.get(name, 0) for name, value in logs.items()}
                steps += 1
                bar.advance(self.config.batch_size)
                now = time.monotonic()
                if now - logged > 10 or self.images >= self.config.images:
                    means = {name: round(float(value) / steps, 5) for name, value in sums.items()}
                    self._log(board, means)
                    bar.describe(" ".join(f"{name} {value:.3g}" for name, value in means.items()))
                    sums, steps, logged = {}, 0, now
                if now - saved > 60 * self.config.checkpoint_minutes:
                    self.save()
                    self._check(board)
                    saved = time.monotonic()
            self.save()
            self._check(board)
        return time.monotonic() - begun

    def step(self) -> Logs:
        """One optimiser step with the random numbers of this step alone, then the moving average."""
        rng = torch.Generator().manual_seed((self.config.seed << 32) + self.number)
        torch.manual_seed((self.config.seed << 32) + self.number)  # dropout draws from the global generator
        for optimizer in self.recipe.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._schedule()
        logs = self.recipe.step(rng, self.number, self._descend)
        self.number += 1
        self._average()
        return logs

    def _descend(self, name: str, loss: Callable[[int], tuple[Tensor, Logs]]) -> Logs:
        """See `recipe.Descend`."""
        optimizer = self.recipe.optimizers[name]
        optimizer.zero_grad()
        value, logs = loss(self.config.batch_size)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return logs

    def _schedule(self) -> float:
        warm = min(1.0, (self.images + 1) / max(1.0, self.config.warmup_images))
        if self.config.schedule == "constant":
            return warm
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

    def _check(self, board: Any) -> None:
        """Log what the recipe finds of its averaged network by the way, where it looks."""
        check = getattr(self.recipe, "check", None)
        if check is not None:
            with torch.no_grad():
                (model,) = self.ema.values()
                self._log(board, check(model))

    def _log(self, board: Any, means: dict[str, float]) -> None:
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise FacesynthError(
                f"the training diverged after {self.images:,} images ({', '.join(broken)} is not finite); the last checkpoint in "
                f"{self.out} is from before. Train anew with a lower learning_rate."
            )
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps({"images": self.images, **means}) + "\n")
        for name, value in means.items():
            board.add_scalar(name, value, self.images)

    def save(self) -> None:
        """Write the checkpoint, and the sample sheet where the recipe draws one; atomic."""
        state = {
            "number": self.number,
            "models": {name: model.state_dict() for name, model in self.recipe.models.items()},
            "ema": {name: model.state_dict() for name, model in self.ema.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.recipe.optimizers.items()},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.out / "checkpoint.pt", buffer.getvalue())
        sheet = getattr(self.recipe, "sheet", None)
        if sheet is not None:
            with torch.no_grad():
                (model,) = self.ema.values()
                pixels = (sheet(model).clamp(0, 1) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(self.out / f"sheet-{self.images:08d}.png")

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint: those steps come again."""
        path = self.out / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["images"] <= self.images]
        write_atomic(path, "".join(kept).encode())

    def restore(self) -> None:
        """Go on from checkpoint.pt, if there is one yet."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            console.note(f"{path}: no checkpoint yet; starting from the beginning.")
            return
        try:
            state = torch.load(path, map_location=self.config.torch_device(), weights_only=True)
        except Exception as error:  # torch.load raises many kinds for a broken file
            raise FacesynthError(
                f"{path}: the checkpoint cannot be read ({type(error).__name__}); choose another --out."
            ) from error
        self.number = state["number"]
        self._cut_log()
        for name, model in self.recipe.models.items():
            model.load_state_dict(state["models"][name])
        for name, model in self.ema.items():
            model.load_state_dict(state["ema"][name])
        for name, optimizer in self.recipe.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
