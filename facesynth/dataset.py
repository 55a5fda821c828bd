"""Datasets in: ImageFolder and FER2013's CSV, scanned by name alone and read image by image."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import BinaryIO, Literal

import numpy as np
from natsort import natsorted

from facesynth.console import FacesynthError, UsageError, did_you_mean, printable, warn
from facesynth.output import check_output, hard_link, require_distinct_names, write_atomic, write_metadata
from facesynth.photo import Encoding, Photo, Pixels, UnreadableImage, decode, encode, to_gray

# The one door for the rest of the package: images and files come and go through here.
__all__ = [
    "Dataset",
    "Encoding",
    "Photo",
    "Pixels",
    "Sample",
    "UnreadableImage",
    "check_output",
    "decode",
    "encode",
    "metadata_rows",
    "real_only",
    "require_balanceable",
    "require_distinct_names",
    "scan",
    "synthetic_rows",
    "to_gray",
    "write_atomic",
    "write_metadata",
]

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif",
    ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FER_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FER_USAGES = {"training": "train", "publictest": "val", "privatetest": "test"}
FER_COLUMNS = ("emotion", "pixels", "usage")
LAYOUT = "expected one folder per class, or train/ (and val/, test/) above such folders, or a FER2013 CSV"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: `name` is its posix path below the split's folder; `offset` its row's place in a CSV, in bytes."""

    split: str
    name: str
    label: str
    offset: int = -1


@dataclass(frozen=True)
class Dataset:
    """What a scan found. Classes and samples are in natural order; `split_folders` tells a split's folder on disk.

    `skipped` lists (path, reason) of what was passed over. `columns` are the places of emotion, pixels and usage in a
    CSV, empty for folders; `root` is then the CSV file.
    """

    root: Path
    form: Literal["folder", "csv"]
    classes: tuple[str, ...]
    samples: dict[str, list[Sample]]
    split_folders: dict[str, str]
    skipped: list[tuple[str, str]]
    columns: tuple[int, ...] = ()

    def counts(self, split: str = "train") -> dict[str, int]:
        """Images per class, in the order of the classes; 0 for a class that the split lacks."""
        found = Counter(sample.label for sample in self.samples.get(split, []))
        return {label: found[label] for label in self.classes}

    def skipped_reasons(self) -> dict[str, int]:
        """How many paths were skipped for each reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.skipped).most_common())

    def path(self, sample: Sample) -> Path:
        """The file that holds the sample."""
        return self.root if self.form == "csv" else self.root / self.split_folders[sample.split] / sample.name

    def read(self, sample: Sample) -> Photo:
        """Decode one image. Raises UnreadableImage, naming the file (and the CSV's row)."""
        if self.form == "csv":
            return Photo(self._csv_pixels(sample), Encoding("PNG", "L", channels=1))
        return decode(self._bytes(sample), self.path(sample))

    def copy(self, sample: Sample, destination: Path, link: bool = False) -> None:
        """Put the sample at `destination`: byte for byte, as a hard link where possible, or (CSV) as a gray PNG."""
        if self.form == "csv":
            photo = self.read(sample)
            write_atomic(destination, encode(photo.pixels, photo.encoding))
        elif not (link and hard_link(self.path(sample), destination)):
            write_atomic(destination, self._bytes(sample))

    def _bytes(self, sample: Sample) -> bytes:
        path = self.path(sample)
        try:
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{printable(path)}: cannot be read ({error.strerror}).") from error

    def _csv_pixels(self, sample: Sample) -> Pixels:
        try:
            with self.root.open("rb") as file:
                file.seek(sample.offset)
                values = np.array(_fields(file.readline())[self.columns[1]].split(), np.int64)
        except (OSError, ValueError, IndexError) as error:
            raise UnreadableImage(f"{self._csv_row(sample)}: the pixels cannot be read ({error}).") from error
        if values.min() < 0 or values.max() > 255:
            wrong = values[(values < 0) | (values > 255)][0]
            raise UnreadableImage(f"{self._csv_row(sample)}: pixel value {wrong} is not in 0..255; correct the row.")
        side = int(len(values) ** 0.5)
        return (values.reshape(side, side, 1) / 255).astype(np.float32)

    def _csv_row(self, sample: Sample) -> str:
        try:
            with self.root.open("rb") as file:
                row = file.read(sample.offset).count(b"\n") + 1
        except OSError:
            return printable(self.root)
        return f"{printable(self.root)}, row {row}"


def scan(src: Path | str) -> Dataset:
    """Read a dataset's names, labels and splits; nothing is decoded. A row of a CSV is numbered with its header as 1.

    Raises UsageError where `src` is no dataset, FacesynthError where a CSV's rows are wrong.
    """
    src = Path(src)
    if src.is_file():
        if src.suffix.lower() != ".csv":
            raise UsageError(f"{printable(src)} is a file: {LAYOUT}; unpack it first if it is an archive.")
        return _scan_csv(src)
    if not src.is_dir():
        near = did_you_mean(src.name, (path.name for path in src.parent.iterdir())) if src.parent.is_dir() else ""
        raise UsageError(f"{printable(src)} does not exist.{near}")
    tree = _Tree()
    folders, images = tree.list(src)
    tables = [] if folders or images else natsorted(p for p in src.iterdir() if p.suffix.lower() == ".csv")
    if len(tables) > 1:
        names = ", ".join(printable(p.name) for p in tables)
        raise UsageError(f"{printable(src)} holds several CSV files ({names}): give the one to read.")
    return _scan_csv(tables[0]) if tables else _scan_folder(src, folders, tree)


def real_only(data: Dataset) -> Dataset:
    """The dataset without the training images that its metadata.csv calls synthetic, with a warning that it is.

    So no synthetic image passes for a real one where an output of balance or augment is read again. Raises UsageError where
    nothing else is there.
    """
    named = synthetic_rows(data) or {}
    samples = data.samples["train"]
    kept = [sample for sample in samples if sample.name not in named]
    if len(kept) == len(samples):
        return data
    if not kept:
        raise UsageError(
            f"{printable(data.root)}: its metadata.csv calls every image synthetic; give one with real images."
        )
    warn(
        f"{printable(data.root)} holds {len(samples) - len(kept):,} images that its metadata.csv calls synthetic: they are "
        "left out, so that none passes for a real one."
    )
    return replace(data, samples=data.samples | {"train": kept})


def synthetic_rows(data: Dataset) -> dict[str, dict[str, str]] | None:
    """Rows of the training split's metadata.csv that are synthetic, by image name; None where there is no such table."""
    columns, rows = metadata_rows(data)
    if "synthetic" not in columns:
        return None
    return {name: row for name, row in rows.items() if (row["synthetic"] or "").lower() in ("true", "1")}


def metadata_rows(data: Dataset) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Columns of the training split's metadata.csv, and its rows by image name; none where there is no such table."""
    path = data.root / data.split_folders["train"] / "metadata.csv"
    if data.form == "csv" or not path.is_file():
        return [], {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            return (columns, {row["file_name"]: row for row in rows}) if "file_name" in columns else ([], {})
    except (OSError, csv.Error) as error:
        raise FacesynthError(f"{printable(path)}: cannot be read ({error}); repair it or take it away.") from error


def require_balanceable(dataset: Dataset) -> None:
    """Raise UsageError unless the training split has two classes or more, each with an image."""
    counts = dataset.counts()
    if len(counts) < 2:
        only = ", ".join(printable(label) for label in counts)
        raise UsageError(
            f"{printable(dataset.root)} has one class only ({only}): there is nothing to balance it against; "
            "give the folder above the class folders, or use augment."
        )
    for label, count in counts.items():
        if count == 0:
            raise UsageError(
                f"class '{printable(label)}' has images in another split, but none in the training split of "
                f"{printable(dataset.root)}: add some, or take the class out."
            )


# --- folders -------------------------------------------------------------------------------------------------------


class _Tree:
    """Walks folders, following links but no link into a folder above itself; remembers what it passed over."""

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []

    def list(self, folder: Path) -> tuple[list[str], list[str]]:
        """Names of the folders and of the images in `folder`, in natural order."""
        found: dict[str, list[str]] = {"folder": [], "image": []}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    kind = _kind(entry)
                    if kind in found:
                        found[kind].append(entry.name)
                    else:
                        self.skipped.append((printable(entry.path), kind))
        except OSError as error:
            self.skipped.append((printable(folder), f"unreadable folder ({error.strerror})"))
        return _natural(found["folder"]), _natural(found["image"])

    def images(self, folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
        """Posix paths, relative to `folder`, of all images in it and then of those in the folders below it."""
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            self.skipped.append((printable(folder), "link to a folder above it"))
            return
        folders, images = self.list(folder)
        yield from images
        for name in folders:
            yield from (f"{name}/{below}" for below in self.images(folder / name, above | {identity}))


def _natural(names: Iterable[str]) -> list[str]:
    # Sorted twice: im1 and im01 are equal to the natural order, which must not leave them as the disk lists them.
    return natsorted(sorted(names))


def _kind(entry: os.DirEntry[str]) -> str:
    """Either "folder", or "image", or the reason to skip the entry."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        entry.name.encode()
        if entry.is_dir():
            return "folder"
        if PurePath(entry.name).suffix.lower() not in SUFFIXES:
            return "not an image"
        return "image" if entry.is_file() else "broken link" if entry.is_symlink() else "not a regular file"
    except UnicodeEncodeError:
        return "name is not UTF-8"
    except OSError as error:
        return f"broken link ({error.strerror})"


def _scan_folder(src: Path, folders: list[str], tree: _Tree) -> Dataset:
    split_folders = _split_folders(src, folders)
    if split_folders["train"] == "":
        tree.skipped.clear()  # the root is listed once more, as the split's folder
    samples: dict[str, list[Sample]] = {}
    for split, folder in split_folders.items():
        samples[split] = list(_split_samples(src / folder, split, tree))
    if not samples["train"]:
        raise UsageError(_no_images(src, split_folders["train"], tree))
    classes = _natural({sample.label for split in samples.values() for sample in split})
    if len(classes) == 1 and not split_folders["train"]:
        _refuse_wrapped(src, classes[0])
    return Dataset(src, "folder", tuple(classes), samples, split_folders, tree.skipped)


def _split_samples(folder: Path, split: str, tree: _Tree) -> Iterator[Sample]:
    labels, loose = tree.list(folder)
    tree.skipped += [(printable(folder / name), "image outside the class folders") for name in loose]
    for label in labels:
        names = list(tree.images(folder / label))
        if not names:
            tree.skipped.append((printable(folder / label), "class folder without images"))
        yield from (Sample(split, f"{label}/{name}", label) for name in names)


def _split_folders(src: Path, folders: list[str]) -> dict[str, str]:
    """Canonical split -> folder below `src`; one flat training split where no folder is named like a split."""
    found: dict[str, str] = {}
    others: list[str] = []
    for folder in folders:
        split = SPLITS.get(folder.lower())
        if split in found:
            raise UsageError(f"{printable(src)} holds both '{found[split]}' and '{folder}': keep one {split} split.")
        if split is None:
            others.append(folder)
        else:
            found[split] = folder
    if not found:
        return {"train": ""}
    beside = next((name for name in others if any(_Tree().images(src / name))), None)
    if beside is not None:
        one = next(iter(found.values()))
        raise UsageError(
            f"{printable(src)}: folder '{one}' is named like a split but lies beside '{printable(beside)}'. If it is a "
            f"split, move the class folders into {printable(src / 'train')}; if it is a class, rename it."
        )
    if "train" not in found:
        names = ", ".join(f"'{name}'" for name in found.values())
        raise UsageError(f"{printable(src)} holds {names} but no 'train' folder: only a training split is worked on.")
    return found


def _refuse_wrapped(src: Path, folder: str) -> None:
    inside = [name for name in _Tree().list(src / folder)[0] if SPLITS.get(name.lower()) == "train"]
    if inside:
        raise UsageError(f"{printable(src)} holds the dataset one folder deeper: give {printable(src / folder)}.")


def _no_images(src: Path, train: str, tree: _Tree) -> str:
    folder = src / train
    reasons = Counter(reason for _, reason in tree.skipped)
    if not reasons:
        return f"{printable(folder)} is empty: {LAYOUT}."
    if reasons["image outside the class folders"]:
        return f"the images in {printable(folder)} lie in no class folder: {LAYOUT}."
    skipped = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{printable(folder)} holds no images (skipped: {skipped}): {LAYOUT}."


# --- FER2013's CSV -------------------------------------------------------------------------------------------------


def _fields(line: bytes) -> list[str]:
    # The format has no comma inside a field; the csv module would hide the byte offsets and cap a field's length.
    return [field.strip().strip('"') for field in line.decode("utf-8", "replace").strip().split(",")]


def _scan_csv(path: Path) -> Dataset:
    samples: dict[str, list[Sample]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    length = 0
    try:
        with path.open("rb") as file:
            columns = _csv_columns(path, file.readline())
            for where, offset, line in _csv_lines(path, file):
                split, label, pixels = _csv_row(line, columns, where)
                length = length or _square(pixels, where)
                if pixels != length:
                    raise FacesynthError(f"{where}: {pixels} pixels, expected {length} as in the rows above.")
                name = f"{label}/im{seen[split, label]}.png"
                samples.setdefault(split, []).append(Sample(split, name, label, offset))
                seen[split, label] += 1
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror}).") from error
    return _csv_dataset(path, samples, columns)


def _csv_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """Of each line below the header that is not blank: its name in errors, its place in bytes, itself."""
    offset = file.tell()
    for row, line in enumerate(file, start=2):
        if line.strip():
            yield f"{printable(path)}, row {row}", offset, line
        offset += len(line)


def _csv_dataset(path: Path, samples: dict[str, list[Sample]], columns: tuple[int, ...]) -> Dataset:
    if "train" not in samples:
        raise FacesynthError(f"{printable(path)} holds no row with Usage 'Training': only those are worked on.")
    classes = natsorted({sample.label for split in samples.values() for sample in split})
    ordered = {split: sorted(rows, key=lambda sample: sample.label) for split, rows in samples.items()}
    return Dataset(path, "csv", tuple(classes), ordered, {split: split for split in ordered}, [], columns)


def _csv_columns(path: Path, header: bytes) -> tuple[int, ...]:
    names = [name.lower() for name in _fields(header.removeprefix(b"\xef\xbb\xbf"))]
    missing = [name for name in FER_COLUMNS if name not in names]
    if missing:
        raise FacesynthError(
            f"{printable(path)}: no column {', '.join(missing)} in the header "
            f"({printable(','.join(names))[:80]}); FER2013's is emotion,pixels,Usage."
        )
    return tuple(names.index(name) for name in FER_COLUMNS)


def _csv_row(line: bytes, columns: tuple[int, ...], where: str) -> tuple[str, str, int]:
    """Split, label and number of pixels of a row."""
    fields = _fields(line)
    if len(fields) <= max(columns):
        raise FacesynthError(f"{where}: {len(fields)} columns, expected {max(columns) + 1}; is the file cut short?")
    emotion, pixels, usage = (fields[column] for column in columns)
    if emotion not in map(str, range(len(FER_LABELS))):
        raise FacesynthError(f"{where}: emotion '{printable(emotion)}' is not in 0..{len(FER_LABELS) - 1}.")
    if usage.lower() not in FER_USAGES:
        raise FacesynthError(f"{where}: Usage '{printable(usage)}' is not Training, PublicTest or PrivateTest.")
    return FER_USAGES[usage.lower()], FER_LABELS[int(emotion)], len(pixels.split())


def _square(pixels: int, where: str) -> int:
    if pixels == 0 or int(pixels**0.5) ** 2 != pixels:
        raise FacesynthError(f"{where}: {pixels} pixels are no square image; FER2013 has 2304 (48x48).")
    return pixels
