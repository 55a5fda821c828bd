"""Synthetic sets side by side: python tests/benchmarks/sets.py REAL SYNTHETIC [SYNTHETIC ...] [--arms sampler,share,first].

Trains arms of an uplift on REAL's training split and each synthetic set, and reads REAL's test split, which should be one to
choose by (subset.py --development). Prints accuracy, macro-F1 and the rarest class's F1 of every arm, in percent, and how much
its macro-F1 is above that of the first arm of the first set: mean and standard error over seeds. Arms decide as they were
trained, without a class prior. Trainings are kept in --out: what is there is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from facesynth import console
from facesynth.arms import choose
from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.imageset import read_real, read_synthetic
from facesynth.recipe import RecognizerSettings
from facesynth.significance import recognition
from facesynth.trials import Bench, Trial, UpliftConfig, hold_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("synthetic", type=Path, nargs="+")
    parser.add_argument("--arms", default="sampler,share,first")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/sets"))
    arguments = parser.parse_args()
    console.set_quiet(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = {"seeds": arguments.seeds, "steps": arguments.steps, "width": arguments.width}
    config = UpliftConfig(network="small", device="cpu", **shape)
    bench = Bench(config, arguments.out)
    reader = JudgeExtractor(load_judge("judge-48", "cpu"))
    real = read_real(arguments.real, reader)
    first = None
    print("| set | arm | accuracy | macro-F1 | rarest class | macro-F1 against the first |\n|---|---|---|---|---|---|")
    for src in arguments.synthetic:
        trial = hold_out(real, read_synthetic(src, real.classes, reader), real.of("test"))
        for arm in choose(arguments.arms.split(",")):
            found = scores(bench, trial, arm.settings, config)
            first = found if first is None else first
            gain = found[:, 1] - first[:, 1]
            spread = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
            row = " | ".join(f"{value:.1f}" for value in found.mean(axis=0))
            print(f"| {src.name} | {arm.name} | {row} | {gain.mean():+.1f} ± {spread:.1f} |", flush=True)


def scores(bench: Bench, trial: Trial, settings: RecognizerSettings, config: UpliftConfig) -> np.ndarray:
    """(seeds, 3): accuracy, macro-F1 and the F1 of the class with the fewest real images, in percent."""
    counts = trial.real.counts()
    rarest = min(counts, key=lambda name: counts[name])
    found = []
    with bench.progress:
        for seed in config.seed_list():
            read_as = bench.read(trial, settings, seed, trial.test).argmax(axis=1)
            of_seed = recognition(trial.test.labels, read_as, trial.real.classes)
            found.append((of_seed.accuracy, of_seed.macro_f1, of_seed.per_class[rarest].f1))
    return 100 * np.array(found)


if __name__ == "__main__":
    main()
