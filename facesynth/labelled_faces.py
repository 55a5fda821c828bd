"""Faces with all that is known of them: the class or what was measured, columns of metadata.csv, or CelebA's attributes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from natsort import natsorted
from torch import Tensor

from facesynth import action_units, console, dataset, geometry
from facesynth.console import FacesynthError, UsageError, did_you_mean, printable
from facesynth.generators.condition import CLASS, Group, Vocabulary
from facesynth.photo import Pixels, UnreadableImage, decode
from facesynth.recipe import TranslatorSettings
from facesynth.training_data import Faces, read_crops, room, tensors_of

MOST_LABELS = 50
"""A column with more different values than this is taken for free text."""

CELEBA_TABLE = "list_attr_celeba.txt"
CELEBA_SPLITS = "list_eval_partition.txt"
CELEBA_IMAGES = "img_align_celeba"


@dataclass
class LabelledFaces(Faces):
    """Faces of one dataset with `values` (N, width): what is known of each in `groups`, zeros where it is not known.

    `also` are further datasets with groups of their own, `elsewhere` the groups of datasets that a network learned from and
    that are not here. A dataset without classes has one, which is in no group. `view` is how much of a photo the crops show,
    one of `geometry.VIEWS`.
    """

    groups: tuple[Group, ...] = ()
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    also: tuple[LabelledFaces, ...] = ()
    elsewhere: tuple[tuple[Group, ...], ...] = ()
    view: str = "tight"

    @property
    def vocabulary(self) -> Vocabulary:
        """The groups of this dataset and of the further ones."""
        return Vocabulary((self.groups, *(other.groups for other in self.also), *self.elsewhere))

    def known(self, indices: Tensor) -> Tensor:
        """What is known (N, width) of the faces at `indices`, on the device."""
        return self.values[indices].to(self.device)


@dataclass(frozen=True)
class _Measured:
    """Numbers of faces: their `names`, and those of each image that has all of them."""

    names: tuple[str, ...]
    of: Mapping[str, tuple[float, ...]]

    def kept(self, images: Sequence[str], place: Path) -> list[str]:
        """Those of the images that have them; how many have not is said."""
        kept = [name for name in images if name in self.of]
        if not kept:
            raise UsageError(
                f"none of the {len(images):,} images in {printable(place)} has {', '.join(self.names)}: what is measured in an "
                "image has to be named as it is."
            )
        if len(kept) < len(images):
            lacking = len(images) - len(kept)
            console.note(
                f"{lacking:,} of {len(images):,} images in {printable(place)} are skipped: of them not all of "
                f"{', '.join(self.names)} are known."
            )
        return kept

    def group(self, labels: Iterable[str], points: Iterable[tuple[float, ...]]) -> Group:
        """Classes as points among the measures."""
        return Group(CLASS, tuple(labels), "measures", self.names, tuple(points))

    def values(self, images: Sequence[str]) -> list[list[float]]:
        """What such a group knows of images that have them."""
        return [[*self.of[name], 1.0] for name in images]


def load_labelled(
    src: str | Path,
    also: tuple[str, ...],
    settings: TranslatorSettings,
    device: str,
    side: int,
    colour: bool,
    units: str | None = None,
) -> LabelledFaces:
    """Read the training split of `src`, and those of `also` beside it, as crops with what is known of each face.

    A folder with list_attr_celeba.txt is read as CelebA, any other as `dataset.scan` says. CelebA's images are cut to the part
    in their middle, but as tightly as other faces where there are others: one network sees one view. `units` is
    `TrainConfig.action_units`; they, columns and measures are those of `src`. Raises UsageError for a column or an attribute
    that a dataset lacks, and where there is nothing to ask a face for.
    """

    view = "celeba" if all(map(_is_celeba, (src, *also))) else "tight"

    def load(place: str | Path, settings: TranslatorSettings, units: str | None) -> LabelledFaces:
        if _is_celeba(place):
            return _load_celeba(Path(place), settings, units, device, side, colour, view)
        return _load_classes(place, settings, units, device, side, colour)

    faces = load(src, settings, units)
    further = settings.model_copy(update={"columns": (), "measures": ()})
    faces.also = tuple(load(place, further, None) for place in also)
    return faces


# --- datasets with classes ----------------------------------------------------------------------------------------------


def _load_classes(
    src: str | Path, settings: TranslatorSettings, units: str | None, device: str, side: int, colour: bool
) -> LabelledFaces:
    data = dataset.scan(Path(src))
    _require_columns(data, settings.columns + settings.measures)
    rows = dataset.metadata_rows(data)[1]
    measured = _measure(data, settings.measures, units)
    if measured:
        kept = set(measured.kept([sample.name for sample in data.samples["train"]], data.root))
        of_training = [sample for sample in data.samples["train"] if sample.name in kept]
        data = replace(data, samples={**data.samples, "train": of_training})
    crops, samples = read_crops(data, "train", side, colour)
    groups: list[Group] = []
    parts: list[list[list[float]]] = []
    if measured:
        groups.append(_points(measured, data) if len(data.classes) > 1 else _typical(measured))
        parts.append(measured.values([sample.name for sample in samples]))
    elif len(data.classes) > 1:
        groups.append(Group(CLASS, data.classes))
        parts.append([groups[-1].encode(sample.label) for sample in samples])
    for column in settings.columns:
        told = [rows.get(sample.name, {}).get(column) or "" for sample in samples]
        groups.append(Group(column, _labels(data, column, told)))
        unknown = [0.0] * groups[-1].width
        parts.append([groups[-1].encode(label) if label else unknown for label in told])
    if not groups:
        raise UsageError(
            f"{printable(src)} has one class only ({printable(data.classes[0])}): there is nothing to turn a face into; "
            "give a dataset with several, or columns of its metadata.csv."
        )
    values = torch.cat([torch.tensor(part) for part in parts], 1)
    return LabelledFaces(
        *tensors_of(crops, samples, data.classes), data.classes, device, groups=tuple(groups), values=values
    )


def _measure(data: dataset.Dataset, columns: tuple[str, ...], units: str | None) -> _Measured | None:
    """What a face is asked for instead of its class: action units, then columns with numbers; None where there are none."""
    samples = data.samples["train"]
    parts: list[_Measured] = []
    if len(data.classes) == 1 and (columns or units == action_units.PROTOTYPES):
        what = columns[0] if columns else "action units"
        raise UsageError(
            f"{printable(data.root)} has one class only ({printable(data.classes[0])}), so that it is not known which {what} "
            "an expression has; give a dataset with several, or what OpenFace measured as --action-units PATH."
        )
    if units == action_units.PROTOTYPES:
        names = action_units.prototypes(data.classes)
        typical = {label: action_units.prototype(label, names) for label in data.classes}
        parts.append(_Measured(names, {sample.name: typical[sample.label] for sample in samples}))
    elif units:
        above = (data.root.resolve().name, data.split_folders["train"])
        parts.append(_openface(units, [sample.name for sample in samples], above))
    if columns:
        parts.append(_Measured(columns, _numbers(data, columns)))
    if not parts:
        return None
    everywhere = [name for name in parts[0].of if all(name in part.of for part in parts)]
    joined = {name: tuple(value for part in parts for value in part.of[name]) for name in everywhere}
    return _Measured(tuple(name for part in parts for name in part.names), joined)


def _openface(units: str, images: Iterable[str], above: tuple[str, ...]) -> _Measured:
    """Action units from OpenFace's tables for images below the folders `above`."""
    if not Path(units).exists():
        raise UsageError(
            f"--action-units {printable(units)}: there is no such file or folder; give what OpenFace wrote, or "
            f"'{action_units.PROTOTYPES}'."
        )
    found = action_units.read(Path(units))
    return _Measured(found.names, found.of(images, tuple(filter(None, above))))


def _numbers(data: dataset.Dataset, columns: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """What metadata.csv says in `columns` of the images of which it says it in all of them."""
    found: dict[str, tuple[float, ...]] = {}
    for name, row in dataset.metadata_rows(data)[1].items():
        told = [(row.get(column) or "").strip() for column in columns]
        if all(told):
            found[name] = tuple(_share(text, column, name) for column, text in zip(columns, told, strict=True))
    return found


def _share(text: str, column: str, image: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -1 <= number <= 1:
        raise UsageError(
            f"metadata.csv: {printable(column)} of {printable(image)} is '{printable(text)}'; give a number from -1 to 1, or "
            "nothing where it is not known."
        )
    return number


def _points(measured: _Measured, data: dataset.Dataset) -> Group:
    """Classes as the means of their faces."""
    points: dict[str, list[tuple[float, ...]]] = {label: [] for label in data.classes}
    for sample in data.samples["train"]:
        points[sample.label].append(measured.of[sample.name])
    missing = [label for label, found in points.items() if not found]
    if missing:
        raise UsageError(
            f"{printable(data.root)}: of no image of the class '{printable(missing[0])}' {', '.join(measured.names)} are known; "
            "give them for some, or take the class out."
        )
    means = [np.mean(found, axis=0) for found in points.values()]
    return measured.group(data.classes, (tuple(round(float(value), 4) for value in mean) for mean in means))


def _typical(measured: _Measured) -> Group:
    """The basic expressions as what is typical of them."""
    expressions = action_units.EMFACS
    return measured.group(expressions, (action_units.prototype(label, measured.names) for label in expressions))


def _require_columns(data: dataset.Dataset, columns: tuple[str, ...]) -> None:
    present = dataset.metadata_rows(data)[0]
    for column in columns:
        if column not in present or column in ("file_name", CLASS):
            others = [name for name in present if name not in ("file_name", CLASS)]
            where = printable(data.root / data.split_folders["train"] / "metadata.csv")
            raise UsageError(
                f"{where} has no column '{printable(column)}' to learn from.{did_you_mean(column, others)} "
                f"Columns: {printable(', '.join(others)) or 'none'}."
            )


def _labels(data: dataset.Dataset, column: str, told: list[str]) -> tuple[str, ...]:
    labels = tuple(natsorted(set(told) - {""}))
    if not 2 <= len(labels) <= MOST_LABELS:
        raise UsageError(
            f"column '{printable(column)}' in the metadata.csv of {printable(data.root)} has {len(labels)} different values; "
            f"a translator learns from 2 to {MOST_LABELS}."
        )
    return labels


# --- CelebA -------------------------------------------------------------------------------------------------------------


def _is_celeba(place: str | Path) -> bool:
    return (Path(place) / CELEBA_TABLE).is_file()


def _load_celeba(
    src: Path, settings: TranslatorSettings, units: str | None, device: str, side: int, colour: bool, view: str
) -> LabelledFaces:
    """CelebA's training images and then its validation images, where list_eval_partition.txt tells them; else all images."""
    if units == action_units.PROTOTYPES or settings.measures or not (settings.attributes or units):
        raise UsageError(
            f"{printable(src)} is CelebA, which knows neither expressions nor {', '.join(settings.measures) or 'numbers'}: "
            "give attributes, or what OpenFace measured in its images as --action-units PATH."
        )
    header, rows = _read_attributes(src / CELEBA_TABLE)
    for name in settings.attributes:
        if name not in header:
            raise UsageError(
                f"{printable(src / CELEBA_TABLE)} has no attribute '{printable(name)}'.{did_you_mean(name, header)} "
                f"Attributes: {', '.join(header)}."
            )
    columns = [header.index(name) for name in settings.attributes]
    measured = _openface(units, rows, (src.resolve().name, CELEBA_IMAGES)) if units else None
    usable = measured.kept(list(rows), src) if measured else list(rows)
    splits = _read_splits(src / CELEBA_SPLITS)
    training = [name for name in usable if splits.get(name, "0") == "0"]
    validation = [name for name in usable if splits.get(name) == "1"]
    crops, names = _read_celeba(src, training + validation, side, colour, view)
    if not names:
        raise FacesynthError(f"{printable(src / CELEBA_IMAGES)} holds none of the images in {CELEBA_TABLE}.")
    groups = tuple(Group(name, ("no", "yes"), "switch") for name in settings.attributes)
    values = torch.tensor([[float(rows[name][column]) for column in columns] for name in names])
    if measured:
        groups = (_typical(measured), *groups)
        values = torch.cat([torch.tensor(measured.values(names)), values], 1)
    held = set(validation)
    return LabelledFaces(
        torch.from_numpy(crops),
        torch.zeros(len(names), dtype=torch.long),
        ("face",),
        device,
        validation=sum(name in held for name in names),
        groups=groups,
        values=values,
        view=view,
    )


def _read_attributes(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the attributes, and the -1 and 1 of each image: a line with their number, one with names, one an image."""
    header, rows = [], {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FacesynthError(f"{printable(path)}: cannot be read ({error}); fetch it again.") from error
    header = lines[1].split() if len(lines) > 1 else []
    for number, line in enumerate(lines[2:], start=3):
        name, *told = line.split() or [""]
        if not name:
            continue
        if len(told) != len(header) or not set(told) <= {"-1", "1"}:
            raise FacesynthError(
                f"{printable(path)}, line {number}: expected a file name and {len(header)} times -1 or 1; fetch it again."
            )
        rows[name] = told
    return header, rows


def _read_splits(path: Path) -> dict[str, str]:
    """The split of each image, 0 training, 1 validation, 2 test; empty where there is no such file."""
    if not path.is_file():
        return {}
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _read_celeba(src: Path, names: list[str], side: int, colour: bool, view: str) -> tuple[np.ndarray, list[str]]:
    """Crops (N, side, side) or (N, side, side, 3) uint8, and the names of the images that could be read."""
    crops = room((len(names), side, side, *[3] * colour))
    read: list[str] = []
    with console.progress("reading", len(names)) as bar:
        for name in names:
            bar.advance()
            path = src / CELEBA_IMAGES / name
            try:
                pixels = decode(path.read_bytes(), path).pixels
            except OSError as error:
                console.warn(f"{printable(path)}: cannot be read ({error.strerror}).")
                continue
            except UnreadableImage as error:
                console.warn(str(error))
                continue
            if view == "celeba":
                pixels, landmarks = _middle(pixels), None
            else:
                landmarks = geometry.CELEBA_FACE
            face = geometry.crop(pixels, geometry.frame_of(pixels, landmarks), side, colour)
            crops[len(read)] = np.round(face * 255)
            read.append(name)
    return crops[: len(read)], read


def _middle(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    part = min(geometry.CELEBA_CROP, height, width)
    top, left = (height - part) // 2, (width - part) // 2
    return pixels[top : top + part, left : left + part]
