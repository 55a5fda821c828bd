"""`facesynth train`: a dataset and a preset → weights, with logs and a checkpoint to go on from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facesynth import config as configs
from facesynth import weights
from facesynth.console import FacesynthError, UsageError
from facesynth.expression import JudgeRecipe
from facesynth.generators.editor import EditorRecipe
from facesynth.generators.embedder import EmbedderRecipe
from facesynth.generators.gan import GanRecipe, layout
from facesynth.loop import Loop
from facesynth.output import write_atomic
from facesynth.recipe import Recipe, TrainConfig
from facesynth.recognizer import RecognizerRecipe
from facesynth.training_data import Faces, load_examples, load_faces

RECIPES: dict[str, type[Any]] = {
    "judge": JudgeRecipe,
    "embedder": EmbedderRecipe,
    "editor": EditorRecipe,
    "recognizer": RecognizerRecipe,
    "gan": GanRecipe,
}


@dataclass(frozen=True)
class TrainResult:
    """Where the weights lie and what the training says of them."""

    weights: Path
    images: int
    seconds: float
    figures: dict[str, Any]


def train(
    src: str | Path, preset: str, out: str | Path | None = None, *, resume: bool = False, **settings: Any
) -> TrainResult:
    """Train what `preset` (a name, or a YAML file) describes; `settings` are fields of `TrainConfig` and go before it.

    `out` defaults to runs/PRESET. See `run` for what it holds and for the errors.
    """
    config = configs.load(TrainConfig, settings, preset=preset)
    return run(src, config, Path(out) if out else Path("runs") / Path(preset).stem, resume=resume)


def run(src: str | Path, config: TrainConfig, out: Path, *, resume: bool = False) -> TrainResult:
    """Train the network that `config` describes on the training split of `src` and write it to `out`/model.safetensors.

    `out` also gets checkpoint.pt (the state to go on from), log.jsonl and TensorBoard events; editors and generators leave
    sheet-*.png, generators losses.png, recognisers curves.png and confusion.png.
    Raises UsageError when `out` holds another training and `resume` is false, or when its settings differ.
    """
    _prepare_folder(out, config, resume)
    faces = _load(src, config)
    torch.manual_seed(config.seed)
    recipe: Recipe = RECIPES[config.recipe](config, faces)
    loop = Loop(recipe, config, out)
    if resume:
        loop.restore()
    seconds = loop.run()
    (model,) = loop.ema.values()
    with torch.no_grad():
        figures = recipe.finish(model)
    draw = getattr(recipe, "draw", None)
    if draw is not None:
        draw(out, figures)
    info = {"classes": list(faces.classes), "images": loop.images, "recipe": config.model_dump(mode="json"), **figures}
    path = out / "model.safetensors"
    weights.save(path, recipe.kind, model, info)
    return TrainResult(path, loop.images, seconds, figures)


def _load(src: str | Path, config: TrainConfig) -> Faces:
    """The faces in the form that the recipe wants."""
    device = str(config.torch_device())
    if config.recipe == "recognizer":
        return load_examples(src, device)
    if config.recipe == "gan":
        wanted = layout(config.gan)
        return load_faces(src, device, wanted.size, colour=wanted.channels == 3)
    return load_faces(src, device)


def _prepare_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    # A constant schedule does not know its end, so such a training may go on past it; a cosine one may not.
    free = {"device", "checkpoint_minutes"} | ({"images"} if config.schedule == "constant" else set())
    settings = config.model_dump(mode="json", exclude=free)
    written = out / "settings.json"
    if written.exists():
        defaults = TrainConfig(recipe=config.recipe, images=config.images).model_dump(mode="json")
        before = defaults | json.loads(written.read_text())  # settings that have come since had their default
        differing = sorted(key for key in settings if settings[key] != before[key])
        if not resume:
            raise UsageError(f"{out} already holds a training; go on with it by --resume, or choose another --out.")
        if differing:
            raise UsageError(f"{out} was trained with other settings ({', '.join(differing)}); choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FacesynthError(f"{out}: cannot be created ({error.strerror}); choose another --out.") from error
    write_atomic(written, json.dumps(settings, indent=1).encode())
