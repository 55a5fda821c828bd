"""Weights: built-in name | file | hf://org/name → a network; and a network → one safetensors file with its config inside.

Any of the three may end in #sha256=DIGEST, and is then refused unless the file has that digest. Only safetensors are
read: nothing from outside is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facesynth import hub
from facesynth.console import FacesynthError, UsageError, did_you_mean, printable
from facesynth.generators.denoiser import Denoiser
from facesynth.generators.latent import Generator
from facesynth.generators.networks import Classifier, Editor, Embedder
from facesynth.generators.translation import Translator

FORMAT = "facesynth-1"
_FOLDER = Path(__file__).parent / "builtin"

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "classifier": Classifier,
    "embedder": Embedder,
    "editor": Editor,
    "generator": Generator,
    "translator": Translator,
    "denoiser": Denoiser,
}
"""What a weights file can hold; its header names one of these and the arguments it was made with."""


class WeightsError(FacesynthError):
    """A weights file is missing, broken, or not one of ours."""


@dataclass(frozen=True)
class Weights:
    """A network in evaluation mode with what its file says about it."""

    name: str
    path: Path
    kind: str
    module: Any
    info: dict[str, Any]

    @property
    def digest(self) -> str:
        """First 16 hex digits of the file's SHA-256: tells two versions of the same name apart."""
        return file_digest(self.path)


def builtin_names() -> list[str]:
    """Names of the weights inside the installed package."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def find(spec: str) -> Path:
    """Turn a built-in name, a path, or hf://org/name[@revision][/file] into a local file; the last may download it.

    Where `spec` ends in #sha256=DIGEST, the file must have that SHA-256; 16 or more leading hex digits do, as provenance
    shows them, but all 64 are needed against a file that was forged. Raises UsageError for an unknown name or a malformed
    spec, HubError for what the Hub does not give, and WeightsError for a file that is not there or has another digest.
    """
    place, digest = split_digest(spec)
    path = hub.download(place) if place.startswith(hub.PREFIX) else _find_here(place)
    if digest:
        require_digest(path, digest)
    return path


def pin(spec: str) -> str:
    """`spec` as it is, but one on the Hub with its present commit: it names the same file in every process and later."""
    place, digest = split_digest(spec)
    if not place.startswith(hub.PREFIX):
        return spec
    return hub.pin(place) + (f"{hub.DIGEST_MARK}{digest}" if digest else "")


def is_pin(pinned: str, spec: str) -> bool:
    """Whether `pinned` is what `pin` made of `spec` at some time."""
    (before, digest), (now, wanted) = split_digest(pinned), split_digest(spec)
    if digest != wanted or not (before.startswith(hub.PREFIX) and now.startswith(hub.PREFIX)):
        return pinned == spec
    return hub.is_pin(hub.parse(before), hub.parse(now))


def split_digest(spec: str) -> tuple[str, str | None]:
    """What a spec names, and the leading hex digits that its SHA-256 must have, if it says so.

    Raises UsageError where what follows #sha256= is none, and where hf:// is followed by another fragment.
    """
    place, mark, digest = spec.rpartition(hub.DIGEST_MARK)
    if mark and re.fullmatch("[0-9a-fA-F]{16,64}", digest):
        return place, digest.lower()
    if mark or (spec.startswith(hub.PREFIX) and "#" in spec):
        raise UsageError(
            f"{printable(spec)}: write {hub.DIGEST_MARK} and 16 to 64 hex digits at the end, 64 to be safe."
        )
    return spec, None


def require_digest(path: Path, digest: str) -> None:
    """Raise WeightsError unless the file's SHA-256 begins with `digest` (lower-case hex)."""
    found = sha256(path)
    if not found.startswith(digest):
        raise WeightsError(
            f"{printable(path)}: its SHA-256 is {found}, not {digest} as asked for; if you trust this file, give its own "
            f"digest after {hub.DIGEST_MARK}, else fetch the one you meant, at the revision that had it."
        )


def _find_here(spec: str) -> Path:
    builtin = _FOLDER / f"{spec}.safetensors"
    if builtin.is_file():
        return builtin
    path = Path(spec)
    if path.is_dir() and (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if path.is_file():
        return path
    if path.suffix or path.parent != Path():
        raise WeightsError(
            f"{spec}: no such weights file; give a built-in name ({', '.join(builtin_names())}) or a path."
        )
    hint = did_you_mean(spec, builtin_names())
    raise UsageError(f"unknown weights '{spec}'.{hint} Built in: {', '.join(builtin_names()) or 'none'}.")


def _name(spec: str, path: Path) -> str:
    """What provenance calls the weights at `path`: with the commit where they are from the Hub."""
    place, _ = split_digest(spec)
    if place.startswith(hub.PREFIX):
        return hub.pin(place, path)
    return Path(place).stem if Path(place).suffix else place


def load(spec: str, kind: str | None = None) -> Weights:
    """Load a network (float32, evaluation mode). `kind` (a key of `NETWORKS`), if given, is insisted on.

    Raises WeightsError when the file is truncated, is a pickle, holds other tensors than its header says, or is not ours.
    """
    from safetensors import SafetensorError, safe_open

    path = find(spec)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); fetch or train it again. {_pickle_hint(path)}"
        ) from error
    if header.get("format") != FORMAT or header.get("kind") not in NETWORKS:
        raise WeightsError(f"{path}: these are not facesynth weights; train some with `facesynth train`.")
    if kind and header["kind"] != kind:
        raise WeightsError(f"{path}: holds a {header['kind']}, but {kind} weights are needed here.")
    try:
        module = NETWORKS[header["kind"]](**json.loads(header["config"]))
        module.load_state_dict({name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()})
        info = json.loads(header.get("info", "{}"))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: its tensors do not fit its header; fetch or train it again.") from error
    module.eval().requires_grad_(False)
    return Weights(_name(spec, path), path, header["kind"], module, info)


def _pickle_hint(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    pickled = start[:1] == b"\x80" or start == b"PK\x03\x04"
    return "It looks like a pickle, which is never opened because it can run code." if pickled else ""


def save(path: Path, kind: str, module: nn.Module, info: dict[str, Any]) -> None:
    """Write `module` as fp16 safetensors with its config and `info` (JSON-able) in the header; atomic."""
    from safetensors.torch import save as to_bytes

    from facesynth.output import write_atomic

    tensors = {
        name: (t.half() if t.dtype == torch.float32 else t).cpu().contiguous()
        for name, t in module.state_dict().items()
    }
    config = json.dumps(module.config, sort_keys=True)
    header = {"format": FORMAT, "kind": kind, "config": config, "info": json.dumps(info, sort_keys=True)}
    write_atomic(path, _with_sorted_header(to_bytes(tensors, header)))


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library leaves that to chance, and with it the digest."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256."""
    return sha256(path)[:16]


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
