"""Are edited photos as sharp as their sources? python tests/benchmarks/sharpness.py SRC OUT, where OUT is augment's output.

Sharpness is the energy of the Laplacian of the luma. For each edit its ratio to the source's is taken over the pixels that the
edit leaves alone and over those that it changes, which are told by the luma's mean difference within some pixels. Prints
medians, and the ratio that 95 % of the edits exceed; 1 is as sharp as the source.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from facesynth.dataset import scan

Array = NDArray[np.float32]

CHANGED = 1.5
"""Mean difference in the luma, of 255, from which on pixels count as changed: rounding and JPEG stay below."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    src, out = (path / scan(path).split_folders["train"] for path in (arguments.src, arguments.out))
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["synthetic"] == "true"]
    found = np.array([ratios(src / row["source"], out / row["file_name"]) for row in rows])
    print(f"{len(found):,} edits, {np.median(found[:, 0]):.0%} of the pixels changed (median)")
    for place, name in ((1, "left alone"), (2, "changed")):
        low, middle = np.quantile(found[:, place], [0.05, 0.5])
        print(f"sharpness where {name}: {middle:.3f} of the source's (median), over {low:.3f} in 95 % of the edits")


def ratios(before: Path, after: Path) -> tuple[float, float, float]:
    """Share of the pixels that are changed, and the ratios of sharpness where they are not and where they are."""
    source, edited = luma(before), luma(after)
    changed = cv2.GaussianBlur(abs(source - edited), (0, 0), 3) > CHANGED
    old, new = energy(source), energy(edited)
    return float(changed.mean()), *(float(new[part].sum() / old[part].sum()) for part in (~changed, changed))


def luma(path: Path) -> Array:
    """(H, W) in 0–255."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None, path
    return pixels.astype(np.float32)


def energy(pixels: Array) -> Array:
    """Squared Laplacian of each pixel."""
    return cv2.Laplacian(pixels, cv2.CV_32F) ** 2


if __name__ == "__main__":
    main()
