"""The embedders: where weights are looked for, what is said when they are missing or broken, who is told from whom."""

from __future__ import annotations

import functools
import http.server
import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from facesynth import identity, weights
from facesynth.console import FacesynthError, UsageError
from facesynth.identity import BuiltinEmbedder, IdentityError, InsightfaceEmbedder, open_embedder

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights in the home folder, and nothing to download."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("INSIGHTFACE_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(identity, "PACK_URL", "http://127.0.0.1:9/{}.zip")
    return tmp_path / ".insightface"


@pytest.fixture
def tiny_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained embedder in the place of the built-in one."""
    import torch

    from facesynth.generators.networks import Embedder

    torch.manual_seed(0)
    weights.save(tmp_path / "embedder-48.safetensors", "embedder", Embedder(size=16, width=8), {})
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)


def recogniser(path: Path) -> Path:
    """Write the smallest ONNX file that insightface takes for a recogniser: it averages the colours of the picture."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 112, 112])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3])
    mean = helper.make_node("ReduceMean", ["input"], ["output"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph([mean], "tiny", [image], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def plain(red: float, green: float, blue: float, size: int = 48) -> Array:
    return np.broadcast_to(np.array([red, green, blue], np.float32), (size, size, 3))


def test_off_is_none() -> None:
    assert open_embedder("off")[0] is None


@pytest.mark.parametrize(
    ("mode", "model", "message"),
    [
        ("insigthface", None, "Did you mean 'insightface'"),
        ("off", "some_pack", "--identity-model some_pack needs --identity auto or insightface"),
        ("builtin", "some_pack", "needs --identity auto or insightface, not builtin"),
    ],
)
def test_impossible_wishes_are_usage_errors(mode: Any, model: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_embedder(mode, model)


def test_insightface_without_weights_says_where_to_put_them(empty_home: Path) -> None:
    with pytest.raises(IdentityError) as error:
        open_embedder("insightface")
    assert str(empty_home / "models") in str(error.value)
    assert "buffalo_sc.zip" in str(error.value)
    assert "--identity-model" in str(error.value)


@pytest.mark.usefixtures("tiny_builtin")
@pytest.mark.parametrize("offline", [False, True])
def test_auto_without_weights_falls_back_with_one_warning(
    offline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("facesynth.console._State.said", set())
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    embedder, note = open_embedder("auto")
    assert isinstance(embedder, BuiltinEmbedder)
    assert "built-in" in note
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("warning") == 1
    assert ("HF_HUB_OFFLINE" if offline else "could not be fetched") in said.err


@pytest.mark.usefixtures("tiny_builtin")
def test_the_builtin_embedder_gives_unit_rows_for_any_size_and_colour() -> None:
    embedder, _ = open_embedder("builtin")
    assert embedder is not None
    rng = np.random.default_rng(0)
    photos = [rng.random(shape, np.float32) for shape in ((48, 48, 1), (100, 80, 3), (20, 30, 1))]
    rows = embedder.embed(photos, [None, np.zeros((5, 2)), None])
    assert rows.shape == (3, 16)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert embedder.locate(photos[1]) is None


@pytest.mark.parametrize("mode", ["auto", "insightface"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/pack", "no/such/pack: no such file or folder"),
        ("missing.onnx", "missing.onnx: no such file"),
        ("bufalo_l", "no model pack 'bufalo_l' in .*Did you mean 'buffalo_l'"),
    ],
)
def test_a_model_asked_for_and_not_found_is_an_error_in_every_mode(mode: Any, model: str, message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        open_embedder(mode, model)


@pytest.mark.parametrize("mode", ["auto", "insightface"])
def test_a_corrupt_model_is_an_error_that_names_it(mode: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is no protobuf")
    for model in (tmp_path / "broken.onnx", tmp_path):
        with pytest.raises(IdentityError, match=r"broken\.onnx|not readable"):
            open_embedder(mode, str(model))


def test_a_folder_that_is_no_pack_is_told_from_one(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"no \.onnx file in it; give the folder"):
        open_embedder("insightface", str(tmp_path))
    inner = recogniser(tmp_path / "models" / "mine" / "face.onnx").parent
    with pytest.raises(IdentityError, match=f"did you mean {inner}"):
        open_embedder("insightface", str(tmp_path))
    with pytest.raises(IdentityError, match="needs a detector and a recogniser"):
        open_embedder("insightface", str(inner))


def test_a_recogniser_alone_compares_whole_crops(tmp_path: Path) -> None:
    embedder, note = open_embedder("insightface", str(recogniser(tmp_path / "face.onnx")))
    assert embedder is not None
    assert not embedder.can_locate
    assert embedder.locate(plain(1, 0, 0)) is None
    assert "face.onnx" in note
    rows = embedder.embed([plain(1, 0, 0), plain(1, 0, 0, size=300), plain(0, 0, 1)], [None] * 3)
    # RGB goes in and comes out as RGB: red is (1, -1, -1) / sqrt(3) after ArcFace's scaling.
    np.testing.assert_allclose(rows[0], np.array([1, -1, -1]) / 3**0.5, atol=0.01)
    np.testing.assert_allclose(rows[1], rows[0], atol=0.01)
    assert rows[0] @ rows[2] < 0


@pytest.mark.real
def test_auto_takes_a_pack_from_insightfaces_folder(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSIGHTFACE_HOME", str(pack.parents[1]))
    for mode, model in (("auto", None), ("insightface", None), ("auto", "facepack")):
        embedder, note = open_embedder(mode, model)
        assert isinstance(embedder, InsightfaceEmbedder)
        assert embedder.can_locate
        assert "facepack" in note


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the folder `tmp_path/www`; yields its address."""
    (tmp_path / "www").mkdir()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Silent, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.mark.real
def test_auto_fetches_a_pack_once_and_leaves_stdout_alone(
    pack: Path, server: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import insightface.utils.storage

    shutil.make_archive(str(empty_home.parent / "www" / "buffalo_sc"), "zip", pack)
    monkeypatch.setattr(identity, "PACK_URL", server + "{}.zip")
    monkeypatch.setattr(insightface.utils.storage, "MODEL_ZOO_RELEASE_DOWNLOAD_URL", server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    embedder, _ = open_embedder("auto")
    assert isinstance(embedder, InsightfaceEmbedder)
    assert embedder.path == empty_home / "models" / "buffalo_sc"
    assert sorted(path.name for path in empty_home.iterdir()) == ["models"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "downloading" in said.err
    assert "non-commercial" in said.err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert isinstance(open_embedder("auto")[0], InsightfaceEmbedder)


def read(path: Path) -> Array:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:, :, None].astype(np.float32) / 255


@pytest.mark.real
def test_insightface_tells_people_apart_across_expressions(pack: Path, lfw350: Path) -> None:
    persons: dict[str, list[Path]] = {}
    for path in sorted(lfw350.glob("*/*.jpg")):
        persons.setdefault(path.name.split("_")[0], []).append(path)
    pairs = [paths[:2] for paths in persons.values() if len(paths) > 1][:12]
    photos = [read(path) for pair in pairs for path in pair]
    embedder = InsightfaceEmbedder(pack)
    landmarks = [embedder.locate(photo) for photo in photos]
    assert all(points is not None for points in landmarks)
    rows = embedder.embed(photos, landmarks)
    same = (rows[0::2] * rows[1::2]).sum(axis=1)
    different = [rows[a] @ rows[b] for a, b in itertools.combinations(range(0, len(rows), 2), 2)]
    assert np.median(same) > 0.5
    assert np.quantile(different, 0.95) < 0.35
    np.testing.assert_array_equal(embedder.embed(photos[:3], landmarks[:3]), rows[:3])  # whatever the batch


@pytest.mark.real
def test_landmarks_are_in_the_pixels_of_the_photo_at_any_size(pack: Path, lfw350: Path) -> None:
    photo = read(sorted(lfw350.glob("happy/*.jpg"))[0])
    embedder = InsightfaceEmbedder(pack)
    points = embedder.locate(photo)
    assert points is not None
    assert points[0, 0] < points[1, 0]  # the eye on the left first
    assert points[:2, 1].max() < points[2, 1] < points[3:, 1].min()  # eyes above nose above mouth
    for width, height in ((48, 48), (800, 1000)):
        resized = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)[:, :, None]
        found = embedder.locate(np.repeat(resized, 3, axis=2))
        assert found is not None
        np.testing.assert_allclose(found / (width, height), points / 350, atol=0.04)
    assert embedder.locate(np.full((60, 90, 3), 0.5, np.float32)) is None


def test_weights_that_are_no_embedder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedder-48.safetensors").write_bytes(b"\x80\x04 a pickle")
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)
    with pytest.raises(FacesynthError, match=r"embedder-48\.safetensors"):
        open_embedder("builtin")
