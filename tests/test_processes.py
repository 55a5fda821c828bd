"""Two processes on this machine's CPU train one network together, started as a person would start them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facesynth import train, weights
from facesynth.console import UsageError
from facesynth.loop import Loop
from facesynth.processes import join
from facesynth.recipe import Descend, Logs, TrainConfig

PRESET = """
recipe: gan
batch_size: 7
warmup_images: 0
checkpoint_minutes: 1.0e-9
gan: {network: conv-48, width: 2, latent: 8, condition: label}
"""

TOGETHER = """
import atexit
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_processes import Known, told
from facesynth import train
from facesynth.loop import Loop
from facesynth.processes import join

out = Path({out!r})
# Runs last: by then they must have parted, or Gloo's threads may abort the process while Python ends.
atexit.register(lambda: torch.distributed.is_initialized() or (out / f"parted-{{processes.index}}").touch())
processes = join("cpu")
result = train({src!r}, {preset!r}, out / "whole", images=28, device="cpu")
resumed = train({src!r}, {preset!r}, out / "parts", images=28, device="cpu", resume=True)
known = Known(range(7)[processes.index::2], fails_above=1000 if processes.main else 2)
torch.manual_seed(processes.index)
torch.nn.init.normal_(known.model.weight)  # differs, until the loop makes it the first process's
loop = Loop(known, told(), out)
begun = {{key: value.clone() for key, value in known.model.state_dict().items()}}
for _ in range(3):
    loop.step()
torch.save((begun, known.model.state_dict(), known.unused.grad, result.figures, resumed.figures, known.counts),
           out / f"seen-by-{{processes.index}}.pt")
"""


def told() -> TrainConfig:
    settings: dict[str, Any] = {"images": 21, "batch_size": 7, "warmup_images": 0, "device": "cpu"}
    return TrainConfig(recipe="judge", **settings)


class Known:
    """A `Trainable` that takes `rows` of known points in turn, however it is divided; `fails_above` is what memory holds."""

    def __init__(self, rows: range, fails_above: int = 1000) -> None:
        self.rows, self.fails_above = rows, fails_above
        self.counts: list[int] = []
        self.model = nn.Linear(3, 1)
        self.unused = nn.Parameter(torch.ones(2))
        self.models = self.averaged = {"model": self.model}
        parameters = [self.unused, *self.model.parameters()]
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": torch.optim.AdamW(parameters, 0.1)}
        self.points = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        taken = iter(self.rows)
        return descend("model", lambda count: self.loss([next(taken) for _ in range(count)]))

    def loss(self, rows: list[int]) -> tuple[Tensor, Logs]:
        if len(rows) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.counts.append(len(rows))
        points = self.points[rows]
        loss = (self.model(points)[:, 0] - points.sum(1)).square().mean()
        return loss, {"loss": loss.detach()}


def launch(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    ended = subprocess.run(
        [*start, "--main_process_port", "0", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended


def test_two_processes_train_one_network(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(PRESET)
    flags = ("--preset", tmp_path / "small.yaml", "--out", tmp_path / "parts", "--images", 14, "--device", "cpu")
    ended = launch("-m", "facesynth", "train", drawn, *flags, "--json")
    assert ended.stdout.count('"weights"') == 1
    assert ended.stderr.count("images in") == 1  # one of them speaks
    script = tmp_path / "together.py"
    places = {"src": str(drawn), "preset": str(tmp_path / "small.yaml"), "out": str(tmp_path)}
    script.write_text(TOGETHER.format(tests=str(Path(__file__).parent), **places))
    launch(script)
    assert all((tmp_path / f"parted-{k}").is_file() for k in range(2))

    logged = [json.loads(line) for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in logged if "critic" in line] == [7, 14, 21, 28]
    # What was stopped after half of it and goes on ends as what was not stopped, and not as what one process trains alone.
    whole = (tmp_path / "whole/model.safetensors").read_bytes()
    assert (tmp_path / "parts/model.safetensors").read_bytes() == whole
    alone = train(drawn, str(tmp_path / "small.yaml"), tmp_path / "alone", images=28, device="cpu")
    assert alone.weights.read_bytes() != whole
    assert weights.load(str(tmp_path / "whole")).info["images"] == 28

    seen = [torch.load(tmp_path / f"seen-by-{k}.pt") for k in range(2)]
    assert seen[0][3] == seen[1][3] == seen[0][4] == seen[1][4]  # the same figures everywhere
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(seen[0][1].values(), seen[1][1].values(), strict=True))
    # Shares of four and three faces, in two parts as the second process has too little memory, make the mean over all seven.
    assert (seen[0][5], seen[1][5]) == ([4, 2, 2, 2, 2, 2, 2], [2, 1, 2, 1, 2, 1])
    known = Known(range(7))
    known.model.load_state_dict(seen[0][0])
    loop = Loop(known, told(), tmp_path)
    for _ in range(3):
        loop.step()
    torch.testing.assert_close(known.model.state_dict(), seen[0][1])
    assert seen[0][2] is None  # a weight that nobody used is left alone, decay included


def test_a_device_for_all_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--device cuda:1 is for one process; with several, each takes its own"):
        join("cuda:1")
