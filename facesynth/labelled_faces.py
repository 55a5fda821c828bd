"""Faces with all that is known of them: the class, columns of metadata.csv, or CelebA's attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from natsort import natsorted
from torch import Tensor

from facesynth import console, dataset, geometry
from facesynth.console import FacesynthError, UsageError, did_you_mean, printable
from facesynth.generators.condition import CLASS, Group, Vocabulary
from facesynth.photo import Pixels, UnreadableImage, decode
from facesynth.recipe import TranslatorSettings
from facesynth.training_data import Faces, metadata_rows, read_crops, room, tensors_of

MOST_LABELS = 50
"""A column with more different values than this is taken for free text."""

CELEBA_TABLE = "list_attr_celeba.txt"
CELEBA_SPLITS = "list_eval_partition.txt"
CELEBA_IMAGES = "img_align_celeba"
CELEBA_CROP = 178
"""Side of the part in the middle of CelebA's images (178 x 218) that is used, as in Choi et al. 2018."""


@dataclass
class LabelledFaces(Faces):
    """Faces of one dataset with `values` (N, width): what is known of each in `groups`, zeros where it is not known.

    `also` are further datasets with groups of their own. A dataset without classes has one, which is in no group.
    """

    groups: tuple[Group, ...] = ()
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    also: tuple[LabelledFaces, ...] = ()

    @property
    def vocabulary(self) -> Vocabulary:
        """The groups of this dataset and of the further ones."""
        return Vocabulary((self.groups, *(other.groups for other in self.also)))

    def known(self, indices: Tensor) -> Tensor:
        """What is known (N, width) of the faces at `indices`, on the device."""
        return self.values[indices].to(self.device)


def load_labelled(
    src: str | Path, also: tuple[str, ...], settings: TranslatorSettings, device: str, side: int, colour: bool
) -> LabelledFaces:
    """Read the training split of `src`, and those of `also` beside it, as crops with what is known of each face.

    A folder with list_attr_celeba.txt is read as CelebA, any other as `dataset.scan` says. Raises UsageError for a column
    or an attribute that a dataset lacks.
    """

    def load(place: str | Path) -> LabelledFaces:
        if (Path(place) / CELEBA_TABLE).is_file():
            return _load_celeba(Path(place), settings.attributes, device, side, colour)
        columns = settings.columns if place == src else ()
        return _load_classes(place, columns, device, side, colour)

    faces = load(src)
    faces.also = tuple(load(place) for place in also)
    return faces


# --- datasets with classes ----------------------------------------------------------------------------------------------


def _load_classes(src: str | Path, columns: tuple[str, ...], device: str, side: int, colour: bool) -> LabelledFaces:
    data = dataset.scan(Path(src))
    _require_columns(data, columns)
    crops, samples = read_crops(data, "train", side, colour)
    rows = metadata_rows(data)[1]
    groups: list[Group] = []
    parts: list[list[list[float]]] = []
    if len(data.classes) > 1:
        groups.append(Group(CLASS, data.classes))
        parts.append([groups[-1].encode(sample.label) for sample in samples])
    for column in columns:
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


def _require_columns(data: dataset.Dataset, columns: tuple[str, ...]) -> None:
    present = metadata_rows(data)[0]
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


def _load_celeba(src: Path, attributes: tuple[str, ...], device: str, side: int, colour: bool) -> LabelledFaces:
    """CelebA's training images and then its validation images, where list_eval_partition.txt tells them; else all images."""
    header, rows = _read_attributes(src / CELEBA_TABLE)
    for name in attributes:
        if name not in header:
            raise UsageError(
                f"{printable(src / CELEBA_TABLE)} has no attribute '{printable(name)}'.{did_you_mean(name, header)} "
                f"Attributes: {', '.join(header)}."
            )
    columns = [header.index(name) for name in attributes]
    splits = _read_splits(src / CELEBA_SPLITS)
    training = [name for name in rows if splits.get(name, "0") == "0"]
    validation = [name for name in rows if splits.get(name) == "1"]
    crops, names = _read_celeba(src, training + validation, side, colour)
    if not names:
        raise FacesynthError(f"{printable(src / CELEBA_IMAGES)} holds none of the images in {CELEBA_TABLE}.")
    values = torch.tensor([[float(rows[name][column]) for column in columns] for name in names])
    held = set(validation)
    return LabelledFaces(
        torch.from_numpy(crops),
        torch.zeros(len(names), dtype=torch.long),
        ("face",),
        device,
        validation=sum(name in held for name in names),
        groups=tuple(Group(name, ("no", "yes"), "switch") for name in attributes),
        values=values,
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


def _read_celeba(src: Path, names: list[str], side: int, colour: bool) -> tuple[np.ndarray, list[str]]:
    """Crops (N, side, side) or (N, side, side, 3) uint8, and the names of the images that could be read."""
    crops = room((len(names), side, side, *[3] * colour))
    read: list[str] = []
    with console.progress("reading", len(names)) as bar:
        for name in names:
            bar.advance()
            path = src / CELEBA_IMAGES / name
            try:
                pixels = _middle(decode(path.read_bytes(), path).pixels)
            except OSError as error:
                console.warn(f"{printable(path)}: cannot be read ({error.strerror}).")
                continue
            except UnreadableImage as error:
                console.warn(str(error))
                continue
            face = geometry.crop(pixels, geometry.frame_of(pixels, None), side, colour)
            crops[len(read)] = np.round(face * 255)
            read.append(name)
    return crops[: len(read)], read


def _middle(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    part = min(CELEBA_CROP, height, width)
    top, left = (height - part) // 2, (width - part) // 2
    return pixels[top : top + part, left : left + part]
