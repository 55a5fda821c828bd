"""Files out: atomic writes, hard links, metadata.csv, and the checks of where they go."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from facesynth.console import FacesynthError, UsageError, printable, warn

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that its name never shows half of it; folders above it are made.

    Raises FacesynthError, naming the path and the next step, and leaves nothing behind.
    """
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def write_metadata(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file atomically, a row at a time; a column that a row lacks stays empty."""
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    # The temporary's name is fixed by the path's: what a killed run leaves, its resumption overwrites and renames.
    digest = hashlib.sha1(path.name.encode(), usedforsecurity=False).hexdigest()[:16]
    temporary = path.with_name(f".facesynth-{digest}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise FacesynthError(f"cannot write {printable(path)} ({error.strerror}): {_next_step(error)}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _next_step(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space there and go on with --on-existing resume"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make the folder writable or choose another --out"
    return "check the path and go on with --on-existing resume"


def hard_link(source: Path, destination: Path) -> bool:
    """Link `destination` to `source`; False where that cannot be done and a copy is due.

    Raises FacesynthError where `destination` cannot be written at all.
    """
    try:
        with _replacing(destination) as temporary:
            temporary.unlink(missing_ok=True)
            os.link(source.resolve(), temporary)
    except FacesynthError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError):  # the source went away: the copy says so
            return False
        if isinstance(cause, OSError) and cause.errno in _NO_LINKS:
            warn(f"no hard links to {printable(destination.parent.parent)} ({cause.strerror}): files are copied.")
            return False
        raise
    return True


def check_output(src: Path, out: Path) -> None:
    """Raise UsageError unless `out` is apart from `src`: neither the same, nor inside, nor above; and no file."""
    source, output = src.resolve(), out.resolve()
    if source == output:
        raise UsageError(f"the output is the source itself ({printable(out)}): choose another --out.")
    if output.is_relative_to(source):
        raise UsageError(f"the output {printable(out)} lies inside the source {printable(src)}: choose another --out.")
    if source.is_relative_to(output):
        raise UsageError(f"the source {printable(src)} lies inside the output {printable(out)}: choose another --out.")
    if output.is_file():
        raise UsageError(f"the output {printable(out)} is a file: choose a folder.")


def require_distinct_names(names: Iterable[str], folder: Path) -> None:
    """Raise UsageError where two names differ in case alone and the file system of `folder` cannot tell them apart.

    The nearest folder that exists is asked; names are kept as they are on any other file system.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name and ignores_case(folder):
            raise UsageError(
                f"'{printable(other)}' and '{printable(name)}' differ in case alone, and {printable(folder)} lies on a "
                "file system that ignores case: rename one, or choose another --out."
            )
        if other != name:
            return


def ignores_case(folder: Path) -> bool:
    """Whether names that differ in case alone are one file in `folder` (or in the nearest folder above it)."""
    existing = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
    try:
        with tempfile.NamedTemporaryFile(prefix=".facesynth-case-", dir=existing) as probe:
            return existing.joinpath(Path(probe.name).name.upper()).exists()
    except OSError:
        return False
