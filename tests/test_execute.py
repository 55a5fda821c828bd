"""The engine: failures are values, and workers do not outlive the run that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from facesynth.console import FacesynthError
from facesynth.execute import Engine, Outcome

SLOW = """
import time
from dataclasses import dataclass
from facesynth.execute import Engine

@dataclass(frozen=True)
class Shard:
    index: int

def work(shard):
    print("working", flush=True)
    time.sleep(60)

def make():
    return work

if __name__ == "__main__":
    with Engine(make, 2) as engine:
        list(engine.run([Shard(0), Shard(1), Shard(2)]))
"""


@dataclass(frozen=True)
class Shard:
    index: int


class Fragile:
    """Fails shard 1 always, shard 2 once, shard 3 with a final error."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, shard: Shard) -> None:
        self.calls.append(shard.index)
        if shard.index == 1 or (shard.index == 2 and self.calls.count(2) == 1):
            raise ValueError("no luck")
        if shard.index == 3:
            raise FacesynthError("the disk is full")


def test_a_failure_is_a_value_tried_once_more_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACESYNTH_DEBUG", raising=False)
    worker = Fragile()
    with Engine(lambda: worker, 1) as engine:
        outcomes = list(engine.run([Shard(k) for k in range(5)]))
    assert outcomes == [
        Outcome(Shard(0)),
        Outcome(Shard(1), "shard 1: ValueError: no luck"),
        Outcome(Shard(2)),
        Outcome(Shard(3), "the disk is full"),
        Outcome(Shard(4)),
    ]
    assert worker.calls == [0, 1, 1, 2, 2, 3, 4]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["working\n"] * 2
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
