"""Action units (AUs) of faces: what OpenFace measured in them, or what is typical of an expression."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from facesynth import console
from facesynth.console import FacesynthError, UsageError, printable
from facesynth.target import canonical_label

PROTOTYPES = "prototypes"
"""Given instead of a path: every face shows the action units that are typical of its class."""

EMFACS: dict[str, tuple[int, ...]] = {
    "angry": (4, 5, 7, 23),
    "contempt": (12, 14),
    "disgust": (9, 15, 16),
    "fear": (1, 2, 4, 5, 7, 20, 26),
    "happy": (6, 12),
    "neutral": (),
    "sad": (1, 4, 15),
    "surprise": (1, 2, 5, 26),
}
"""Action units of the basic expressions: EMFACS (Friesen & Ekman 1983), after the prototypes of FACS (Ekman & Friesen 1978).

Contempt is one-sided there, for which neither OpenFace nor this table has a measure.
"""

STRENGTH = 0.6
"""Of a typical action unit: C, the middle of FACS' five grades A to E, as a share of the strongest."""

STRONGEST = 5.0
"""The upper end of OpenFace's intensities."""

CONFIDENCE = 0.7
"""Faces that OpenFace is less sure to have found are skipped."""

_INTENSITY = re.compile(r"AU\d\d_r")
_FILE_NAMES = ("file_name", "filename")

Parts = tuple[str, ...]


@dataclass(frozen=True)
class ActionUnits:
    """Measured action units: `names` such as AU12, and for each image, by the parts of its path without suffix, shares.

    Shares are of the strongest, in [0, 1]; None where OpenFace lost the face. `source` is where they were read.
    """

    source: Path
    names: tuple[str, ...]
    shares: Mapping[Parts, tuple[float, ...] | None]

    def of(self, images: Iterable[str], above: Parts) -> dict[str, tuple[float, ...]]:
        """Action units by image, for those of `images` (posix paths) that have some.

        What was measured belongs to the image whose path ends as its own: one of them, or of the image's path below the
        folders `above`, is the end of the other. Raises UsageError where that is not one image.
        """
        by_stem: dict[str, list[Parts]] = defaultdict(list)
        for parts in self.shares:
            by_stem[parts[-1]].append(parts)
        found: dict[str, tuple[float, ...]] = {}
        owner: dict[Parts, str] = {}
        for image in images:
            own = _parts(image)
            fits = self._fitting(by_stem[own[-1]], own, above)
            if not fits:
                continue
            if len(fits) > 1:
                both = " and ".join(printable("/".join(parts)) for parts in sorted(fits)[:2])
                raise UsageError(
                    f"{printable(self.source)}: both {both} could be {printable(image)}; keep one of them."
                )
            (parts,) = fits
            if parts in owner:
                raise UsageError(
                    f"{printable(self.source)}: {printable('/'.join(parts))} could be {printable(owner[parts])} and "
                    f"{printable(image)}; lay the tables into folders as the images are, or name the images with their folders."
                )
            owner[parts] = image
            shares = self.shares[parts]
            if shares is not None:
                found[image] = shares
        return found

    @staticmethod
    def _fitting(candidates: Sequence[Parts], own: Parts, above: Parts) -> list[Parts]:
        """Those that share the longest end with an image's path, if it is all of theirs, or of the image's."""
        shared = {parts: _shared_end(parts, above + own) for parts in candidates}
        fits = [parts for parts, length in shared.items() if length >= min(len(parts), len(own))]
        return [parts for parts in fits if shared[parts] == max(shared[other] for other in fits)]


def read(source: Path) -> ActionUnits:
    """What OpenFace wrote: a folder with a CSV for each image (FaceLandmarkImg), or one CSV with a column file_name.

    Where an image has several rows, the surest counts. Raises FacesynthError for what cannot be read, and UsageError
    for tables without intensities or without names.
    """
    tables = sorted(source.rglob("*.csv")) if source.is_dir() else [source]
    if not tables:
        raise UsageError(f"{printable(source)} holds no CSV of OpenFace: run FaceLandmarkImg -aus on the images first.")
    names: tuple[str, ...] = ()
    surest: dict[Parts, float] = {}
    shares: dict[Parts, tuple[float, ...] | None] = {}
    with console.progress("reading action units", len(tables)) as bar:
        for table in tables:
            image = _parts(table.relative_to(source).as_posix()) if table != source else None
            columns, rows = _rows(table)
            measured = tuple(column.removesuffix("_r") for column in columns if _INTENSITY.fullmatch(column))
            if not measured or (names and measured != names):
                what = "other action units than the tables before it" if measured else "no intensities (AU01_r, ...)"
                raise UsageError(f"{printable(table)} has {what}: run OpenFace with -aus on all images alike.")
            names = measured
            named = image is not None or next((column for column in _FILE_NAMES if column in columns), None)
            if not named:
                raise UsageError(
                    f"{printable(table)} does not say which row is which image: add a column file_name, or give the folder "
                    "that FaceLandmarkImg wrote."
                )
            for line, row in rows:
                key = image or _parts(row[str(named)])
                sureness, found = _read_row(row, names, table, line)
                if key not in shares or sureness > surest[key]:
                    surest[key], shares[key] = sureness, found
            bar.advance()
    return ActionUnits(source, names, shares)


def prototypes(classes: Sequence[str]) -> tuple[str, ...]:
    """The action units that are typical of any of these classes. Raises UsageError for a class of which none are known."""
    unknown = [label for label in classes if canonical_label(label) not in EMFACS]
    if unknown:
        raise UsageError(
            f"no action units are known to be typical of the class '{printable(unknown[0])}' (they are of {', '.join(EMFACS)}): "
            "rename it, or give what OpenFace measured as --action-units PATH."
        )
    return tuple(f"AU{unit:02}" for unit in sorted({unit for c in classes for unit in EMFACS[canonical_label(c)]}))


def prototype(label: str, names: Sequence[str]) -> tuple[float, ...]:
    """What is typical of an expression of `EMFACS` in the action units `names`, in shares of the strongest."""
    typical = {f"AU{unit:02}" for unit in EMFACS[canonical_label(label)]}
    return tuple(STRENGTH if name in typical else 0.0 for name in names)


def _parts(path: str) -> Parts:
    return PurePosixPath(path.strip().replace("\\", "/")).with_suffix("").parts


def _shared_end(first: Parts, second: Parts) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _rows(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns and rows with their line numbers; OpenFace puts a blank before each."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True, restval="")
            columns = [column.strip() for column in rows.fieldnames or ()]
            rows.fieldnames = columns
            return columns, [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FacesynthError(f"{printable(table)}: cannot be read ({error}); run OpenFace again.") from error


def _read_row(
    row: Mapping[str, str], names: Sequence[str], table: Path, line: int
) -> tuple[float, tuple[float, ...] | None]:
    """How sure OpenFace is of a face, and its action units unless it is lost."""

    def number(column: str, default: float) -> float:
        text = row.get(column)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError:
            raise FacesynthError(
                f"{printable(table)}, line {line}: {column} is '{printable(text)}', no number; run OpenFace again."
            ) from None

    sureness = number("confidence", 1.0) if number("success", 1.0) == 1 else 0.0
    intensities = [number(f"{name}_r", math.nan) for name in names]
    if not sureness >= CONFIDENCE or not all(map(math.isfinite, intensities)):
        return 0.0, None
    return sureness, tuple(min(max(value / STRONGEST, 0.0), 1.0) for value in intensities)
