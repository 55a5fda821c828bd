"""The run's own folder, beside the output (every folder inside an ImageFolder becomes a class): settings, rows, report."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from facesynth.config import SynthesisConfig, differing_keys
from facesynth.console import FacesynthError, UsageError, printable
from facesynth.dataset import Dataset
from facesynth.output import check_output, require_distinct_names, write_atomic


def folder_of(out: Path) -> Path:
    """`OUT.facesynth`, beside the output."""
    return out.with_name(f"{out.name}.facesynth")


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits over the names of all training images: changes when images come or go."""
    digest = hashlib.sha256()
    for sample in dataset.samples["train"]:
        digest.update(sample.name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def check(config: SynthesisConfig, dataset: Dataset) -> None:
    """Raise UsageError where the output cannot be what the settings ask for; writes nothing."""
    check_output(config.src, config.out)
    names = (sample.name for samples in dataset.samples.values() for sample in samples)
    require_distinct_names(names, config.out.parent)
    folder = folder_of(config.out)
    ours = (folder / "run.json").exists()
    taken = _holds_anything(folder) or _holds_anything(config.out)
    if taken and config.on_existing == "fail":
        ways = (
            "--on-existing resume to go on, --on-existing overwrite to start anew, or another --out"
            if ours
            else "another --out"
        )
        raise UsageError(f"{printable(config.out)} exists already; choose {ways}.")
    if taken and not ours:
        raise UsageError(
            f"{printable(config.out)} was not made by facesynth (no {printable(folder / 'run.json')}), so it is neither gone on "
            "with nor overwritten; choose another --out."
        )


def _holds_anything(folder: Path) -> bool:
    # A run that was killed while it wrote its first file has left nothing but a temporary.
    return folder.exists() and any(not entry.name.startswith(".facesynth-") for entry in folder.iterdir())


def _clear(out: Path, folder: Path) -> None:
    """Remove what an earlier run made; its run.json stays, so that a kill in here leaves a folder known as ours."""
    try:
        if out.exists():
            shutil.rmtree(out)
        for entry in folder.iterdir() if folder.exists() else ():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "run.json":
                entry.unlink()
    except OSError as error:
        raise FacesynthError(
            f"{printable(out)} cannot be overwritten ({printable(error)}): remove it, or choose another --out."
        ) from error


def begin(config: SynthesisConfig, dataset: Dataset, models: dict[str, str]) -> Path:
    """Make or reopen the run's folder and return it; `models` (role → name@digest) belong to the settings.

    With `resume`, raises UsageError naming the settings that differ from the run that is there.
    """
    check(config, dataset)
    folder = folder_of(config.out)
    settings = config.model_dump(mode="json") | {"dataset": fingerprint(dataset)} | models
    path = folder / "run.json"
    if config.on_existing == "overwrite":
        _clear(config.out, folder)
    elif path.exists():
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        keys = differing_keys(before, settings)
        if keys:
            raise UsageError(
                f"{printable(config.out)} was begun with other settings ({', '.join(keys)}); repeat those, or choose "
                "--on-existing overwrite or another --out."
            )
    write_atomic(path, json.dumps(settings, indent=1, sort_keys=True).encode())
    return folder
