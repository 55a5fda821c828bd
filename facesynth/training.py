"""`facesynth train`: a dataset and a preset → weights, with logs and a checkpoint to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from facesynth import config as configs
from facesynth import finetuning, modelcard, tracker, weights
from facesynth.console import FacesynthError, UsageError, note, printable
from facesynth.expression import JudgeRecipe
from facesynth.generators.diffusion import DiffusionRecipe
from facesynth.generators.editor import EditorRecipe
from facesynth.generators.embedder import EmbedderRecipe
from facesynth.generators.gan import GanRecipe, layout
from facesynth.generators.joint import JointRecipe
from facesynth.generators.translator import TranslatorRecipe
from facesynth.generators.translator import layout as translator_layout
from facesynth.hub import Destination, HubError
from facesynth.labelled_faces import load_labelled
from facesynth.loop import Loop
from facesynth.output import write_atomic
from facesynth.processes import Processes, join
from facesynth.recipe import Companion, Recipe, TrainConfig
from facesynth.recognizer import RecognizerRecipe
from facesynth.training_data import Faces, load_examples, load_faces

RECIPES: dict[str, type[Any]] = {
    "judge": JudgeRecipe,
    "embedder": EmbedderRecipe,
    "editor": EditorRecipe,
    "recognizer": RecognizerRecipe,
    "gan": GanRecipe,
    "joint": JointRecipe,
    "translator": TranslatorRecipe,
    "diffusion": DiffusionRecipe,
}


FREE = {
    *("device", "checkpoint_minutes", "keep_checkpoints", "tracker", "compile", "accumulate"),
    *("learning_rate", "critic_rate"),
}
"""Settings that may be others when a training goes on."""


SETTINGS = "settings.json"

INIT = "init.safetensors"
"""Copy of the weights that a training began with: they may be others by the time that it goes on."""


@dataclass(frozen=True)
class TrainResult:
    """Where the weights lie, what the training says of them, and hf://org/name@commit where they were pushed."""

    weights: Path
    images: int
    seconds: float
    figures: dict[str, Any]
    pushed: str | None = None


class NotPushedError(HubError):
    """A training is finished and kept, but the Hub did not take it."""


def train(
    src: str | Path,
    preset: str,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    **settings: Any,
) -> TrainResult:
    """Train what `preset` (a name, or a YAML file) describes; `settings` are fields of `TrainConfig` and go before it.

    `out` defaults to runs/PRESET. With `push_to_hub` (org/name), and only then, the weights go to the Hugging Face Hub, into
    a repository that is made if need be, `private` or not. See `run` for what `out` holds and for the errors.
    """
    config = configs.load(TrainConfig, settings, preset=preset)
    folder = Path(out) if out else Path("runs") / Path(preset).stem
    if private and not push_to_hub:
        raise UsageError("--private belongs to --push-to-hub: add it.")
    destination = Destination(push_to_hub, private) if push_to_hub else None
    given = configs.given(settings, preset)
    return run(src, config, folder, preset=Path(preset).stem, given=given, resume=resume, destination=destination)


def run(
    src: str | Path,
    config: TrainConfig,
    out: Path,
    *,
    preset: str,
    given: Mapping[str, Any] | None = None,
    resume: bool = False,
    destination: Destination | None = None,
) -> TrainResult:
    """Train the network that `config` describes on the training split of `src` and write it to `out`/model.safetensors.

    `out` also gets README.md (the model card), checkpoint-*.pt (the states to go on from), log.jsonl, losses.png and
    TensorBoard events; editors and generators leave sheet-*.png, recognisers curves.png and confusion.png, and recipe joint
    its recogniser as recognizer.safetensors. `preset` is what the card calls the settings. With `init`, what is not `given`
    (None: all) is settled by `finetuning.settle`, and the weights are kept as `out`/init.safetensors, from which `resume`
    reads them. A training that is finished is not read again by `resume`, but pushed where a `destination` is given. Under
    `accelerate launch` all processes train together; the first writes, and all return the same.
    Raises UsageError when `out` holds another training and `resume` is false, when its settings differ, when `init` does
    not go with them, or when the tracker is unknown or not installed, and NotPushedError where all is done but the pushing.
    """
    processes = join(config.device)
    tracker.require(config.tracker)
    config = _pinned(config, _settings_of(out) if resume else {})
    init = _open_init(config, out, resume)
    if init:
        given = config.model_dump(exclude_unset=True) if given is None else given
        config = finetuning.settle(config, RECIPES[config.recipe].kind, init, given)
        finetuning.require_layers(init.module, config.freeze)
    if processes.main:
        _prepare_folder(out, config, resume)
        if init and init.path != out / INIT:
            write_atomic(out / INIT, init.path.read_bytes())
    result: TrainResult | None = processes.from_main(_finished(out, config) if resume and processes.main else None)
    if result is None:
        result = _train(src, config, out, preset, init, resume, destination)
    elif destination and processes.main:
        destination.create()
    return replace(result, pushed=_push(out, destination)) if destination and processes.main else result


def _pinned(config: TrainConfig, before: Mapping[str, Any]) -> TrainConfig:
    """The specs of the networks that take part, at the commits that they had before, where this goes on."""
    specs = {role: getattr(config, role) for role in ("init", "judge", "embedder", "editor")}
    pins = {
        role: before[role] if before.get(role) and weights.is_pin(before[role], spec) else weights.pin(spec)
        for role, spec in specs.items()
        if spec
    }
    return config.model_copy(update=pins)


def _open_init(config: TrainConfig, out: Path, resume: bool) -> weights.Weights | None:
    """The weights that a training begins with: the copy in `out` where there is one to go on from."""
    if not config.init:
        return None
    kept = out / INIT
    return weights.load(str(kept) if resume and kept.is_file() else config.init)


def _finished(out: Path, config: TrainConfig) -> TrainResult | None:
    """What `out` holds where the training has seen all its images already."""
    path = out / "model.safetensors"
    try:
        info = weights.load(str(path)).info
    except weights.WeightsError:
        return None
    if info.get("images", 0) < config.images:
        return None
    note(f"{printable(out)} is finished already: nothing left to train.")
    figures = {name: value for name, value in info.items() if name not in modelcard.HEADER}
    return TrainResult(path, info["images"], 0.0, figures)


def _push(out: Path, destination: Destination) -> str:
    """Push what a card speaks of. Raises NotPushedError."""
    try:
        pushed = destination.push(modelcard.files(out, destination.repository), "Push a training of facesynth")
    except FacesynthError as error:
        raise NotPushedError(
            f"{error} The training is finished and kept in {printable(out)}: push it later by --resume, which trains "
            "nothing again."
        ) from error
    note(f"pushed to {destination.url}: {pushed}")
    return pushed


def _train(
    src: str | Path,
    config: TrainConfig,
    out: Path,
    preset: str,
    init: weights.Weights | None,
    resume: bool,
    destination: Destination | None,
) -> TrainResult:
    processes = Processes()
    faces = _load(src, config)
    start = finetuning.start(init, faces) if init else None
    if destination and processes.main:
        destination.create()  # now rather than at the end: nobody trains for hours for what may not be pushed
    torch.manual_seed(config.seed)
    recipe: Recipe = RECIPES[config.recipe](config, start.faces if start else faces)
    if start:
        network = next(iter(recipe.averaged.values()))
        start.give(network)
        finetuning.freeze(network, config.freeze)
    loop = Loop(recipe, config, out)
    if resume:
        loop.restore()
    seconds = loop.run()
    result = _finish(recipe, loop, faces, seconds, preset, start) if processes.main else None
    whole: TrainResult = processes.from_main(result)
    return whole


def _finish(
    recipe: Recipe, loop: Loop, faces: Faces, seconds: float, preset: str, start: finetuning.Start | None
) -> TrainResult:
    """Closing figures and pictures, the averaged networks as weights, and their card."""
    with torch.no_grad():
        figures = recipe.finish(loop.result)
    draw = getattr(recipe, "draw", None)
    if draw is not None:
        draw(loop.out, figures)
    header: dict[str, Any] = {"preset": preset, "recipe": modelcard.shareable(loop.config.model_dump(mode="json"))}
    if start:
        faces, figures = start.faces, start.complete(figures)
        header["absent"] = start.absent
    common = {"classes": list(faces.classes), "images": loop.images, **header}
    path = loop.out / "model.safetensors"
    beside = _save_companions(recipe, loop, common)
    weights.save(path, recipe.kind, loop.result, common | beside | figures)
    modelcard.write(loop.out)
    return TrainResult(path, loop.images, seconds, figures)


def _save_companions(recipe: Recipe, loop: Loop, common: dict[str, Any]) -> dict[str, Any]:
    """Save what a training leaves beside its result; returns what the result's header says of it, if there is any.

    They are there before the result is, whose file says that a training is finished.
    """
    beside = getattr(recipe, "beside", None)
    if beside is None:
        return {}
    with torch.no_grad():
        companions: dict[str, Companion] = beside(loop.ema)
    digests = {}
    for name, companion in companions.items():
        path = loop.out / f"{name}.safetensors"
        weights.save(path, companion.kind, companion.network, common | companion.figures)
        digests[path.name] = weights.file_digest(path)
        note(f"{printable(path)}: the {name}, a {companion.kind}")
    return {"beside": digests}


def _load(src: str | Path, config: TrainConfig) -> Faces:
    """The faces in the form that the recipe wants."""
    device = str(config.torch_device())
    if config.recipe == "recognizer":
        return load_examples(src, device)
    if config.recipe in ("gan", "joint"):
        wanted = layout(config.gan)
        return load_faces(src, device, wanted.size, colour=wanted.channels == 3)
    if config.recipe == "translator":
        wanted = translator_layout(config.translator)
        return load_labelled(
            src, config.also, config.translator, device, wanted.size, wanted.channels == 3, config.action_units
        )
    return load_faces(src, device)


def _prepare_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    # A constant schedule does not know its end, so such a training may go on past it; a cosine one may not. Learning rates
    # may be lowered: that is what saves a training that is about to diverge.
    free = FREE | ({"images"} if config.schedule == "constant" else set())
    settings = config.model_dump(mode="json", exclude=free)
    before = _settings_of(out)
    if before:
        # Not validated: what a recipe cannot do without need not have a default.
        defaults = TrainConfig.model_construct(recipe=config.recipe, images=config.images).model_dump(mode="json")
        before = defaults | before  # settings that have come since had their default
        differing = sorted(key for key in settings if settings[key] != before[key])
        if not resume:
            raise UsageError(f"{out} already holds a training; go on with it by --resume, or choose another --out.")
        if differing:
            raise UsageError(f"{out} was trained with other settings ({', '.join(differing)}); choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FacesynthError(f"{out}: cannot be created ({error.strerror}); choose another --out.") from error
    write_atomic(out / SETTINGS, json.dumps(settings, indent=1).encode())


def _settings_of(out: Path) -> dict[str, Any]:
    """The settings of the training that `out` holds, if it does."""
    written = out / SETTINGS
    settings: dict[str, Any] = json.loads(written.read_text()) if written.exists() else {}
    return settings
