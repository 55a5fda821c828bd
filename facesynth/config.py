"""Settings of a run: validated models, and how preset < file < flags are merged into one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from facesynth.console import UsageError, did_you_mean, printable

PRESET_FOLDERS = (Path(__file__).parent / "presets", Path(__file__).parent.parent / "presets")
"""In an installed package, and in a checkout."""

WITHOUT_EFFECT = frozenset({"out", "workers", "link", "on_existing"})
"""Settings that change where or how a run works, but no byte of what it makes."""

Intensity = Annotated[float, Field(ge=0, le=1)]
Model = TypeVar("Model", bound=BaseModel)


def _beside(suffix: str) -> Callable[[dict[str, Any]], Path]:
    """The default of `out`: a folder next to the source."""

    def out(settings: dict[str, Any]) -> Path:
        return _named_beside(settings["src"], suffix)

    return out


def _named_beside(path: Path, suffix: str) -> Path:
    path = path.resolve() if path.name in ("", "..") else path
    stem = path.stem if path.suffix.lower() == ".csv" else path.name
    return path.parent / f"{stem}-{suffix}"


def _pairs(value: object, form: str) -> object:
    """A text of pairs as a dictionary; anything else as it is. Raises ValueError where the text has another form."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError(f"give {form}")
    return {name.strip(): said.strip() for name, _, said in pairs}


class Img2ImgSettings(BaseModel):
    """How an image-to-image pipeline edits faces; `generator` says which one.

    `prompts` has one for each class. `strength` in (0, 1] is how far a face is noised at intensity 1, and takes that share of
    the `steps`. `guidance`, `negative_prompt`: as the pipeline understands them. `lora`: a file or folder, or
    hf://org/name[@revision][/file.safetensors], of weights in which `lora_scale` says how much they count. `size`: side of
    the faces that the pipeline sees, in pixels. `dtype` auto is half precision on a GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: dict[str, Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    negative_prompt: str = ""
    strength: float = Field(0.55, gt=0, le=1)
    guidance: float = Field(7.5, ge=0)
    steps: int = Field(30, ge=1, le=1000, strict=True)
    lora: str | None = Field(None, min_length=1)
    lora_scale: float = 1.0
    size: int = Field(512, ge=8, le=4096, multiple_of=8, strict=True)
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"


class SynthesisConfig(BaseModel):
    """What `balance` and `augment` share. `intensity` (low, high) in [0, 1]: None leaves it to the generator.

    `sources` says whose faces are edited: "real", those of the dataset; "new", people who do not exist, drawn by the
    built-in generator; or drawn by other weights: a name, a path or hf://.
    `attributes` (name → value) are asked of every edited face beside its class.
    `soft_labels` lists beside each image what the judge reads in it.
    With `img2img`, `generator` is a pipeline of diffusers: a folder, or org/name[@revision] on the Hugging Face Hub.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    src: Path
    out: Path = Field(default_factory=_beside("synthetic"))
    generator: str = Field("editor-48", min_length=1)
    sources: str = Field("real", min_length=1)
    img2img: Img2ImgSettings | None = None
    judge: str = Field("judge-48", min_length=1)
    identity: Literal["auto", "insightface", "builtin", "off"] = "auto"
    identity_model: str | None = None
    intensity: tuple[Intensity, Intensity] | None = None
    attributes: dict[str, str] = {}
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    batch_size: int = Field(64, ge=1, le=65536, strict=True)
    workers: int | None = Field(None, ge=1, strict=True)
    seed: int = Field(0, ge=0, lt=2**63, strict=True)
    link: bool = False
    synthetic_only: bool = False
    soft_labels: bool = False
    on_existing: Literal["fail", "resume", "overwrite"] = "fail"
    max_attempts: int = Field(50, ge=1, strict=True)

    @property
    def drawer(self) -> str | None:
        """The weights that draw the people whose faces are edited; None where they are the dataset's own."""
        return {"real": None, "new": "faces-48"}.get(self.sources, self.sources)

    @field_validator("intensity", mode="before")
    @classmethod
    def _split_intensity(cls, value: object) -> object:
        value = value.split(",") if isinstance(value, str) else value
        if isinstance(value, list | tuple) and len(value) != 2:
            raise ValueError("give two numbers LOW,HIGH from 0 to 1")
        return value

    @field_validator("attributes", mode="before")
    @classmethod
    def _split_attributes(cls, value: object) -> object:
        pairs = _pairs(value, "NAME=VALUE with commas between, for example pose=left,Male=yes")
        if isinstance(pairs, dict) and not all(pairs.values()):
            raise ValueError("each name needs a value after =")
        return pairs

    @field_validator("intensity")
    @classmethod
    def _order_intensity(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"{value[0]:g} is above {value[1]:g}; give LOW,HIGH")
        return value

    @model_validator(mode="after")
    def _name_the_pipeline(self) -> Self:
        if self.img2img and "generator" not in self.model_fields_set:
            raise ValueError("img2img needs a pipeline: give generator, a folder or org/name on the Hugging Face Hub")
        return self


class BalanceConfig(SynthesisConfig):
    """Settings of `balance`."""

    out: Path = Field(default_factory=_beside("balanced"))
    target: str = Field("uniform", min_length=1)


class AugmentConfig(SynthesisConfig):
    """Settings of `augment`: `per_image` variations of each image, toward its own class, all classes, or a list."""

    out: Path = Field(default_factory=_beside("augmented"))
    per_image: int = Field(1, ge=1, le=1000, strict=True)
    expressions: Literal["same", "all"] | tuple[str, ...] = "same"
    method: Literal["editor", "classic", "editor+classic"] = "editor"
    max_attempts: int = Field(10, ge=1, strict=True)  # all from one source: what ten tries do not make, fifty hardly do

    @field_validator("expressions", mode="before")
    @classmethod
    def _split_expressions(cls, value: object) -> object:
        if isinstance(value, str) and value.strip() not in ("same", "all"):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if not value:
            raise ValueError("it is empty; give same, all, or class names with commas between them")
        return value.strip() if isinstance(value, str) else value


Names = tuple[Annotated[str, Field(min_length=1)], ...]
Share = Annotated[float, Field(gt=0, le=1)]


class EvaluateConfig(BaseModel):
    """Settings of `evaluate`. None for `seeds` and `steps` leaves them to the size that `quick` and the device allow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    real: Path
    synthetic: Path
    out: Path = Field(default_factory=lambda values: _named_beside(values["synthetic"], "evaluation"))
    features: str = Field("auto", min_length=1)
    judge: str = Field("judge-48", min_length=1)
    identity: Literal["auto", "insightface", "builtin", "off"] = "auto"
    identity_model: str | None = None
    groups: Names = ()
    groups_table: Path | None = None
    uplift: bool = False
    quick: bool = False
    arms: Names = ()
    seeds: int | None = Field(None, ge=1, le=100, strict=True)
    steps: int | None = Field(None, ge=1, strict=True)
    network: Literal["auto", "small", "resnet18"] = "auto"
    synthetic_weight: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = 1.0
    folds: int | None = Field(None, ge=2, le=100, strict=True)
    test: Path | None = None
    class_map: dict[str, str] = {}
    fraction: tuple[Share, ...] = ()
    ratio: tuple[Share, ...] = ()
    fail_under: Names = ()
    fail_over: Names = ()
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    batch_size: int = Field(64, ge=2, le=65536, strict=True)
    seed: int = Field(0, ge=0, lt=2**31, strict=True)
    on_existing: Literal["fail", "resume", "overwrite"] = "fail"

    @field_validator("groups", "arms", "fraction", "ratio", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("class_map", mode="before")
    @classmethod
    def _split_map(cls, value: object) -> object:
        return _pairs(value, "THEIRS=OURS with commas between, for example contempt=,joy=happy")

    @model_validator(mode="after")
    def _belong_together(self) -> EvaluateConfig:
        asked = {"arms": self.arms, "folds": self.folds, "fraction": self.fraction, "ratio": self.ratio}
        lonely = [name for name, value in asked.items() if value and not self.uplift]
        if lonely:
            raise ValueError(f"--{lonely[0]} belongs to --uplift: add it")
        if self.class_map and not self.test:
            raise ValueError("--class-map belongs to --test: it renames the classes of that dataset")
        if self.folds and self.test:
            raise ValueError("--folds and --test exclude each other: folds test on the training split itself")
        return self


def load(model: type[Model], flags: Mapping[str, Any], *, preset: str | None = None, file: Path | None = None) -> Model:
    """Merge preset < file < flags and validate. A flag that is None was not given.

    Raises UsageError: one sentence on the first setting that is unknown or wrong, and where it was given.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in (preset_path(preset) if preset else None, file):
        if path is None:
            continue
        values = read_yaml(path)
        _require_purpose(path, values, model)
        merged |= values
        origin |= {key: f"{key} in {printable(path)}" for key in values}
    given = {key: value for key, value in flags.items() if value is not None}
    merged |= given
    origin |= {key: f"--{key.replace('_', '-')}" for key in given}
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_sentence(error.errors()[0], origin, model)) from None


def _require_purpose(path: Path, values: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Raise UsageError for a preset of another command: a setting that no other has tells them apart."""
    if "recipe" in values and "recipe" not in model.model_fields:
        raise UsageError(
            f"{printable(path.stem)} is a preset of a training: facesynth train SRC --preset {printable(path.stem)}, and give "
            "the weights that it leaves as --generator."
        )
    if "img2img" in values and "img2img" not in model.model_fields:
        raise UsageError(
            f"{printable(path.stem)} is a preset for facesynth balance and augment, not for training or evaluating; "
            f"facesynth balance SRC --preset {printable(path.stem)} uses it."
        )


def given(flags: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The settings that a user said: flags, and before them a preset file of their own, but no built-in one."""
    own = read_yaml(preset_path(preset)) if _is_file(preset) else {}
    return own | {key: value for key, value in flags.items() if value is not None}


def _sentence(error: ErrorDetails, origin: Mapping[str, str], model: type[BaseModel]) -> str:
    key = str(error["loc"][0]) if error["loc"] else ""
    path, within = _path(error, model)
    where = origin.get(key, key).replace(key, path, 1)
    if error["type"] == "extra_forbidden":
        known = list(within.model_fields)
        return f"unknown setting {printable(where)}.{did_you_mean(path.rpartition('.')[2], known)} Known: {', '.join(known)}."
    if error["type"] == "missing":
        return f"{path} is missing: give it as an argument or in the file."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not key:
        return f"{message}."
    if isinstance(error["input"], dict):  # the parts are right, but do not belong together
        return f"{printable(where)}: {message}."
    return f"{printable(where)}: {message}, not {printable(repr(error['input']))[:80]}."


def _path(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The setting that an error is about, with dots between nested names, and the innermost model that it is in."""
    names: list[str] = []
    for name in map(str, error["loc"]):
        names.append(name)
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        parts = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
        inner = [part for part in parts if issubclass(part, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return ".".join(names), model


def preset_path(name: str) -> Path:
    """The file of a preset: a name from the package's presets folder, or the path of a YAML file."""
    if _is_file(name):
        return Path(name)
    found = _presets()
    if name not in found:
        raise UsageError(f"no preset '{printable(name)}'.{did_you_mean(name, found)} Presets: {', '.join(found)}.")
    return found[name]


def _is_file(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))


def presets() -> dict[str, str]:
    """What each preset is, by name: the first line of its file."""
    return {name: path.open(encoding="utf-8").readline().lstrip("# ").rstrip() for name, path in _presets().items()}


def _presets() -> dict[str, Path]:
    return {path.stem: path for folder in PRESET_FOLDERS for path in sorted(folder.glob("*.yaml"))}


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1 as PyYAML reads it, but with 1e-4 a number as in YAML 1.2, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping with text keys. Raises UsageError naming the file, and the line if known."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{printable(path)}{line}: not YAML ({getattr(error, 'problem', error)}).") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{printable(path)}: expected lines of 'name: value' with text for a name.")
    return values


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the settings (`model_dump(mode="json")` of two runs) that differ and change bytes."""
    first, second = _effective(old), _effective(new)
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
