"""A small dataset out of a large one: python tests/benchmarks/subset.py SRC OUT [--fraction 0.1] [--development].

OUT/train holds that share of each class of SRC's training split (chosen by pixels alone, as `evaluate --fraction` does), and
OUT/test the test images that equal no training image of SRC pixel by pixel. The test stays as fresh for weights that were
trained on all of SRC, such as the built-in ones on FER2013, as it is for those trained on OUT.

With --development OUT/test holds no test image, but the training images that are not in OUT/train and that trainings on SRC
hold out: something to choose by.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.imageset import ImageSet, read_real
from facesynth.trials import held_out, portion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--development", action="store_true")
    arguments = parser.parse_args()
    images = read_real(arguments.src, JudgeExtractor(load_judge("judge-48", "cpu")))
    train, test = images.of("train"), images.of("test")
    kept = train.take(np.flatnonzero(portion(train, arguments.fraction, "fraction")))
    known = kept.digests if arguments.development else train.digests
    pool = train.take(np.flatnonzero(held_out(train))) if arguments.development else test
    fresh = pool.take(np.flatnonzero(~np.isin(pool.digests, known)))
    copy(kept, arguments.out, "train")
    copy(fresh, arguments.out, "test")
    print(f"{len(kept):,} of {len(train):,} training images; {len(fresh):,} to test on")


def copy(images: ImageSet, out: Path, split: str) -> None:
    """Copy the files of images into a split of `out`."""
    for sample in images.samples:
        place = out / split / sample.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(images.dataset.root / sample.split / sample.name, place)


if __name__ == "__main__":
    main()
