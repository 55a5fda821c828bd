"""Trainings of an uplift: which images each is on, and what it leaves on disk so that nothing is trained twice."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from facesynth import console, weights
from facesynth.console import FacesynthError, UsageError
from facesynth.expression import soft_labels
from facesynth.generators.networks import place
from facesynth.imageset import AnySet, ImageSet, SyntheticSet
from facesynth.loop import Loop
from facesynth.output import write_atomic
from facesynth.recipe import RecognizerSettings, TrainConfig
from facesynth.recognizer import Examples, Recognizer, read
from facesynth.training_data import HELD_OUT_SHARE, held_out_rank

Array = NDArray[Any]

OTHERS = {
    *("device", "gan", "joint", "translator", "also", "action_units", "diffusion", "decay_share"),
    *("accumulate", "keep_checkpoints", "tracker", "compile"),
    *("init", "freeze", "critic_first"),
}
"""Settings of trainings that those of an uplift are not shaped by."""

LOOP_VERSION = 2
"""Of what the same settings train: raised when the loop draws other faces than before, so that old trainings are not taken."""


class UpliftConfig(BaseModel):
    """Settings of an uplift. None for `steps` leaves it to the size of the real training split, the network and `quick`.

    `arms`: names, all where empty. `synthetic_weight`: a number, or "auto" for the best of 0.25, 0.5 and 1 by validation.
    `fractions` of the real images and `ratios` of the synthetic ones, each in (0, 1], are trained on beside all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(default=3, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    network: Literal["auto", "small", "resnet18"] = "auto"
    width: int = Field(default=32, ge=1, description="channels of the small network's first layer")
    arms: tuple[str, ...] = ()
    synthetic_weight: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.0
    folds: int | None = Field(default=None, ge=2)
    fractions: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    quick: bool = False
    device: str = "auto"
    seed: int = Field(default=0, ge=0, lt=2**31)

    def seed_list(self) -> list[int]:
        """The seed of each training of an arm."""
        return list(range(self.seed, self.seed + self.seeds))

    def training(self, images: int, recognizer: RecognizerSettings, seed: int = 0) -> TrainConfig:
        """What one training is told, when so many real images are there to train on."""
        on_gpu = torch.cuda.is_available() and self.device != "cpu"
        architecture = self.network if self.network != "auto" else "resnet18" if on_gpu else "small"
        steps = self.steps or math.ceil(self._default_images(images, architecture) / self.batch_size)
        seen = steps * self.batch_size
        return TrainConfig(
            recipe="recognizer",
            images=seen,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0.05,
            schedule="cosine",
            warmup_images=0.05 * seen,
            network={"architecture": architecture, "width": self.width},
            recognizer=recognizer,
            device=self.device,
            seed=seed,
        )

    def _default_images(self, images: int, architecture: str) -> int:
        """Training images to see: eight passes by the small network, twenty by ResNet-18, within limits."""
        if self.quick:
            return 24_000 if architecture == "small" else 60_000
        passes, least, most = (8, 40_000, 250_000) if architecture == "small" else (20, 100_000, 1_000_000)
        return min(max(passes * images, least), most)


@dataclass(frozen=True)
class Trial:
    """One division of the images: `real` and `synthetic` are trained on, `validation` chooses, `test` tells.

    `left_out` counts synthetic images that were made of an image that is not in `real`.
    """

    real: ImageSet
    synthetic: SyntheticSet
    validation: ImageSet
    test: ImageSet
    left_out: int

    @cached_property
    def examples(self) -> Examples:
        """All that is trained on."""
        return examples(self.real, self.synthetic)

    @cached_property
    def fingerprints(self) -> tuple[str, str]:
        """16 hex digits over the real images that are trained on, and over the synthetic ones."""
        real = self.examples.synthetic.logical_not()
        return _digest(self.examples, real), _digest(self.examples, ~real)

    @cached_property
    def soft_fingerprints(self) -> tuple[str, str]:
        """The same over what a judge reads in them."""
        real = self.examples.synthetic.logical_not()
        assert self.examples.probabilities is not None
        parts = (self.examples.probabilities[rows].numpy().tobytes() for rows in (real, ~real))
        of_real, of_synthetic = (hashlib.sha256(part).hexdigest()[:16] for part in parts)
        return of_real, of_synthetic

    def reduced(self, fraction: float = 1.0, ratio: float = 1.0) -> Trial:
        """The same with a share of the real training images, or of the synthetic ones, of each class."""
        kept = portion(self.real, fraction, "fraction")
        lost = set(self.real.take(np.flatnonzero(~kept)).names)
        made = self.synthetic.take([k for k, source in enumerate(self.synthetic.sources) if source not in lost])
        used = made.take(np.flatnonzero(portion(made, ratio, "ratio")))
        left_out = self.left_out + len(self.synthetic) - len(made)
        return replace(self, real=self.real.take(np.flatnonzero(kept)), synthetic=used, left_out=left_out)


# --- which images -----------------------------------------------------------------------------------------------------


def divide(real: ImageSet, synthetic: SyntheticSet, config: UpliftConfig, test: ImageSet | None = None) -> list[Trial]:
    """One trial, or one a fold where `config` asks for folds: tested on `test`, else on the test split, else on the fold.

    Validation is the val split, else the tenth of the real training images that every training of facesynth holds out: what
    made the synthetic images has not learnt from them. Identical images are always on one side.
    Raises UsageError where there is nothing to test on, or too little to divide.
    """
    real, synthetic = _slim(real), _slim(synthetic)
    train = np.flatnonzero(real.splits == "train")
    if config.folds:
        folds = _folds(real, train, config)
        return [_trial(real, synthetic, np.setdiff1d(train, fold), real.take(fold)) for fold in folds]
    test = real.of("test") if test is None else test
    if not len(test):
        raise UsageError(
            f"{real.name} has no test split: give --folds 5 to test on parts of the training split, or --test DIR."
        )
    return [hold_out(real, synthetic, test)]


def hold_out(real: ImageSet, synthetic: SyntheticSet, test: ImageSet | None) -> Trial:
    """All training images but those held out for validation; tested on the validation images where there is no `test`."""
    real, synthetic = _slim(real), _slim(synthetic)
    trial = _trial(real, synthetic, np.flatnonzero(real.splits == "train"), _slim(test or real.take([])))
    return trial if test is not None else replace(trial, test=trial.validation)


def _slim(images: AnySet) -> AnySet:
    """The same images without what trainings do not need."""
    return replace(images, features={}, logits={}, embeddings=None)


def _folds(real: ImageSet, train: Array, config: UpliftConfig) -> list[Array]:
    """Rows of each fold: stratified by class, identical images together."""
    from sklearn.model_selection import StratifiedGroupKFold

    assert config.folds is not None
    labels, groups = real.labels[train], np.unique(real.digests[train], return_inverse=True)[1]
    fewest = min(len(set(groups[labels == k])) for k in np.unique(labels))
    if fewest < config.folds:
        raise UsageError(
            f"{real.name}: its smallest class has {fewest} different training images, too few for {config.folds} folds; "
            "give fewer --folds, or more images."
        )
    splitter = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    return [np.sort(train[part]) for _, part in splitter.split(np.zeros(len(train)), labels, groups)]


def _trial(real: ImageSet, synthetic: SyntheticSet, train: Array, test: ImageSet) -> Trial:
    val = real.of("val")
    if not len(val):
        of_train = real.take(train)
        held = np.isin(of_train.digests, of_train.digests[held_out(of_train)])
        train, val = train[~held], of_train.take(np.flatnonzero(held))
    if not len(val) or not len(train):
        raise UsageError(
            f"{real.name} has too few training images to train on some and choose on others: give more, or a val split."
        )
    everything = {real.names[row] for row in np.flatnonzero(real.splits == "train")}
    others = everything - {real.names[row] for row in train}
    usable = [k for k, source in enumerate(synthetic.sources) if source not in others]
    return Trial(real.take(train), synthetic.take(usable), val, test, len(synthetic) - len(usable))


def held_out(images: ImageSet) -> Array:
    """(N,) bool: the crops that trainings hold out, but at least one of each class, and never all of it."""
    ranks = np.array([held_out_rank(crop) for crop in images.crops])
    held = np.zeros(len(images), bool)
    for k in np.unique(images.labels):
        of_class = images.labels == k
        different = np.unique(ranks[of_class])
        count = min(max(1, int((different < HELD_OUT_SHARE).sum())), len(different) - 1)
        held |= of_class & np.isin(ranks, different[:count])
    return held


def examples(real: ImageSet, synthetic: SyntheticSet | None = None) -> Examples:
    """Real and synthetic images to train on."""
    sets = [real] if synthetic is None else [real, synthetic]
    count = sum(len(images) for images in sets)
    weights = np.ones(count, np.float32)
    if synthetic is not None:
        weights[len(real) :] = synthetic.weights
    return Examples(
        crops=torch.from_numpy(np.concatenate([images.crops for images in sets])),
        labels=torch.from_numpy(np.concatenate([images.labels for images in sets])),
        synthetic=torch.arange(count) >= len(real),
        weights=torch.from_numpy(weights),
        classes=tuple(real.classes),
        probabilities=_probabilities(sets),
    )


def _probabilities(sets: list[ImageSet]) -> torch.Tensor | None:
    parts = [images.probabilities for images in sets if images.probabilities is not None]
    return torch.from_numpy(soft_labels(np.concatenate(parts))) if len(parts) == len(sets) else None


def _digest(faces: Examples, rows: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for part in (faces.crops, faces.labels, faces.weights):
        digest.update(part[rows].numpy().tobytes())
    return digest.hexdigest()[:16]


def portion(images: ImageSet, share: float, salt: str) -> Array:
    """A share of the images of each class, chosen by their pixels alone: (N,) bool.

    Identical images of a class go together, a larger share holds the smaller ones, and no class is emptied.
    """
    chosen = np.ones(len(images), bool)
    if share >= 1:
        return chosen
    digests = [hashlib.sha256(salt.encode() + digest).digest()[:8] for digest in images.digests.tolist()]
    ranks = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
    for k in np.unique(images.labels):
        of_class = images.labels == k
        ordered = np.sort(ranks[of_class])
        chosen[of_class] = ranks[of_class] <= ordered[max(1, int(share * len(ordered) + 1e-9)) - 1]
    return chosen


# --- trainings on disk ------------------------------------------------------------------------------------------------


class Bench:
    """Trains, and keeps what it trained in `folder`: what is there already is not trained again.

    A training is known by a hash of everything that shapes it, its readings by a hash of the images read as well.
    """

    def __init__(self, config: UpliftConfig, folder: Path, total: int = 0) -> None:
        self.config, self.folder = config, folder
        self.progress = console.progress("training", total)
        self._counted: set[Path] = set()

    def key(self, trial: Trial, settings: RecognizerSettings, seed: int) -> str:
        """16 hex digits that name a training."""
        training = self._training(trial, settings, seed).model_dump(mode="json", exclude=OTHERS)
        kinds = 1 if settings.synthetic == "none" else 2
        used = [*trial.fingerprints[:kinds]]
        if settings.soft_labels:
            used += trial.soft_fingerprints[:kinds]
        else:
            del training["recognizer"]["soft_labels"]  # without them a training is what it was before there were any
        text = json.dumps([LOOP_VERSION, training, used], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def images(self, trial: Trial) -> int:
        """Training images that one training sees."""
        return self._training(trial, RecognizerSettings(), 0).images

    def _training(self, trial: Trial, settings: RecognizerSettings, seed: int) -> TrainConfig:
        return self.config.training(len(trial.real), settings, seed)

    def train(self, trial: Trial, settings: RecognizerSettings, seed: int) -> Path:
        """The weights of a training, made unless they are there."""
        path = self.folder / f"{self.key(trial, settings, seed)}.safetensors"
        training = self._training(trial, settings, seed)
        fresh, known = path not in self._counted, path.exists()
        self._counted.add(path)
        if known:
            self.progress.count_earlier(training.images if fresh else 0)
            return path
        torch.manual_seed(seed)
        recipe = Recognizer(training, trial.examples)
        loop = Loop(recipe, training, self.folder)
        while loop.images < training.images:
            loop.step()
            self.progress.advance(training.batch_size)
        model = loop.ema["model"]
        if not all(bool(value.isfinite().all()) for value in model.parameters()):
            raise FacesynthError(
                f"a training of the uplift diverged ({settings.synthetic}, seed {seed}); choose another --seed."
            )
        info = {"classes": list(trial.real.classes), "settings": settings.model_dump(), "seed": seed}
        weights.save(path, recipe.kind, model, info)
        return path

    def read(self, trial: Trial, settings: RecognizerSettings, seed: int, images: ImageSet) -> Array:
        """Logits (N, K) float32 of a training on some images; trains first where that was not done."""
        path = self.train(trial, settings, seed)
        of_images = hashlib.sha256(images.crops.tobytes()).hexdigest()[:8]
        found = path.with_name(f"{path.stem}-{of_images}.npy")
        with contextlib.suppress(OSError, ValueError, EOFError):
            return np.asarray(np.load(found))
        training = self._training(trial, settings, seed)
        model = place(weights.load(str(path), "classifier").module, training.torch_device())
        logits = read(model, images.crops, training)
        buffer = io.BytesIO()
        np.save(buffer, logits)
        write_atomic(found, buffer.getvalue())
        return logits
