"""Reading images once: what comes out, what is kept, and what goes wrong."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from faces import draw, write_tree
from PIL import Image

from facesynth import likeness, weights
from facesynth.console import FacesynthError, UsageError
from facesynth.expression import load_judge
from facesynth.extractors import InceptionExtractor, JudgeExtractor, open_extractor
from facesynth.identity import open_embedder
from facesynth.imageset import read_real, read_synthetic
from facesynth.output import write_metadata

Array = np.ndarray


class Counting:
    """An extractor that counts the images it is asked for."""

    name = "mean"

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, photos: list[Array], crops: Array) -> tuple[Array, Array]:
        self.images += len(photos)
        mean = crops.mean(axis=(1, 2), dtype=np.float32)
        return np.stack([mean, 1 - mean], axis=1), mean[:, None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _dataset(folder: Path, **counts: int) -> Path:
    write_tree(folder / "train", counts or {"angry": 5, "happy": 70})
    write_tree(folder / "test", {"angry": 2, "happy": 3}, first_person=500)
    return folder


def _png(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_all_splits_are_read_in_order(tmp_path: Path) -> None:
    images = read_real(_dataset(tmp_path / "real"), Counting())
    assert len(images) == 80
    assert images.classes == ("angry", "happy")
    assert images.of("train").counts() == {"angry": 5, "happy": 70}
    assert images.of("test").names == (
        "angry/im0.png",
        "angry/im1.png",
        "happy/im0.png",
        "happy/im1.png",
        "happy/im2.png",
    )
    row = images.names.index("happy/im33.png")
    drawn = draw("happy", person=5 + 33)
    assert (images.crops[row] == drawn).all()
    assert images.features["mean"][row, 0] == pytest.approx(drawn.mean() / 255, abs=1e-4)
    alike = likeness.describe(drawn[None] / 255) @ images.descriptors.astype(np.float32).T
    assert alike.argmax() == row


def test_what_is_taken_keeps_its_rows_together(tmp_path: Path) -> None:
    images = read_real(_dataset(tmp_path / "real"), Counting())
    taken = images.take([70, 6])
    assert taken.names == (images.names[70], images.names[6])
    assert (taken.crops == images.crops[[70, 6]]).all()
    assert (taken.features["mean"] == images.features["mean"][[70, 6]]).all()
    assert taken.counts() == {"angry": 1, "happy": 1}
    assert isinstance(images.of("train").crops, np.memmap), "a split is not loaded into memory"


def test_a_second_reading_decodes_nothing(tmp_path: Path) -> None:
    src = _dataset(tmp_path / "real")
    first = read_real(src, Counting())
    moved = src.rename(tmp_path / "moved")
    again = Counting()
    second = read_real(moved, again)
    assert again.images == 0
    assert (first.crops == second.crops).all()
    assert (first.digests == second.digests).all()
    _png(moved / "train" / "angry" / "im0.png", draw("angry", person=900))
    read_real(moved, again)
    assert again.images == 80, "another picture under the same name is another dataset"


@pytest.mark.parametrize("broken", ["features.npy", "crops.npy", "count.npy", "problems.json"])
def test_a_broken_cache_is_made_anew(tmp_path: Path, cache: Path, broken: str) -> None:
    src = _dataset(tmp_path / "real")
    first = np.array(read_real(src, Counting()).features["mean"])
    (damaged,) = cache.rglob(broken)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    again = Counting()
    assert (read_real(src, again).features["mean"] == first).all()
    assert again.images == 80


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path / "file"))
    with pytest.raises(FacesynthError, match="FACESYNTH_CACHE"):
        read_real(_dataset(tmp_path / "real"), Counting())


def test_unreadable_images_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = _dataset(tmp_path / "real")
    (src / "train" / "angry" / "im1.png").write_bytes(b"no image")
    for _ in range(2):  # read, and from the cache
        images = read_real(src, Counting())
        assert len(images) == 79
        assert images.unreadable == 1
        assert images.of("train").names[:2] == ("angry/im0.png", "angry/im2.png")
        assert (images.of("train").crops[1] == draw("angry", person=2)).all()
    said = capsys.readouterr().err
    assert "im1.png" in said
    assert "1 of 80 images" in said


def test_a_set_of_broken_files_alone_is_an_error(tmp_path: Path) -> None:
    for name in ("angry", "happy"):
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / "real" / name / "im0.png").write_bytes(b"")
    with pytest.raises(UsageError, match="none of its 2 images"):
        read_real(tmp_path / "real", Counting())


def test_equal_pixels_have_equal_digests_in_any_format(tmp_path: Path) -> None:
    face = draw("happy", 1, size=80)
    _png(tmp_path / "a" / "happy" / "x.png", face)
    _png(tmp_path / "a" / "sad" / "y.bmp", np.repeat(face[:, :, None], 3, axis=2))
    _png(tmp_path / "a" / "sad" / "z.png", face[:, ::-1])
    one, two, mirrored = read_real(tmp_path / "a", Counting()).digests
    assert one == two != mirrored


def _synthetic_output(folder: Path) -> Path:
    """A training split as `balance` leaves it: two real images, and three synthetic ones."""
    write_tree(folder / "train", {"angry": 3, "happy": 2})
    (folder / "train" / "angry").rename(folder / "train" / "anger")
    synthetic: dict[str, Any] = {"synthetic": "true", "generator": "editor-48", "source_label": "happy"}
    rows: list[dict[str, object]] = [
        {"file_name": "anger/im0.png", "label": "anger", "synthetic": "false"},
        {"file_name": "happy/im0.png", "label": "happy", "synthetic": "false"},
        {"file_name": "anger/im1.png", "source": "happy/im5.png", "intensity": 0.8, "quality_score": 0.5, **synthetic},
        {"file_name": "anger/im2.png", "source": "happy/im6.png", "weight": 0.25, **synthetic},
        {"file_name": "happy/im1.png", **synthetic, "source_label": ""},
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_metadata(folder / "train" / "metadata.csv", columns, rows)
    return folder


def test_of_a_balanced_output_the_synthetic_rows_are_read(tmp_path: Path) -> None:
    images = read_synthetic(_synthetic_output(tmp_path / "out"), ("angry", "happy"), Counting())
    assert images.names == ("anger/im1.png", "anger/im2.png", "happy/im1.png")
    assert images.counts() == {"angry": 2, "happy": 1}
    assert images.sources == ("happy/im5.png", "happy/im6.png", None)
    assert images.source_labels == ("happy", "happy", None)
    assert images.weights.tolist() == [1, 0.25, 1]
    assert images.intensities[0] == 0.8
    assert np.isnan(images.intensities[1:]).all()
    assert images.scores["quality"][0] == 0.5
    assert images.generator == "editor-48"
    last = images.take([2])
    assert (last.sources, last.weights.tolist()) == ((None,), [1.0])


def test_any_folder_of_classes_is_synthetic_as_a_whole(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "made", {"happy": 2})
    (src / "happy").rename(src / "Happiness")
    images = read_synthetic(src, ("angry", "happy"), Counting())
    assert images.counts() == {"angry": 0, "happy": 2}
    assert images.sources == (None, None)
    assert images.weights.tolist() == [1, 1]


def test_classes_that_differ_are_left_out_or_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = write_tree(tmp_path / "made", {"happy": 2, "sad": 3})
    assert read_synthetic(src, ("angry", "happy"), Counting()).counts() == {"angry": 0, "happy": 2}
    assert "sad (3)" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no class in common"):
        read_synthetic(src, ("angry", "fear"), Counting())


def test_an_output_without_synthetic_images_is_an_error(tmp_path: Path) -> None:
    src = _synthetic_output(tmp_path / "out")
    for name in ("anger/im1.png", "anger/im2.png", "happy/im1.png"):
        (src / "train" / name).unlink()
    with pytest.raises(UsageError, match="no synthetic image"):
        read_synthetic(src, ("angry", "happy"), Counting())


def test_a_weight_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    src = _synthetic_output(tmp_path / "out")
    table = src / "train" / "metadata.csv"
    table.write_text(table.read_text().replace("0.25", "a lot"))
    with pytest.raises(UsageError, match="'a lot'"):
        read_synthetic(src, ("angry", "happy"), Counting())


def test_embeddings_follow_the_images_and_their_model(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = _dataset(tmp_path / "real")
    shutil.copytree(tiny.folder, tmp_path / "weights")
    monkeypatch.setattr(weights, "_FOLDER", tmp_path / "weights")
    embedder, _ = open_embedder("builtin")
    assert embedder is not None
    images = read_real(src, Counting(), embedder)
    assert images.identity_model == "embedder-48"
    assert images.embeddings is not None
    face = draw("happy", person=5 + 33).astype(np.float32)[:, :, None] / 255
    expected = embedder.embed([face], [None])[0]
    assert images.embeddings[images.names.index("happy/im33.png")] == pytest.approx(expected, abs=1e-4)
    other = weights.load("embedder-48")
    with torch.no_grad():
        other.module.head.weight.neg_()
    weights.save(other.path, "embedder", other.module, other.info)
    changed = read_real(src, Counting(), open_embedder("builtin")[0]).embeddings
    assert changed is not None
    assert not np.allclose(images.embeddings, changed), "other weights of the same name are not taken from the cache"


def test_the_judge_gives_features_and_logits(tiny: Tiny) -> None:
    judge = load_judge(str(tiny.judge))
    crops = np.stack([draw("happy", person) for person in range(3)]).astype(np.float32) / 255
    features, logits = JudgeExtractor(judge)([], crops)
    assert features.shape == (3, 32)
    cold = np.exp(logits / 8.0)  # the temperature of the tiny judge
    assert cold / cold.sum(1, keepdims=True) == pytest.approx(judge.predict(crops), abs=1e-5)


# --- Inception --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the form in which torch-fidelity publishes its own."""
    from torch_fidelity import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc, no-any-unimported]
        def load_state_dict(self, state: Any) -> None:  # type: ignore[override]
            pass

    torch.manual_seed(0)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Untrained("x", ["2048"], feature_extractor_weights_path=nothing)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_sees_what_torch_fidelity_sees(tmp_path: Path, inception: Path) -> None:
    from torch_fidelity import calculate_metrics

    faces = write_tree(tmp_path / "faces", {"happy": 4}, size=40, mode="RGB")
    others = write_tree(tmp_path / "others", {"happy": 4}, size=70)
    settings: dict[str, Any] = {"cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
    expected = calculate_metrics(
        input1=str(faces / "happy"), input2=str(others / "happy"), fid=True, isc=True, isc_splits=1,
        feature_extractor_weights_path=str(inception), **settings,
    )  # fmt: skip
    extractor = open_extractor(str(inception))
    real, synthetic = read_real(others, extractor), read_synthetic(faces, ("happy",), extractor)
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    ours = [torch.from_numpy(np.array(images.features[extractor.name])) for images in (synthetic, real)]
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, ours), verbose=False)
    score = isc_features_to_metric(torch.from_numpy(np.array(synthetic.logits[extractor.name])), splits=1)
    for name, value in (fid | score).items():
        assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_weights_that_would_run_code_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.bias": _Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(FacesynthError, match=r"bomb\.pth: not readable"):
        InceptionExtractor(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_without_inception_auto_takes_the_judge_and_says_so(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_extractor("auto", judge=str(tiny.judge)).name.startswith("judge-48@")
    assert "instead of Inception's" in capsys.readouterr().err
    with pytest.raises(FacesynthError, match="No Inception weights"):
        open_extractor("inception", judge=str(tiny.judge))
    with pytest.raises(UsageError, match="no such file"):
        open_extractor("incption", judge=str(tiny.judge))
