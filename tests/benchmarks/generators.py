"""Generators side by side: python tests/benchmarks/generators.py SRC --judge RECOGNIZER [--train NAMES] [WEIGHTS ...].

Trains each preset in NAMES for --minutes, one after the other on the same machine, into --out (a preset that has been
trained there is taken as it is). Then each of them, and each of WEIGHTS, makes N faces of each class, before any gate: an
editor of random training faces of the other classes, at its default intensities. Prints a row for each:

- judge: share of the faces in which RECOGNIZER, which guided and gates nothing, reads the class asked for; mean over classes
- disgust, ...: the same in each class; the first row tells it of real test images
- same person: median cosine between source and result, by the embedder on whole crops
- KID x 1000, coverage: of the class's real training images by RECOGNIZER's features, mean over classes
- spread: mean distance between two faces of a class over that of real ones, by the same features; the lowest class

With --sheets DIR it leaves a picture of each there: columns of the same noise (or of the same neutral face, which faces-48
drew, since no real face is to be shown), rows of its classes in their order; what knows no classes draws 56 faces. Nothing in
it is chosen. Without --judge there is nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from facesynth import config, console, geometry, training
from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.fidelity import KID_CLASS_SUBSET_SIZE, Vectors, cloud_of, figures
from facesynth.generators.drawer import FaceDrawer
from facesynth.generators.proposal import FaceEditor
from facesynth.identity import FaceEmbedder, open_embedder
from facesynth.loop import Loop
from facesynth.recipe import TrainConfig
from facesynth.synthesis import load_generator
from facesynth.training_data import load_split

Array = np.ndarray
BATCH = 50
ACROSS = 14
ENDLESS = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path)
    parser.add_argument("weights", nargs="*")
    parser.add_argument("--judge", help="weights of a recognizer that was trained on SRC's training split")
    parser.add_argument("--train", default="", help="presets with commas")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/side-by-side"))
    parser.add_argument("--images", type=int, default=300, help="of each class")
    parser.add_argument("--identity-model")
    parser.add_argument("--sheets", type=Path)
    arguments = parser.parse_intermixed_args()
    console.set_quiet(True)
    trained = [
        _train(arguments.src, name, arguments.out / name, arguments.minutes)
        for name in arguments.train.split(",")
        if name
    ]
    if arguments.sheets:
        for spec in [*trained, *arguments.weights]:
            _write_sheet(arguments.sheets / f"{_name(spec)}.jpg", load_generator(spec))
    if not arguments.judge:
        return
    bench = Bench(arguments.src, arguments.judge, arguments.images, arguments.identity_model)
    print(f"| generator | judge | {' | '.join(bench.classes)} | same person | KID x 1000 | coverage | spread |")
    print(f"|---|{'---|' * (len(bench.classes) + 5)}")
    print(bench.real_row(), flush=True)
    for spec in [*trained, *arguments.weights]:
        print(bench.row(spec), flush=True)


def _train(src: Path, preset: str, out: Path, minutes: float) -> str:
    """Weights of a preset whose networks learned for so many minutes; nothing else counts, no sheet and no checkpoint."""
    path = out / "model.safetensors"
    if not path.exists():
        told = config.load(TrainConfig, {"schedule": "constant", "images": ENDLESS}, preset=preset)
        torch.manual_seed(told.seed)
        faces = training._load(src, told)
        recipe = training.RECIPES[told.recipe](told, faces)
        out.mkdir(parents=True, exist_ok=True)
        loop = Loop(recipe, told, out)
        begun = time.monotonic()
        while time.monotonic() - begun < 60 * minutes:
            loop.step()
        result = training._finish(recipe, loop, faces, 60 * minutes, preset, None)
        print(f"{preset}: {result.images:,} images in {minutes:g} minutes", flush=True)
    return str(path)


class Bench:
    """What generated faces are compared with."""

    def __init__(self, src: Path, judge: str, images: int, identity_model: str | None) -> None:
        self.judge = load_judge(judge)
        self.classes = self.judge.classes
        self.extractor = JudgeExtractor(self.judge)
        self.images = images
        crops, self.labels = load_split(src, "train")
        self.crops = crops.astype(np.float32) / 255
        self.test = load_split(src, "test")
        self.embedder: FaceEmbedder | None = open_embedder("auto", identity_model)[0]
        rng = np.random.default_rng(0)
        rows = [rng.permutation(np.flatnonzero(self.labels == k))[:2000] for k in range(len(self.classes))]
        self.clouds = [cloud_of(self._vectors(self.crops[own])) for own in rows]

    def _vectors(self, crops: Array) -> Vectors:
        parts = [self.extractor([], crops[start : start + 256]) for start in range(0, len(crops), 256)]
        features, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Vectors(features, logits, np.zeros(len(crops), int), np.zeros(len(crops), "S1"))

    def _reads(self, crops: Array, label: int) -> float:
        found = [self.judge.predict(crops[start : start + 256]).argmax(axis=1) for start in range(0, len(crops), 256)]
        return float((np.concatenate(found) == label).mean())

    def real_row(self) -> str:
        crops, labels = self.test[0].astype(np.float32) / 255, self.test[1]
        read = [self._reads(crops[labels == k], k) for k in range(len(self.classes))]
        return _line("real test images", read, None, None, None, None)

    def row(self, spec: str) -> str:
        generator = load_generator(spec)
        read, cosines, kid, coverage, spread = [], [], [], [], []
        for label, cloud in enumerate(self.clouds):
            rng = np.random.default_rng([1, label])
            made, sources = (np.concatenate(part) for part in zip(*self._make(generator, label, rng), strict=True))
            read.append(self._reads(made, label))
            own = cloud_of(self._vectors(made))
            found = figures(cloud, own, KID_CLASS_SUBSET_SIZE)
            kid.append(1000 * float(found["kid"].value or 0))
            coverage.append(float(found["coverage"].value or 0))
            spread.append(own.manifold.spread / cloud.manifold.spread)
            if self.embedder and not isinstance(generator, FaceDrawer):
                pairs = [self.embedder.embed(list(faces[..., None]), [None] * len(faces)) for faces in (sources, made)]
                cosines += (pairs[0] * pairs[1]).sum(axis=1).tolist()
        same = float(np.median(cosines)) if cosines else None
        return _line(_name(spec), read, same, float(np.mean(kid)), float(np.mean(coverage)), min(spread))

    def _make(
        self, generator: FaceDrawer | FaceEditor, label: int, rng: np.random.Generator
    ) -> Iterator[tuple[Array, Array]]:
        """Generated gray crops (B, 48, 48) and their sources, or themselves where they have none."""
        others = np.flatnonzero(self.labels != label)
        target = generator.classes.index(self.classes[label])
        for start in range(0, self.images, BATCH):
            count = min(BATCH, self.images - start)
            if isinstance(generator, FaceDrawer):
                drawn = generator.draw(
                    [target] * count, rng.standard_normal((count, generator.latent_size), np.float32)
                )
                made = np.stack([geometry.crop(face, geometry.frame_of(face, None)) for face in drawn])
                yield made, made
                continue
            rows = rng.choice(others, count)
            source = [generator.classes.index(self.classes[k]) for k in self.labels[rows]]
            strength = rng.uniform(*generator.intensity, count).astype(np.float32)
            yield _edit(generator, self.crops[rows], source, target, rng.spawn(count), strength), self.crops[rows]


def _edit(
    editor: FaceEditor,
    faces: Array,
    source: list[int],
    target: int,
    draws: list[np.random.Generator],
    strength: Array,
) -> Array:
    """Gray faces (N, 48, 48) edited into one class."""
    frame = geometry.frame_of(faces[0][..., None], None)
    seen = np.stack([geometry.crop(face[..., None], frame, editor.size, editor.channels == 3) for face in faces])
    edits = editor.propose(seen, source, [target] * len(faces), draws, strength)
    flows = [None] * len(faces) if edits.flow is None else edits.flow
    parts = zip(faces[..., None], flows, edits.difference, strict=True)
    return np.stack([geometry.put_back(face, frame, *edit)[..., 0] for face, *edit in parts])


def _draw(drawer: FaceDrawer, target: int, count: int) -> Array:
    """Faces (N, size, size, channels) of one class from noise that is the same every time."""
    return drawer.draw(
        [target] * count, np.random.default_rng(0).standard_normal((count, drawer.latent_size), np.float32)
    )


def _write_sheet(path: Path, generator: FaceDrawer | FaceEditor) -> None:
    targets = range(len(generator.classes))
    if isinstance(generator, FaceDrawer) and generator.conditional:
        rows = [_draw(generator, target, ACROSS) for target in targets]
    elif isinstance(generator, FaceDrawer):
        rows = np.split(_draw(generator, 0, 4 * ACROSS), 4)
    else:
        drawer = load_generator("faces-48")
        faces = _draw(drawer, drawer.classes.index("neutral"), ACROSS)[..., 0]
        source = [generator.classes.index("neutral")] * ACROSS
        strength = np.full(ACROSS, np.mean(generator.intensity), np.float32)
        edited = [
            _edit(generator, faces, source, target, np.random.default_rng(0).spawn(ACROSS), strength)
            for target in targets
        ]
        rows = [row[..., None] for row in (faces, *edited)]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows]).clip(0, 1)
    Image.fromarray(np.round(sheet * 255).astype(np.uint8).squeeze()).save(path, quality=90)


def _name(spec: str) -> str:
    path = Path(spec)
    return path.parent.name if path.name == "model.safetensors" else path.stem


def _line(
    name: str, read: list[float], same: float | None, kid: float | None, coverage: float | None, spread: float | None
) -> str:
    rates = [f"{share:.0%}" for share in (float(np.mean(read)), *read)]
    others = ["" if value is None else f"{value:.2f}" for value in (same, kid, coverage, spread)]
    return f"| {' | '.join([name, *rates, *others])} |"


if __name__ == "__main__":
    main()
