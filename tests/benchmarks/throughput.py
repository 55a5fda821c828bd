"""How much of a worker's time its networks take: python tests/benchmarks/throughput.py SRC [--identity-model PACK].

Runs `balance` in one process on one core, with every call of a network timed, and prints
networks' time / wall time of all shards: what end-to-end throughput is of what the networks alone allow on the same batches.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import facesynth
from facesynth import console, synthesis

NETWORKS = {"generator": ["propose"], "judge": ["predict"], "embedder": ["locate", "embed"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path)
    parser.add_argument("--identity-model")
    parser.add_argument("--target", default="disgust=1500", help="few classes and images: the ratio settles fast")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {next(iter(os.sched_getaffinity(0)))})
    seconds: Counter[str] = Counter()
    _time_shards(seconds)
    console.set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"out": Path(folder) / "out", "workers": 1, "synthetic_only": True}
        result = facesynth.balance(arguments.src, arguments.target, identity_model=arguments.identity_model, **settings)
    networks = sum(seconds[name] for names in NETWORKS.values() for name in names)
    for name, spent in seconds.most_common():
        print(f"{name:10s} {spent:8.2f} s {1e3 * spent / result.tried:8.2f} ms per candidate")
    print(f"{result.tried:,} candidates, {sum(result.synthetic.values()):,} accepted")
    print(f"networks / shards = {networks / seconds['shards']:.3f}")


def _time_shards(seconds: Counter[str]) -> None:
    """Wrap the worker's calls and those of its networks so that each adds to `seconds`."""

    def timed(call: Any, name: str) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - begun

        return wrapper

    made = synthesis.Worker.__init__

    def init(self: synthesis.Worker, job: synthesis.Job) -> None:
        made(self, job)
        for network, calls in NETWORKS.items():
            for call in calls:
                if getattr(self, network) is not None:
                    setattr(getattr(self, network), call, timed(getattr(getattr(self, network), call), call))

    synthesis.Worker.__init__ = init  # type: ignore[method-assign]
    synthesis.Worker.__call__ = timed(synthesis.Worker.__call__, "shards")  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
