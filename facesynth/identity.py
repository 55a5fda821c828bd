"""Who a face is: insightface's detector and ArcFace-type recogniser, or else the built-in embedder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from facesynth import geometry, hub
from facesynth.console import FacesynthError, UsageError, did_you_mean, note, warn
from facesynth.download import fetching

Array = NDArray[Any]
Mode = Literal["auto", "insightface", "builtin", "off"]

# Packs that insightface publishes, best recogniser first.
KNOWN_PACKS = ("buffalo_l", "antelopev2", "buffalo_m", "buffalo_s", "buffalo_sc")
# What `auto` fetches: 15 MB, 5 ms a face on one core. The larger packs cost twenty times as much of both.
FETCHED_PACK, FETCHED_MEGABYTES = "buffalo_sc", 15
PACK_URL = "https://github.com/deepinsight/insightface/releases/download/model-zoo/{}.zip"
LICENCE_NOTE = "insightface's pretrained models are for non-commercial research only"
LICENCE_SENTENCE = f"{LICENCE_NOTE[0].upper()}{LICENCE_NOTE[1:]}."

# SCRFD looks at a face in a black, square canvas whose side the face fills to 90 %. On 400 faces of FER2013 (48×48) one
# core found 92 % in a canvas of 96 (0.7 ms), 96.5 % in 128 (1.1 ms), 98.5 % in 160 (1.2 ms), 98.5 % in 320 (4 ms).
CROP_CANVAS, PHOTO_CANVASES, CANVAS_FILL = 160, (320, 640), 0.9
# Batches of more than 8 only fall out of a core's cache (3.5 ms a face at 1 to 8, 4.7 ms at 32); a GPU wants more.
CPU_BATCH, GPU_BATCH = 8, 64


class IdentityError(FacesynthError):
    """Face-recognition weights are missing, broken, or of the wrong kind."""


class FaceEmbedder(Protocol):
    """Turns faces into vectors whose cosine says how alike two persons look."""

    name: str
    can_locate: bool

    def locate(self, pixels: Array) -> Array | None:
        """Find the main face of a photo (H, W, C) in [0, 1]: eyes, nose, mouth corners, (5, 2) float32 x, y pixels."""

    def embed(self, photos: list[Array], landmarks: list[Array | None]) -> Array:
        """Embed N > 0 photos as (N, D) float32 unit rows: aligned by the landmarks where given, else as whole crops."""


def cut_face(pixels: Array, embedder: FaceEmbedder | None) -> Array:
    """The face of a photo (H, W, C) as a crop (48, 48): found and aligned where the photo may hold more than the face."""
    landmarks = embedder.locate(pixels) if embedder is not None and geometry.may_hold_more(pixels) else None
    return geometry.crop(pixels, geometry.frame_of(pixels, landmarks))


class InsightfaceEmbedder:
    """A detector (SCRFD) and a recogniser (ArcFace type) as insightface loads them from a model pack or one .onnx file.

    Every session runs on one thread: results do not depend on the number of cores, and workers bring the parallelism.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Load a pack folder, or a recogniser's .onnx file (with the detector that lies beside it, if any).

        Raises IdentityError, naming the file, when the models are corrupt or not a detector and a recogniser.
        """
        self.path, self.name = path, f"insightface/{path.stem}"
        providers = _providers(device)
        self._recogniser, self._detector = _load_models(path, providers)
        # Its norm_crop calls a scikit-image function that announces its own end on every face.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"insightface\.")
        fixed_to_one = self._recogniser.input_shape[0] == 1
        self._batch = 1 if fixed_to_one else GPU_BATCH if providers[0].startswith("CUDA") else CPU_BATCH
        self.can_locate = self._detector is not None

    def locate(self, pixels: Array) -> Array | None:
        """Find the largest, most central face; None when there is none or no detector. See FaceEmbedder."""
        if self._detector is None:
            return None
        image = _to_bgr(pixels)
        side = max(image.shape[:2])
        canvases = (CROP_CANVAS,) if side <= CROP_CANVAS else PHOTO_CANVASES[: 1 if side <= PHOTO_CANVASES[0] else 2]
        for canvas in canvases:
            landmarks = _locate_in_canvas(self._detector, image, canvas)
            if landmarks is not None:
                return landmarks
        return None

    def embed(self, photos: list[Array], landmarks: list[Array | None]) -> Array:
        """Embed photos as (N, D) float32 unit rows, in batches. See FaceEmbedder."""
        faces = [self._cut(photo, points) for photo, points in zip(photos, landmarks, strict=True)]
        batches = [faces[start : start + self._batch] for start in range(0, len(faces), self._batch)]
        return _unit(np.concatenate([self._recogniser.get_feat(batch) for batch in batches]))

    def _cut(self, photo: Array, landmarks: Array | None) -> Array:
        from insightface.utils import face_align

        image, (width, height) = _to_bgr(photo), self._recogniser.input_size
        if landmarks is None:
            return _resize(image, width, height)
        size = width if width % 112 == 0 or width % 128 == 0 else 112
        return np.asarray(face_align.norm_crop(image, np.asarray(landmarks, np.float32), size))


class BuiltinEmbedder:
    """The embedder inside the package: whole crops at 48×48 only, it has no detector and ignores landmarks."""

    name = "embedder-48"
    can_locate = False

    def __init__(self, device: str = "cpu") -> None:
        from facesynth import weights

        self._device = device
        self._model = weights.load(self.name, "embedder").module.to(device)

    def locate(self, pixels: Array) -> Array | None:
        """Find nothing: see the class."""
        return None

    def embed(self, photos: list[Array], landmarks: list[Array | None]) -> Array:
        """Embed whole photos as (N, 128) float32 unit rows. See FaceEmbedder."""
        import torch

        crops = [_resize(cv2.cvtColor(_to_bgr(photo), cv2.COLOR_BGR2GRAY), 48, 48) for photo in photos]
        batch = torch.from_numpy(np.stack(crops).astype(np.float32) / 255)[:, None].to(self._device)
        with torch.inference_mode():
            return _unit(self._model(batch).float().cpu().numpy())


def open_embedder(mode: Mode, model: str | None = None, device: str = "cpu") -> tuple[FaceEmbedder | None, str]:
    """Open the embedder for `--identity MODE --identity-model MODEL`; returns it with a sentence for the manifest.

    `model` is a pack folder, a recogniser's .onnx file (also as hf://org/name/file.onnx, or with #sha256= after it), or the
    name of a pack in insightface's folder. `auto` without a
    model fetches a small pack when none is there, and falls back on the built-in embedder with a warning; a model that
    was asked for never falls back. Raises UsageError or IdentityError.
    """
    if mode not in get_args(Mode):
        hint = did_you_mean(mode, get_args(Mode))
        raise UsageError(f"unknown identity mode '{mode}'.{hint} Choose from {', '.join(get_args(Mode))}.")
    if model and mode in ("builtin", "off"):
        raise UsageError(f"--identity-model {model} needs --identity auto or insightface, not {mode}.")
    if mode == "off":
        return None, "identity gate off"
    if mode == "builtin":
        return BuiltinEmbedder(device), "built-in embedder (chosen)"
    if mode == "insightface" or model:
        return _open_insightface(_find(model), device)
    return _open_auto(device)


def _open_auto(device: str) -> tuple[FaceEmbedder, str]:
    try:
        return _open_insightface(_find_installed() or _fetch(), device)
    except IdentityError as error:
        reason = str(error)
    warn(f"identity: using the built-in embedder, which tells people apart less well than insightface. {reason}")
    return BuiltinEmbedder(device), f"built-in embedder ({reason})"


def _open_insightface(path: Path, device: str) -> tuple[FaceEmbedder, str]:
    embedder = InsightfaceEmbedder(path, device)
    note(f"identity: {embedder.name} from {path}; {LICENCE_NOTE}", once=True)
    return embedder, f"{embedder.name} ({path})"


def _home() -> Path:
    return Path(os.environ.get("INSIGHTFACE_HOME") or "~/.insightface").expanduser()


def _installed_packs() -> list[Path]:
    """Packs in insightface's folder, the known ones first."""
    folders = [path.parent for path in (_home() / "models").glob("*/*.onnx")]
    known = {name: rank for rank, name in enumerate(KNOWN_PACKS)}
    return sorted(set(folders), key=lambda folder: (known.get(folder.name, len(known)), folder.name))


def _find_installed() -> Path | None:
    return next(iter(_installed_packs()), None)


def _find(model: str | None) -> Path:
    """Turn a path, a pack's name, hf://org/name/file.onnx, or None (any installed pack) into the path of something to load."""
    if model is None:
        found = _find_installed()
        if found is None:
            raise IdentityError(f"no insightface weights in {_home() / 'models'}. {_how_to_place(FETCHED_PACK)}")
        return found
    if hub.DIGEST_MARK in model or model.startswith(hub.PREFIX):
        return _find_one_file(model)
    for path in (Path(model).expanduser(), _home() / "models" / model):
        if path.is_dir():
            return _pack_folder(path)
        if path.is_file():
            return path.resolve()
    if Path(model).suffix == ".onnx" or Path(model).name != model:
        raise IdentityError(f"{model}: no such file or folder; --identity-model wants a pack folder or an .onnx file.")
    installed = [folder.name for folder in _installed_packs()]
    hint = did_you_mean(model, [*installed, *KNOWN_PACKS])
    raise IdentityError(f"no model pack '{model}' in {_home() / 'models'}.{hint} {_how_to_place(model)}")


def _find_one_file(model: str) -> Path:
    """An .onnx file on the Hub, or one with a digest to check."""
    from facesynth import weights

    place, _ = weights.split_digest(model)
    if not place.endswith(".onnx"):
        raise UsageError(
            f"--identity-model {model}: name one .onnx file, hf://ORG/NAME[@REVISION]/FILE.onnx or a path; #sha256= is for "
            "single files."
        )
    return weights.find(model).absolute()


def _pack_folder(folder: Path) -> Path:
    if any(folder.glob("*.onnx")):
        return folder.resolve()
    inner = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/*.onnx"))
    hint = f"; did you mean {inner[0]}?" if inner else "; give the folder of an insightface model pack."
    raise IdentityError(f"{folder}: no .onnx file in it{hint}")


def _how_to_place(pack: str) -> str:
    what = f"Unzip {PACK_URL.format(pack)}" if pack in KNOWN_PACKS else "Put its .onnx files"
    return f"{what} there as {pack}/, or name a pack folder or an .onnx recogniser with --identity-model."


def _fetch() -> Path:
    """Download the small pack into insightface's folder. Raises IdentityError, within seconds if offline."""
    home, url = _home(), PACK_URL.format(FETCHED_PACK)
    missing = f"No insightface weights in {home / 'models'}"
    with fetching(url, missing, _how_to_place(FETCHED_PACK), IdentityError):
        note(f"identity: downloading {url} ({FETCHED_MEGABYTES} MB) to {home / 'models'}; {LICENCE_NOTE}")
        return _download(FETCHED_PACK, home)


def _download(pack: str, home: Path) -> Path:
    """Let insightface download into a scratch folder, so that what breaks off half-way is never taken for a pack."""
    from insightface.utils import ensure_available

    (home / "models").mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=home))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            unzipped = Path(ensure_available("models", pack, root=str(scratch)))
        folder = home / "models" / pack
        return next(unzipped.rglob("*.onnx")).parent.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _providers(device: str) -> list[str]:
    import onnxruntime

    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    warn("identity: this onnxruntime has no CUDA, so the CPU embeds the faces; install onnxruntime-gpu to change that.")
    return ["CPUExecutionProvider"]


def _load_models(path: Path, providers: list[str]) -> tuple[Any, Any | None]:
    """Load (recogniser, detector or None) through insightface."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _load_pack(path, providers) if path.is_dir() else _load_file(path, providers)
        except FacesynthError:
            raise
        except Exception as error:  # onnxruntime, protobuf and insightface each raise their own kinds on a broken file
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise IdentityError(f"{path}: not readable as insightface models ({cause}); fetch them again.") from error


def _load_pack(folder: Path, providers: list[str]) -> tuple[Any, Any]:
    models = _load_folder(folder, ["detection", "recognition"], providers)
    if "detection" not in models or "recognition" not in models:
        raise IdentityError(
            f"{folder}: a model pack needs a detector and a recogniser, and this one lacks one of them; "
            "give another pack, or a recogniser's .onnx file alone to compare whole crops."
        )
    return models["recognition"], models["detection"]


def _load_file(file: Path, providers: list[str]) -> tuple[Any, Any | None]:
    from insightface.model_zoo import get_model

    model = get_model(str(file), providers=providers, sess_options=_session_options())
    if getattr(model, "taskname", None) != "recognition":
        raise IdentityError(f"{file}: not a face recogniser (ArcFace type: one square input of at least 112 pixels).")
    if len(list(file.parent.glob("*.onnx"))) == 1:
        return model, None
    return model, _load_folder(file.parent, ["detection"], providers).get("detection")


def _load_folder(folder: Path, tasks: list[str], providers: list[str]) -> dict[str, Any]:
    from insightface.app import FaceAnalysis

    try:
        options = _session_options()
        analysis = FaceAnalysis(str(folder), allowed_modules=tasks, providers=providers, sess_options=options)
    except AssertionError:  # how insightface says that a pack has no detector
        return {}
    models: dict[str, Any] = analysis.models
    return models


def _session_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _locate_in_canvas(detector: Any, image: Array, canvas: int) -> Array | None:
    """Detect in `image` (H, W, 3) uint8, fitted into the middle of a black canvas; landmarks in the image's pixels."""
    height, width = image.shape[:2]
    scale = canvas * CANVAS_FILL / max(height, width)
    resized = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
    top, left = (canvas - resized.shape[0]) // 2, (canvas - resized.shape[1]) // 2
    padded = np.zeros((canvas, canvas, 3), np.uint8)
    padded[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    # A detector that was exported for one size resizes the canvas to it, and answers in the canvas's pixels.
    size = detector.static_input_size or (canvas, canvas)
    boxes, points = detector.detect(padded, input_size=size, max_num=1)
    if len(boxes) == 0 or points is None or not np.isfinite(points[0]).all():
        return None
    stretch = (resized.shape[1] / width, resized.shape[0] / height)
    return np.asarray((points[0] - (left, top)) / stretch, np.float32)


def _to_bgr(pixels: Array) -> Array:
    """Float (H, W, 1 or 3) RGB in [0, 1] → uint8 (H, W, 3) BGR."""
    image = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, ::-1])


def _resize(image: Array, width: int, height: int) -> Array:
    shrinks = width * height < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)
