"""What metrics see of an image: the features of Inception as torch-fidelity runs it, or those of the expression judge."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from facesynth.console import FacesynthError, UsageError, note, printable, warn
from facesynth.download import fetching
from facesynth.expression import Judge, load_judge

Array = NDArray[Any]

INCEPTION = "inception-v3-compat"
"""torch-fidelity's name of the Inception network that FID is defined on."""

INCEPTION_MEGABYTES = 95


class Extractor(Protocol):
    """Turns images into features and class logits. `name` tells the network and its weights apart from all others."""

    name: str

    def __call__(self, photos: list[Array], crops: Array) -> tuple[Array, Array]:
        """Whole images (H, W, C) and face crops (N, 48, 48), in [0, 1] → features (N, D), logits (N, K), float32."""


class JudgeExtractor:
    """The pooled features and the logits of an expression judge, which reads face crops."""

    def __init__(self, judge: Judge) -> None:
        self.name = judge.full_name
        self._model, self._device = judge.model, judge.device

    @torch.inference_mode()
    def __call__(self, photos: list[Array], crops: Array) -> tuple[Array, Array]:
        """See Extractor."""
        batch = torch.from_numpy(np.ascontiguousarray(crops, dtype=np.float32))[:, None].to(self._device)
        features = self._model.trunk(batch - 0.5)
        return features.cpu().numpy(), self._model.head(features).cpu().numpy()


class InceptionExtractor:
    """Inception v3 as torch-fidelity runs it on image files: whole images, gray ones with three equal channels."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Load the weights that torch-fidelity publishes. Raises FacesynthError, naming the file, for anything else."""
        from torch_fidelity import FeatureExtractorInceptionV3

        try:
            data = path.read_bytes()
            # The network's own loading would run a pickle's code: what does not load as mere tensors never gets there.
            torch.load(io.BytesIO(data), weights_only=True)
            layers = ["2048", "logits_unbiased"]
            self._network = FeatureExtractorInceptionV3(
                INCEPTION, layers, feature_extractor_weights_path=io.BytesIO(data)
            )
        except Exception as error:  # torch raises many kinds for a broken or foreign file
            raise FacesynthError(
                f"{printable(path)}: not readable as torch-fidelity's Inception weights ({type(error).__name__}); fetch "
                f"{_inception_url()}, or use --features judge."
            ) from error
        self.name = f"{INCEPTION}@{hashlib.sha256(data).hexdigest()[:16]}"
        self._network.to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, photos: list[Array], crops: Array) -> tuple[Array, Array]:
        """See Extractor."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, photo in enumerate(photos):
            by_shape[photo.shape].append(row)
        features, logits = np.empty((len(photos), 2048), np.float32), np.empty((len(photos), 1008), np.float32)
        for rows in by_shape.values():
            batch = torch.from_numpy(np.stack([_rgb(photos[row]) for row in rows])).to(self._device)
            found = self._network(batch)
            features[rows], logits[rows] = (part.cpu().numpy() for part in found)
        return features, logits


def _rgb(photo: Array) -> Array:
    """Pixels (H, W, 1 or 3) in [0, 1] → (3, H, W) uint8."""
    image = (np.clip(photo, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(image, 3, axis=2).transpose(2, 0, 1) if image.shape[2] == 1 else image.transpose(2, 0, 1)


def open_extractor(spec: str = "auto", judge: str = "judge-48", device: str = "cpu") -> Extractor:
    """Open the features that `spec` names: auto, inception, judge, or the path of Inception's weights.

    `judge` is what `load_judge` takes. `auto` takes Inception where its weights lie in torch hub's folder or can be
    fetched, else the judge, with a warning; what was asked for by name never falls back. Raises UsageError where `spec`
    is none of these and FacesynthError where weights are missing or broken.
    """
    if spec == "judge":
        return JudgeExtractor(load_judge(judge, device))
    if spec not in ("auto", "inception"):
        if not Path(spec).is_file():
            raise UsageError(
                f"--features {printable(spec)}: no such file; give auto, inception, judge, or a file of weights."
            )
        return InceptionExtractor(Path(spec), device)
    try:
        return InceptionExtractor(_installed() or _fetch(), device)
    except FacesynthError as error:
        if spec == "inception":
            raise
        warn(f"features: those of {judge} instead of Inception's, so FID and KID compare with no paper's. {error}")
    return JudgeExtractor(load_judge(judge, device))


def _inception_url() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def _hub_path() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _inception_url().rpartition("/")[2]


def _installed() -> Path | None:
    path = _hub_path()
    return path if path.is_file() else None


def _fetch() -> Path:
    """Download Inception's weights into torch hub's folder. Raises FacesynthError, within seconds if offline."""
    path, url = _hub_path(), _inception_url()
    missing = f"No Inception weights in {path.parent}"
    advice = f"Put {url} there, or give its path by --features."
    with fetching(url, missing, advice):
        note(f"features: downloading {url} ({INCEPTION_MEGABYTES} MB) to {path.parent}")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest_prefix = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest_prefix, progress=False)
    return path
