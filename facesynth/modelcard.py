"""The model card of a training: README.md with Hugging Face metadata, so that its folder says what the weights are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from facesynth import __version__, hub, weights
from facesynth.console import printable
from facesynth.output import write_atomic
from facesynth.weights import Weights

ANYWHERE = "ORG/NAME"
"""Stands for the repository in a card that was not pushed."""

CARD = """---
{metadata}
---

# {title}

{about} {parameters:,} parameters{classes}. facesynth {version} trained it by the preset `{preset}` on {images:,} images,
repetitions counted.{beginning}

## Use

```sh
{command}
```

The same from Python: `{call}`. `hf://{anywhere}@COMMIT` stays with one version, and
`hf://{anywhere}#sha256={digest}`
with these very bytes. The path of a local copy works, too.

## Figures

{meaning}

{figures}

{pictures}{beside}## Settings

In a file, these are a preset: `facesynth train ./faces --preset FILE.yaml`. Of files and folders they give the last name alone.

```yaml
{settings}```

## Limits

{limits}

## Terms

Faces are people. These weights were made from photographs of them and carry what those photographs look like. The terms under
which the photographs were given, and the law where these people live, may say what the weights can be used for. Who publishes
them knows which photographs they were, and says so here; until then the licence is `other`: not given.
"""

COMPANION = """## Beside these weights: {name}

{about} It was trained together with the weights above, which learned to suit it: its opinion of what they make is no
measure of them.

```sh
{command}
```

{meaning}

{figures}

{limits}

"""

MARKED = """Faces made with these weights are synthetic. facesynth marks them (XMP
`trainedAlgorithmicMedia`, a row in `metadata.csv`): leave the marks, and do not pass the faces off as photographs."""


HEADER = ("classes", "images", "preset", "recipe", "vocabulary", "view", "left", "absent", "beside")
"""What a training writes into the header of its weights beside its figures."""


@dataclass(frozen=True)
class _Kind:
    """What a card says of one kind of network; `shows_real` is whether its sheet of samples holds real faces."""

    about: str
    task: str
    command: str
    python: str
    meaning: str
    limits: str
    shows_real: bool = False


KINDS = {
    "classifier": _Kind(
        about="A network that reads the expression of a face.",
        task="image-classification",
        command="balance ./faces --judge {}",
        python='balance("./faces", judge="{}")',
        meaning="""Measured on faces that were held out of the training. `thresholds` are the lower quartile of the
probability that it gives there to real faces of a class; they gate synthetic ones.""",
        limits="""It reads what people labelled as an expression, not what somebody feels. It is a filter for datasets:
do not use it to decide anything about a person. A classifier that gated images must not score them, too.""",
    ),
    "embedder": _Kind(
        about="A network that turns a face into a vector, near for faces that look like one person.",
        task="image-feature-extraction",
        command="train ./faces --preset editor-48 --embedder {}",
        python='train("./faces", "editor-48", embedder="{}")',
        meaning="Measured on faces that were held out: cosines of two views of one face, and of different faces.",
        limits="""It tells people apart by the look of small crops, far less well than a face recogniser. Do not use it
to find or to recognise anybody.""",
    ),
    "editor": _Kind(
        about="A network that edits a real face into another expression.",
        task="image-to-image",
        command="balance ./faces --generator {}",
        python='balance("./faces", generator="{}")',
        meaning="""Measured on faces that were held out of the training: `mean change` is how far an edit moves a pixel, on
a scale from 0 to 1.""",
        limits=f"An edited face is still a picture of that person: edit only faces that you may use. {MARKED}",
        shows_real=True,
    ),
    "denoiser": _Kind(
        about="A diffusion model that edits a real face into another expression, by noising it and taking the noise back.",
        task="image-to-image",
        command="balance ./faces --generator {}",
        python='balance("./faces", generator="{}")',
        meaning="""Measured on faces that were held out of the training. `diversity` is the mean distance between two
faces that were drawn from pure noise over that between two training faces, at 16 × 16 pixels: near 0 the class has collapsed.""",
        limits=f"An edited face is still a picture of that person: edit only faces that you may use. {MARKED}",
        shows_real=True,
    ),
    "translator": _Kind(
        about="A network that repaints a real face in another expression, or with other attributes.",
        task="image-to-image",
        command="balance ./faces --generator {}",
        python='balance("./faces", generator="{}")',
        meaning="""Measured on faces that were held out of the training: `mean change` is how far an edit moves a pixel, on
a scale from 0 to 1, and `reconstruction` how far the way there and back leaves it from where it was.""",
        limits=f"An edited face is still a picture of that person: edit only faces that you may use. {MARKED}",
        shows_real=True,
    ),
    "generator": _Kind(
        about="A network that draws faces from noise.",
        task="unconditional-image-generation",
        command="balance ./faces --generator {}",
        python='balance("./faces", generator="{}")',
        meaning="""`diversity` is the mean distance between two drawn faces over that between two training faces, at
16 × 16 pixels: near 0 the class has collapsed.""",
        limits=f"""A drawn face is meant to show nobody, but a network can repeat what it was trained on: `facesynth balance`
turns down near-copies of the images that it is given, and knows no others. {MARKED}""",
    ),
}
"""What cards say, by kind of weights (a key of `weights.NETWORKS`)."""

PICTURES = {
    "losses.png": "Losses over the training",
    "curves.png": "Loss and accuracy over the training",
    "confusion.png": "What true classes are read as",
}
"""What trainings may draw that shows no face."""


PLACES = ("init", "judge", "embedder", "editor", "also", "action_units")
"""Settings that can name a file or a folder."""


def shareable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A training's settings as anybody may see them: of files and folders on this machine the last name alone."""
    return {name: _last_names(value) if name in PLACES else value for name, value in settings.items()}


def _last_names(value: Any) -> Any:
    if isinstance(value, list):
        return [_last_names(one) for one in value]
    if value is None or value.startswith(hub.PREFIX):
        return value
    place, mark, digest = value.partition(hub.DIGEST_MARK)
    return f"{Path(place).name}{mark}{digest}"


def write(folder: Path) -> None:
    """Write README.md into the folder of a finished training."""
    write_atomic(folder / "README.md", _render(folder).encode("utf-8", errors="backslashreplace"))


def files(folder: Path, repository: str) -> dict[str, Path | bytes]:
    """What is published of a finished training: weights, what lies beside them, settings, pictures, and the card as it is.

    The card names the `repository` where it was left open. A sheet of edited faces is not among them: it shows real ones.
    """
    card = folder / "README.md"
    if not card.exists():
        write(folder)
    text = card.read_text(encoding="utf-8").replace(ANYWHERE, repository)
    loaded = weights.load(str(folder))
    shown = [loaded.path, *_companions(folder, loaded.info), *_pictures(folder, loaded.kind)]
    settings = json.dumps(loaded.info["recipe"], indent=1).encode()
    return {"README.md": text.encode(), "settings.json": settings, **{path.name: path for path in shown}}


def _render(folder: Path) -> str:
    loaded = weights.load(str(folder))
    said, info = KINDS[loaded.kind], loaded.info
    spec = f"hf://{ANYWHERE}"
    return CARD.format(
        metadata=_metadata(loaded, said).to_yaml(),
        title=printable(folder.resolve().name),
        about=said.about,
        parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        version=__version__,
        preset=printable(_preset(info)),
        classes=_classes(loaded),
        images=info["images"],
        beginning=_beginning(info),
        command=f"facesynth {said.command.format(spec)}",
        anywhere=ANYWHERE,
        digest=weights.sha256(loaded.path),
        call=f"facesynth.{said.python.format(spec)}",
        meaning=said.meaning,
        figures=_figures(info),
        pictures=_gallery(folder, loaded.kind),
        beside="".join(map(_companion, _companions(folder, info))),
        settings=yaml.safe_dump(info["recipe"], sort_keys=False, allow_unicode=True),
        limits=said.limits,
    )


def _companions(folder: Path, info: Mapping[str, Any]) -> list[Path]:
    """Further weights that the training left in its folder."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name in info.get("beside", ()))


def _companion(path: Path) -> str:
    """What the card says of further weights that the training left."""
    loaded = weights.load(str(path))
    said = KINDS[loaded.kind]
    return COMPANION.format(
        name=path.name,
        about=said.about,
        command=f"facesynth {said.command.format(f'hf://{ANYWHERE}/{path.name}')}",
        meaning=said.meaning,
        figures=_figures(loaded.info),
        limits=said.limits,
    )


def _preset(info: Mapping[str, Any]) -> str:
    return str(info.get("preset", info["recipe"]["recipe"]))  # trainings before model cards did not keep its name


def _beginning(info: Mapping[str, Any]) -> str:
    """What a fine-tuning began with, and what it saw nothing of."""
    init, absent = info["recipe"].get("init"), info.get("absent", [])
    text = f" It began with the weights `{printable(init)}`." if init else ""
    names = ", ".join(map(printable, absent))
    return text + (f" There were no images of {names}: what it knows of them is from there." if absent else "")


def _metadata(loaded: Weights, said: _Kind) -> ModelCardData:
    return ModelCardData(
        license="other",
        library_name="facesynth",
        pipeline_tag=said.task,
        tags=["facesynth", "facial-expression-recognition", loaded.kind, printable(_preset(loaded.info))],
    )


def _classes(loaded: Weights) -> str:
    """What the network tells apart, where it does."""
    config = loaded.module.config
    names = config.get("classes", []) if config.get("conditional", True) else []
    return f", classes {', '.join(map(printable, names))}" if names else ""


def _figures(info: Mapping[str, Any]) -> str:
    """What the training says of its weights: a list of single figures, and a table of those of each class."""
    found = {name: value for name, value in info.items() if name not in HEADER}
    singles: dict[str, str] = {}
    columns: dict[str, Mapping[str, Any]] = {}
    for name, value in _flat(found, set(info["classes"])):
        if isinstance(value, Mapping):
            columns[name] = value
        else:
            singles[name] = _number(value)
    parts = ["\n".join(f"- {name}: {value}" for name, value in singles.items())]
    if columns:
        head = f"| class | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
        rows = [
            f"| {_cell(label)} | {' | '.join(_number(column.get(label)) for column in columns.values())} |"
            for label in info["classes"]
        ]
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(part for part in parts if part) or "None were taken."


def _flat(values: Mapping[str, Any], classes: set[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Single figures, and mappings from class to figure, each with its full name; lists (confusions) are left to pictures."""
    for key, value in values.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if not isinstance(value, Mapping):
            if not isinstance(value, list):
                yield name, value
        elif not set(value) <= classes:
            yield from _flat(value, classes, name)
        elif any(isinstance(inner, Mapping) for inner in value.values()):
            names = {figure: None for scores in value.values() for figure in scores}
            for figure in names:
                column = {label: scores.get(figure) for label, scores in value.items()}
                yield f"{above} {figure}".strip().replace("_", " "), column
        else:
            yield name, value


def _number(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else printable(value)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _pictures(folder: Path, kind: str) -> Iterator[Path]:
    """What may be shown to others: curves, and the last sheet of samples unless it shows real faces."""
    if not KINDS[kind].shows_real:
        yield from sorted(folder.glob("sheet-*.png"))[-1:]
    yield from (folder / name for name in PICTURES if (folder / name).exists())


def _gallery(folder: Path, kind: str) -> str:
    shown = [f"![{PICTURES.get(path.name, 'Samples')}]({path.name})" for path in _pictures(folder, kind)]
    if KINDS[kind].shows_real:
        shown.append("The sheets of samples stay with the training: real faces are on them.")
    return "## Pictures\n\n" + "\n\n".join(shown) + "\n\n" if shown else ""
