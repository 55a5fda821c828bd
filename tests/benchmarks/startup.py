"""How long a person waits before anything happens: python tests/benchmarks/startup.py.

Prints the seconds of `facesynth --help` and of `balance --dry-run` on a tree of 200,000 files, and both as multiples of a bare
start of Python in the same run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = 200_000
CLASSES = {"angry": 0.15, "disgust": 0.01, "fear": 0.14, "happy": 0.3, "neutral": 0.2, "sad": 0.12, "surprise": 0.08}


def seconds(*command: str, runs: int) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    bare = seconds(sys.executable, "-c", "pass", runs=5)
    facesynth = str(Path(sys.executable).with_name("facesynth"))
    shown = {"--help": seconds(facesynth, "--help", runs=5)}
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "faces"
        for label, share in CLASSES.items():
            (src / label).mkdir(parents=True)
            for k in range(round(FILES * share)):
                (src / label / f"im{k}.png").touch()
        shown[f"--dry-run, {FILES:,} files"] = seconds(facesynth, "balance", str(src), "--dry-run", runs=2)
    for name, spent in shown.items():
        print(f"{name:28s} {spent:6.2f} s = {spent / bare:6.1f} x a bare start of Python")


if __name__ == "__main__":
    main()
