"""Peak memory, and whether it grows with the dataset: python tests/benchmarks/memory.py SRC [--identity-model PACK].

Runs `facesynth balance` on a quarter of SRC's training images and on all of them, and prints the peak memory of the whole
process tree (proportional set size, so that shared pages count once) and the ratio of the two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

from facesynth.dataset import scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path)
    parser.add_argument("--identity-model")
    parser.add_argument("--target", default="uniform")
    arguments = parser.parse_args()
    more = ["--identity-model", arguments.identity_model] if arguments.identity_model else []
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for every in (4, 1):
            src = _subset(arguments.src, Path(scratch) / f"every-{every}", every)
            command = ["balance", str(src), "--target", arguments.target, "--out", f"{src}-out", "-q", *more]
            peaks.append(peak_of([str(Path(sys.executable).with_name("facesynth")), *command]))
            print(f"1/{every} of the images: peak {peaks[-1] / 2**20:,.0f} MiB")
    print(f"all / quarter = {peaks[1] / peaks[0]:.3f}")


def _subset(src: Path, folder: Path, every: int) -> Path:
    data = scan(src)
    for sample in data.samples["train"][::every]:
        data.copy(sample, folder / sample.name, link=True)
    return folder


def peak_of(command: list[str]) -> int:
    """Largest sum of proportional set sizes, in bytes, that sampling four times a second saw."""
    process = psutil.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_pss(one) for one in [process, *_children(process)]))
        time.sleep(0.25)
    if process.returncode not in (0, 3):
        sys.exit(f"the run failed with exit code {process.returncode}")
    return peak


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


if __name__ == "__main__":
    main()
