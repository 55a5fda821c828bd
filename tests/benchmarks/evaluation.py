"""What metrics cost beside reading: python tests/benchmarks/evaluation.py REAL SYNTH [--images N] [--identity-model PACK].

Takes N images of the training splits of REAL and of SYNTH (over again where there are fewer), reads them and measures
fidelity, in a process of its own with an empty cache; the same with N / 4. Prints the time of the metrics over that of
feature extraction, and how peak memory grows beside the features themselves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from facesynth import console
from facesynth.dataset import scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path)
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("--images", type=int, default=20_000, help="of each set")
    parser.add_argument("--features", default="judge", help="judge, inception, or the path of Inception's weights")
    parser.add_argument("--identity-model")
    parser.add_argument("--once", action="store_true", help="measure the two folders as they are, and print JSON")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(_measure(arguments)))
        return
    runs = []
    for images in (arguments.images // 4, arguments.images):
        runs.append(_run(arguments, images))
        print(_line(images, runs[-1]), flush=True)
    small, large = ((run["peak"] - run["features"]) / 2**20 for run in runs)
    print(f"metrics / extraction = {runs[1]['metrics'] / runs[1]['extraction']:.3f} (floors not cached)")
    print(f"memory beside the features, all / quarter = {large / small:.3f}")


def _line(images: int, run: dict[str, float]) -> str:
    return (
        f"{images:,} + {images:,} images: extraction {run['extraction']:.1f} s, metrics {run['metrics']:.1f} s, again with "
        f"cached floors {run['again']:.1f} s; peak {run['peak'] / 2**20:,.0f} MiB, features {run['features'] / 2**20:,.0f} MiB"
    )


def _run(arguments: argparse.Namespace, images: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        sources = {"real": arguments.real, "synthetic": arguments.synthetic}
        folders = [_subset(src, Path(scratch) / name, images) for name, src in sources.items()]
        command = [sys.executable, __file__, *folders, "--once", "--features", arguments.features]
        if arguments.identity_model:
            command += ["--identity-model", arguments.identity_model]
        environment = os.environ | {"FACESYNTH_CACHE": f"{scratch}/cache"}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    run: dict[str, float] = json.loads(done.stdout)
    return run


def _subset(src: Path, folder: Path, images: int) -> str:
    data = scan(src)
    samples = data.samples["train"]
    for k in range(images):
        # Evenly over the classes, which follow each other.
        sample = samples[k * len(samples) // images] if images <= len(samples) else samples[k % len(samples)]
        name = Path(sample.name)
        data.copy(sample, folder / name.parent / f"{k}-{name.name}")
    return str(folder)


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    from facesynth.extractors import open_extractor
    from facesynth.fidelity import measure
    from facesynth.identity import open_embedder
    from facesynth.imageset import read_real, read_synthetic

    console.set_quiet(True)
    extractor = open_extractor(arguments.features)
    given = arguments.identity_model
    embedder = open_embedder("insightface" if given else "off", given)[0]
    times = [time.perf_counter()]

    def timed(result: Any) -> Any:
        times.append(time.perf_counter())
        return result

    real = read_real(arguments.real, extractor, embedder)
    synthetic = timed(read_synthetic(arguments.synthetic, real.classes, extractor, embedder))
    timed(measure(real, synthetic, extractor.name))
    timed(measure(real, synthetic, extractor.name))
    extraction, metrics, again = (after - before for before, after in itertools.pairwise(times))
    arrays = [values for images in (real, synthetic) for values in _arrays(images)]
    return {
        "extraction": extraction,
        "metrics": metrics,
        "again": again,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "features": sum(values.nbytes for values in arrays),
    }


def _arrays(images: Any) -> list[Any]:
    kept = [images.crops, images.descriptors, *images.features.values(), *images.logits.values()]
    return kept if images.embeddings is None else [*kept, images.embeddings]


if __name__ == "__main__":
    main()
