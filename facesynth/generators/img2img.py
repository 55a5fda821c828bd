"""Any image-to-image pipeline of diffusers as an editor of faces: a prompt for each expression, no weights of our own."""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from facesynth import hub, weights
from facesynth.config import Img2ImgSettings
from facesynth.console import FacesynthError, UsageError
from facesynth.generators.proposal import Edits
from facesynth.photo import to_gray
from facesynth.target import canonical_label
from facesynth.weights import WeightsError

Array = npt.NDArray[np.float32]

INDEX = "model_index.json"
"""The file that makes a folder a pipeline."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls LoRA weights where nobody gave them a name."""

GRAY = 2 / 255
"""Channels that differ no more than this are a gray face's, kept in colour."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline on this machine, with its LoRA weights, if any: enough for every process to load exactly this one.

    `digest` is the commit on the Hub, or tells two contents of a folder apart; LoRA weights have their part in it.
    """

    name: str
    digest: str
    folder: Path
    lora: Path | None
    settings: Img2ImgSettings


def find(spec: str, settings: Img2ImgSettings) -> Pipeline:
    """Find a pipeline by folder or by org/name[@revision] on the Hugging Face Hub, from where it may be downloaded.

    Raises WeightsError where it is not there or is none, UsageError where two prompts are for one class.
    """
    _require_distinct(settings.prompts)
    folder = Path(spec)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise WeightsError(f"{spec}: is no pipeline of diffusers (no {INDEX} in it); give the folder that has one.")
        name, digest = folder.resolve().name, _digest_of(folder)
    else:
        name, _, revision = spec.removeprefix(hub.PREFIX).partition("@")
        folder = _download(name, revision or None)
        digest = folder.name[:16]
    lora = _find_lora(settings.lora) if settings.lora else None
    return Pipeline(name, f"{digest}+lora-{weights.file_digest(lora)}" if lora else digest, folder, lora, settings)


def _require_distinct(prompts: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for label in prompts:
        other = seen.setdefault(canonical_label(label), label)
        if other != label:
            raise UsageError(f"img2img.prompts: '{other}' and '{label}' are the same expression; keep one of them.")


def _download(name: str, revision: str | None) -> Path:
    """The folder of a snapshot in the Hub's cache, named by its commit."""
    from diffusers import DiffusionPipeline

    _quieten()
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, use_safetensors=True))
    except Exception as error:  # of many kinds; all mean that the pipeline did not come
        at = f" at {revision}" if revision else ""
        raise WeightsError(
            f"{name}: this pipeline{at} is no folder here and did not come from the Hugging Face Hub ({_short(error)}); check "
            "the name and the network, log in where it asks for that (hf auth login), or give a folder."
        ) from error


def _digest_of(folder: Path) -> str:
    """16 hex digits over all files of a folder, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        if not any(part.startswith(".") for part in inside.parts):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(inside.as_posix().encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _find_lora(spec: str) -> Path:
    if Path(spec).is_dir():
        spec = str(Path(spec) / LORA_FILE)
    elif spec.startswith(hub.PREFIX) and not spec.endswith(".safetensors"):
        spec = f"{spec}/{LORA_FILE}"
    return weights.find(spec)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _quieten() -> None:
    """No bars and no remarks of the libraries: what there is to say, a sentence of ours says."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@lru_cache(maxsize=1)  # the coordinator and a worker in its process share one: a pipeline takes gigabytes
def _load(folder: Path, digest: str, lora: Path | None, lora_scale: float, dtype: torch.dtype, device: str) -> Any:
    """The pipeline, ready on its device. Raises WeightsError."""
    from diffusers import AutoPipelineForImage2Image

    _quieten()
    try:
        pipe = AutoPipelineForImage2Image.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)
        if lora:
            pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="lora")
            pipe.set_adapters("lora", lora_scale)
        pipe.to(device)
    except Exception as error:  # of many kinds and libraries; all mean that it cannot be used
        with_lora = f" with the LoRA weights {lora}" if lora else ""
        raise WeightsError(
            f"{folder}: cannot be loaded as an image-to-image pipeline{with_lora} ({_short(error)}); give one that diffusers' "
            "AutoPipelineForImage2Image opens, with weights as safetensors."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if hasattr(getattr(pipe, "vae", None), "enable_slicing"):
        pipe.vae.enable_slicing()  # decodes one image after the other: the decoder needs the most memory of all
    return pipe


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        if not device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


class Img2ImgEditor:
    """A pipeline at work: a `FaceEditor` that noises a face and lets the prompt of its target class take it back.

    Intensity scales the settings' strength: at 1 a face is noised as far as they say, at 0 it stays as it is. Gray faces
    come back gray. The pipeline's own safety checker, if it has one, is left in place; the gates turn down what it blackens.
    """

    channels = 3
    view = "tight"
    intensity = photo_intensity = (0.8, 1.0)

    def __init__(self, pipeline: Pipeline, device: str = "cpu") -> None:
        self.name, self.digest, self.settings = pipeline.name, pipeline.digest, pipeline.settings
        self.classes = [canonical_label(label) for label in pipeline.settings.prompts]
        self.size = pipeline.settings.size
        self._prompts = list(pipeline.settings.prompts.values())
        dtype = _dtype(pipeline.settings.dtype, device)
        scale = pipeline.settings.lora_scale
        self._pipe = _load(pipeline.folder, pipeline.digest, pipeline.lora, scale, dtype, device)
        self._parameters = inspect.signature(self._pipe.__call__).parameters
        self._require_parameters()

    def _require_parameters(self) -> None:
        kind = type(self._pipe).__name__
        missing = {"prompt", "image", "strength", "num_inference_steps", "generator"} - set(self._parameters)
        if missing:
            raise WeightsError(
                f"{self.name}: a {kind} takes no {min(missing)}, which is needed to edit faces; choose another pipeline."
            )
        if self.settings.negative_prompt and "negative_prompt" not in self._parameters:
            raise UsageError(f"img2img.negative_prompt: {self.name}, a {kind}, takes none; leave it empty.")

    @torch.inference_mode()
    def propose(
        self, crops: Array, source: list[int], target: list[int], draws: list[np.random.Generator], intensity: Array
    ) -> Edits:
        """See `FaceEditor`; the class that a face has does not matter."""
        seeds = [int(rng.integers(2**63)) for rng in draws]
        # A pipeline takes one strength for all, and all that a strength decides is the number of steps.
        own_steps = np.rint(intensity * self.settings.strength * self.settings.steps).astype(int)
        made = crops.copy()
        for count in sorted(set(own_steps) - {0}):
            rows = np.flatnonzero(own_steps == count)
            prompts = [self._prompts[target[k]] for k in rows]
            images = self._run(crops[rows], prompts, [seeds[k] for k in rows], int(count))
            made[rows] = _gray_where_gray(images, crops[rows])
        return Edits(None, made - crops)

    def _run(self, faces: Array, prompts: list[str], seeds: list[int], count: int) -> Array:
        """`count` of the settings' steps on RGB faces (N, S, S, 3) in [0, 1]."""
        arguments: dict[str, Any] = {"guidance_scale": self.settings.guidance}
        if self.settings.negative_prompt:
            arguments["negative_prompt"] = [self.settings.negative_prompt] * len(prompts)
        try:
            images = self._pipe(
                prompt=prompts,
                image=faces,
                strength=_strength(count, self.settings.steps),
                num_inference_steps=self.settings.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
                **{name: value for name, value in arguments.items() if name in self._parameters},
            ).images
        except torch.OutOfMemoryError as error:
            raise FacesynthError(
                f"{self.name}: {len(faces)} faces at once do not fit into the memory of the device; choose a smaller "
                "--batch-size and go on with --on-existing resume."
            ) from error
        made = np.asarray(images, np.float32)
        if made.shape != faces.shape:
            height, width = made.shape[1:3]
            raise FacesynthError(
                f"{self.name}: makes {width} x {height} pixels of {self.size} x {self.size}; choose another img2img.size."
            )
        if not np.isfinite(made).all():
            raise FacesynthError(
                f"{self.name}: its numbers overflow in {self.settings.dtype}; set img2img.dtype: fp32."
            )
        return made


def _strength(count: int, steps: int) -> float:
    """The strength at which pipelines, which take whole parts, do `count` of `steps` steps."""
    strength = count / steps
    return strength if int(strength * steps) == count else math.nextafter(strength, 2)


def _gray_where_gray(made: Array, faces: Array) -> Array:
    """What was made (N, S, S, 3) of faces, without colour where the face has none: a pipeline would tint it."""
    gray = np.ptp(faces, axis=3).max(axis=(1, 2)) <= GRAY
    for k in np.flatnonzero(gray):
        made[k] = to_gray(made[k])[:, :, None]
    return made
