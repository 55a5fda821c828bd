"""Synthetic sets side by side: python tests/benchmarks/sets.py REAL SYNTHETIC [SYNTHETIC ...] [--arms sampler,share,first].

SYNTHETIC is an output of balance or augment, or several with commas between them, which are taken together.

Trains arms of an uplift on REAL's training split and each synthetic set, and reads REAL's test split, which should be one to
choose by (subset.py --development). Prints accuracy, macro-F1 and the rarest class's F1 of every arm, in percent, and how much
its macro-F1 is above that of the first arm of the first set: mean and standard error over seeds. Arms decide as they were
trained, without a class prior. --soft-labels 0.7 gives judge-48 that share in the labels of all arms. Trainings are kept in
--out: what is there is not trained again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from facesynth import console
from facesynth.arms import choose
from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.imageset import SyntheticSet, judged, read_real, read_synthetic
from facesynth.recipe import RecognizerSettings
from facesynth.significance import recognition
from facesynth.trials import Bench, Trial, UpliftConfig, hold_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("synthetic", nargs="+")
    parser.add_argument("--arms", default="sampler,share,first")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--soft-labels", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("runs/sets"))
    arguments = parser.parse_args()
    console.set_quiet(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = {"seeds": arguments.seeds, "steps": arguments.steps, "width": arguments.width}
    config = UpliftConfig(network="small", device="cpu", **shape)
    bench = Bench(config, arguments.out)
    judge = load_judge("judge-48", "cpu")
    reader = JudgeExtractor(judge)
    real = judged(read_real(arguments.real, reader), judge)
    first = None
    print("| set | arm | accuracy | macro-F1 | rarest class | macro-F1 against the first |\n|---|---|---|---|---|---|")
    for name in arguments.synthetic:
        sets = [judged(read_synthetic(src, real.classes, reader), judge) for src in name.split(",")]
        trial = hold_out(real, together(sets), real.of("test"))
        for arm in choose(arguments.arms.split(",")):
            settings = arm.settings.model_copy(update={"soft_labels": arguments.soft_labels})
            found = scores(bench, trial, settings, config)
            first = found if first is None else first
            gain = found[:, 1] - first[:, 1]
            spread = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
            row = " | ".join(f"{value:.1f}" for value in found.mean(axis=0))
            of = " + ".join(Path(src).name for src in name.split(","))
            print(f"| {of} | {arm.name} | {row} | {gain.mean():+.1f} ± {spread:.1f} |", flush=True)


def together(sets: list[SyntheticSet]) -> SyntheticSet:
    """Several synthetic sets as one, with what trainings need."""
    arrays = ("labels", "crops", "descriptors", "digests", "weights", "intensities", "probabilities")
    joined = {name: np.concatenate([getattr(images, name) for images in sets]) for name in arrays}
    lists = {
        name: tuple(chain.from_iterable(getattr(images, name) for images in sets))
        for name in ("samples", "sources", "source_labels")
    }
    return replace(sets[0], **joined, **lists, features={}, logits={}, scores={}, embeddings=None)


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
