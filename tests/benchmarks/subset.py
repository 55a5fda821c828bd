"""A small dataset out of a large one: python tests/benchmarks/subset.py SRC OUT [--fraction 0.1].

OUT/train holds that share of each class of SRC's training split (chosen by pixels alone, as `evaluate --fraction` does), and
OUT/test the test images that equal no training image of SRC pixel by pixel. The test stays as fresh for weights that were
trained on all of SRC, such as the built-in ones on FER2013, as it is for those trained on OUT.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.imageset import read_real
from facesynth.trials import portion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1)
    arguments = parser.parse_args()
    images = read_real(arguments.src, JudgeExtractor(load_judge("judge-48", "cpu")))
    train, test = images.of("train"), images.of("test")
    kept = portion(train, arguments.fraction, "fraction")
    fresh = ~np.isin(test.digests, train.digests)
    copy(arguments.src, arguments.out, "train", train.take(np.flatnonzero(kept)).names)
    copy(arguments.src, arguments.out, "test", test.take(np.flatnonzero(fresh)).names)
    print(f"{kept.sum():,} of {len(kept):,} training images, {fresh.sum():,} of {len(fresh):,} test images")


def copy(src: Path, out: Path, split: str, names: Iterable[str]) -> None:
    """Copy images of a split by their names, CLASS/FILE."""
    for name in names:
        place = out / split / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(src / split / name, place)


if __name__ == "__main__":
    main()
