"""Which group each face is in: by columns of the user's, or as insightface's model of sex and age guesses."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesynth import console, geometry
from facesynth.console import UsageError, did_you_mean, printable
from facesynth.dataset import Dataset, UnreadableImage
from facesynth.identity import FaceEmbedder, IdentityError, InsightfaceEmbedder
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.safety import source_rows

Array = NDArray[Any]

MOST_GROUPS = 20
AGES = ((18, "under 18"), (40, "18 to 39"), (60, "40 to 59"), (1000, "60 and over"))
NO_GROUPS = (
    "Bias is not measured: nothing tells whom a face belongs to. Name columns of the real training split's metadata.csv, such "
    "as --groups sex,age_group (or of a table with a column file_name, by --groups-table), or use an insightface pack that "
    "holds genderage.onnx, such as buffalo_l, by --identity-model."
)


@dataclass(frozen=True)
class Groups:
    """Groups of faces: column → group of each real image (N,) and of each synthetic one (M,), "" where unknown."""

    origin: str
    real: dict[str, Array]
    synthetic: dict[str, Array]


def find_groups(
    real: ImageSet,
    synthetic: SyntheticSet,
    columns: Sequence[str] = (),
    table: Path | None = None,
    embedder: FaceEmbedder | None = None,
) -> Groups | None:
    """Groups by `columns` where some are named, else by the model of sex and age in the embedder's pack, else None.

    `NO_GROUPS` says what a user can do about None. Raises UsageError as `groups_by_columns` does, and IdentityError for an
    unreadable model.
    """
    if columns:
        return groups_by_columns(real, synthetic, columns, table)
    model = open_attribute_model(embedder)
    return groups_by_model(real, synthetic, model) if model else None


# --- columns of the user's --------------------------------------------------------------------------------------------


def groups_by_columns(
    real: ImageSet, synthetic: SyntheticSet, columns: Sequence[str], table: Path | None = None
) -> Groups:
    """Groups from columns of `table`, or else of the metadata.csv in each split's folder of REAL.

    The column `file_name` is the path below the dataset's folder, or below the split's. A synthetic image is in its
    source's group. Raises UsageError for a missing table or column, and for a column that is no grouping (more than 20
    different values).
    """
    lookup = _read_tables(real.dataset, columns, table)
    folder = real.dataset.split_folders
    found = {column: [""] * len(real) for column in columns}
    for row, sample in enumerate(real.samples):
        entry = lookup.get((sample.split, sample.name)) or lookup.get(("", f"{folder.get(sample.split)}/{sample.name}"))
        entry = entry or lookup.get(("", sample.name)) or {}
        for column in columns:
            found[column][row] = (entry.get(column) or "").strip()
    groups = {column: np.array(values, dtype=object).astype(str) for column, values in found.items()}
    for column, values in groups.items():
        count = len(set(values.tolist()) - {""})
        if not 1 <= count <= MOST_GROUPS:
            raise UsageError(
                f"--groups {printable(column)}: {count} different values for the images of {real.name}; give a column "
                f"with 1 to {MOST_GROUPS}, whose file_name are paths below the dataset's folder."
            )
    return Groups(f"columns of {printable(table or 'metadata.csv')}", groups, _inherited(real, synthetic, groups))


def _read_tables(dataset: Dataset, columns: Sequence[str], table: Path | None) -> dict[tuple[str, str], dict[str, str]]:
    """Rows by (split, file_name); the split is "" for those of a table of the user's."""
    if table is not None:
        return {("", name): row for name, row in _read_table(table, columns)}
    if dataset.form == "csv":
        raise UsageError(f"{printable(dataset.root)} is a CSV without further columns: name them with --groups-table.")
    files = {split: dataset.root / folder / "metadata.csv" for split, folder in dataset.split_folders.items()}
    there = {split: path for split, path in files.items() if path.is_file()}
    if not there:
        raise UsageError(
            f"--groups: there is no {printable(files['train'])}; write it with a column file_name and those that you name, "
            "or give another table by --groups-table."
        )
    return {(split, name): row for split, path in there.items() for name, row in _read_table(path, columns)}


def _read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            present = list(rows.fieldnames or ())
            for column in ("file_name", *columns):
                if column not in present:
                    raise UsageError(
                        f"{printable(path)} has no column '{printable(column)}'.{did_you_mean(column, present)} It has "
                        f"{printable(', '.join(present))}."
                    )
            yield from ((Path(row["file_name"] or "").as_posix(), row) for row in rows)
    except (OSError, csv.Error) as error:
        raise UsageError(
            f"{printable(path)}: cannot be read ({error}); give a CSV file with a column file_name."
        ) from error


def _inherited(real: ImageSet, synthetic: SyntheticSet, groups: dict[str, Array]) -> dict[str, Array]:
    train = np.flatnonzero(real.splits == "train")
    sources = source_rows(real.of("train"), synthetic)
    known = sources >= 0
    of_synthetic = {}
    for column, values in groups.items():
        of_synthetic[column] = np.full(len(synthetic), "", dtype=values.dtype)
        of_synthetic[column][known] = values[train[sources[known]]]
    return of_synthetic


# --- a model of sex and age -------------------------------------------------------------------------------------------


class AttributeModel:
    """insightface's model of sex and age (genderage.onnx), on the box that the package's own frame of the face gives."""

    def __init__(self, path: Path, locate: Callable[[Array], Array | None]) -> None:
        """Load the model; `locate` finds the landmarks in a large photo. Raises IdentityError where it is not readable."""
        from insightface.model_zoo import get_model

        self.name = f"insightface/{path.parent.name}/{path.name}"
        self._locate = locate
        with contextlib.redirect_stdout(sys.stderr):
            try:
                self._model = get_model(str(path), providers=["CPUExecutionProvider"])
                readable = self._model.taskname == "genderage"
            except Exception as error:  # onnxruntime, protobuf and insightface each raise their own kinds
                raise IdentityError(
                    f"{printable(path)}: not readable as insightface's attribute model ({error}); fetch the pack again."
                ) from error
        if not readable:
            raise IdentityError(f"{printable(path)}: not a model of sex and age; fetch the pack again.")

    def __call__(self, pixels: Array) -> tuple[str, str]:
        """Sex and age group of the face in a photo (H, W, C) in [0, 1]."""
        frame = geometry.frame_of(pixels, self._locate(pixels) if geometry.may_hold_more(pixels) else None)
        middle, half = (
            frame.matrix @ [geometry.CROP / 2 - 0.5, geometry.CROP / 2 - 0.5, 1],
            geometry.CROP / 2 * frame.scale,
        )
        box = np.concatenate([middle - half, middle + half])
        image = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
        bgr = np.ascontiguousarray(np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else image[:, :, 2::-1])
        sex, age = self._model.get(bgr, _Face(bbox=box))
        return ("female", "male")[int(sex)], next(name for limit, name in AGES if age < limit)


class _Face(SimpleNamespace):
    """As much of a face as insightface's model reads and writes."""

    def __setitem__(self, key: str, value: object) -> None:
        setattr(self, key, value)


def open_attribute_model(embedder: FaceEmbedder | None) -> AttributeModel | None:
    """The model of sex and age in the pack that the embedder comes from; None where there is none."""
    if not isinstance(embedder, InsightfaceEmbedder):
        return None
    folder = embedder.path if embedder.path.is_dir() else embedder.path.parent
    path = folder / "genderage.onnx"
    return AttributeModel(path, embedder.locate) if path.is_file() else None


def groups_by_model(real: ImageSet, synthetic: SyntheticSet, model: AttributeModel) -> Groups:
    """Groups "sex" and "age_group" as the model guesses them from the real images; synthetic ones are in their source's.

    Only where no source is known is the synthetic image itself looked at.
    """
    groups = _guess(real, model, range(len(real)))
    of_synthetic = _inherited(real, synthetic, groups)
    orphans = np.flatnonzero(source_rows(real.of("train"), synthetic) < 0)
    if len(orphans):
        guessed = _guess(synthetic, model, orphans.tolist())
        of_synthetic = {
            column: np.where(of_synthetic[column] == "", guessed[column], of_synthetic[column]) for column in groups
        }
    return Groups(f"guesses of {model.name}, which errs, on rare faces most", groups, of_synthetic)


def _guess(images: ImageSet, model: AttributeModel, rows: Sequence[int]) -> dict[str, Array]:
    guesses = {"sex": np.full(len(images), "", "<U16"), "age_group": np.full(len(images), "", "<U16")}
    with console.progress(f"sex and age in {images.name}", len(rows)) as bar:
        for row in rows:
            with contextlib.suppress(UnreadableImage):
                guesses["sex"][row], guesses["age_group"][row] = model(images.dataset.read(images.samples[row]).pixels)
            bar.advance()
    return guesses
