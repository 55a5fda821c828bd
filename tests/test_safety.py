"""Copies, leaks and doubtful labels that are planted are found, and nothing else is."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import faces
import numpy as np
import pytest
from faces import EXPRESSIONS
from PIL import Image

from facesynth.imageset import ImageSet, SyntheticSet, read_real, read_synthetic
from facesynth.output import write_metadata
from facesynth.safety import copies, label_doubts, leakage

Array = np.ndarray[Any, Any]


class Nothing:
    """An extractor for tests that look at no features."""

    name = "nothing"

    def __call__(self, photos: list[Array], crops: Array) -> tuple[Array, Array]:
        return np.zeros((len(photos), 1), np.float32), np.zeros((len(photos), 1), np.float32)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACESYNTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def draw(expression: str, person: int, size: int = 48) -> Array:
    """A drawn face on skin of its own: without any texture, different cartoons come out nearly the same."""
    skin = np.random.default_rng(person).normal(0, 12, (12, 12))
    texture = cv2.resize(skin, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(faces.draw(expression, person, size) + texture, 0, 255).astype(np.uint8)


def shifted(face: Array, right: float, down: float) -> Array:
    move = np.array([[1, 0, right], [0, 1, down]], np.float64)
    return cv2.warpAffine(face, move, face.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def brighter(face: Array) -> Array:
    return np.clip(face * 1.1 + 6, 0, 255).astype(np.uint8)


def enlarged(face: Array) -> Array:
    return cv2.resize(face, (200, 200), interpolation=cv2.INTER_CUBIC)


PLANTED: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "same pixels": (".png", lambda face: face),
    "bitmap": (".bmp", lambda face: face),
    "jpeg": (".jpg", lambda face: face),
    "webp": (".webp", lambda face: face),
    "large": (".png", enlarged),
    "large jpeg": (".jpg", enlarged),
    "mirrored": (".png", lambda face: face[:, ::-1]),
    "brighter": (".png", brighter),
    "shifted by 1": (".png", lambda face: shifted(face, 1, 0)),
    "shifted by 1 and a half": (".png", lambda face: shifted(face, -1.5, 1)),
    "shifted by 2": (".png", lambda face: shifted(face, 0, -2)),
    "shifted by 2 both ways": (".png", lambda face: shifted(face, 2, 2)),
    "all at once": (".jpg", lambda face: enlarged(brighter(shifted(face, -1, 2)))[:, ::-1]),
}


def save(path: Path, face: Array) -> str:
    """Write a face and return its name below the split's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(face)).save(
        path, **({"quality": 80} if path.suffix in (".jpg", ".webp") else {})
    )
    return f"{path.parent.name}/{path.name}"


def write_persons(folder: Path, persons: range) -> list[str]:
    return [save(folder / EXPRESSIONS[k % 7] / f"p{k}.png", draw(EXPRESSIONS[k % 7], k)) for k in persons]


def synthetic_set(folder: Path, real: ImageSet, images: dict[str, tuple[Array, str | None]]) -> SyntheticSet:
    """Faces as an output of balance: name → (pixels, source or None)."""
    rows = []
    for name, (face, source) in images.items():
        save(folder / "train" / name, face)
        rows.append({"file_name": name, "synthetic": "true", "source": source or ""})
    write_metadata(folder / "train" / "metadata.csv", ("file_name", "synthetic", "source"), rows)
    return read_synthetic(folder, real.classes, Nothing())


def strangers(real: ImageSet, folder: Path, count: int = 30) -> SyntheticSet:
    return synthetic_set(folder, real, {f"happy/s{k}.png": (draw("happy", 5000 + k), None) for k in range(count)})


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("real")
    write_persons(folder / "train", range(120))
    write_persons(folder / "val", range(300, 330))
    write_persons(folder / "test", range(400, 430))
    return read_real(folder, Nothing())


# --- leakage ----------------------------------------------------------------------------------------------------------


def test_leaks_are_found_whatever_their_form(real: ImageSet, tmp_path: Path) -> None:
    planted = {f"happy/{k}{suffix}": (k, change) for k, (suffix, change) in enumerate(PLANTED.values())}
    made = {name: (change(draw(EXPRESSIONS[(400 + k) % 7], 400 + k)), None) for name, (k, change) in planted.items()}
    made |= {f"happy/stranger{k}.png": (draw("happy", 5000 + k), None) for k in range(60)}
    found = leakage(real, synthetic_set(tmp_path / "made", real, made))
    of = {leak.image: (leak.of, leak.split) for leak in found.leaks}
    assert of == {name: (f"{EXPRESSIONS[(400 + k) % 7]}/p{400 + k}.png", "test") for name, (k, _) in planted.items()}
    assert {leak.image for leak in found.leaks if leak.identical} == {"happy/0.png", "happy/1.bmp"}
    assert found.counts == {
        "synthetic image in test": len(PLANTED),
        "synthetic image in val": 0,
        "real training image in test": 0,
        "real training image in val": 0,
        "real validation image in test": 0,
        "source of a synthetic image in test": 0,
        "source of a synthetic image in val": 0,
    }
    assert found.test_copies == []  # synthetic images do not take a test image out of the real images' scores


def test_copies_between_real_splits_and_their_sources_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    write_persons(folder / "train", range(160))
    write_persons(folder / "val", range(300, 340))
    write_persons(folder / "test", range(400, 440))
    same, moved = draw(EXPRESSIONS[5], 5), shifted(draw(EXPRESSIONS[6], 6), 1, -1)
    save(folder / "test" / EXPRESSIONS[5] / "same.png", same)
    save(folder / "test" / "happy" / "relabelled.png", moved)
    save(folder / "test" / "sad" / "of_val.jpg", draw(EXPRESSIONS[301 % 7], 301))
    save(folder / "val" / EXPRESSIONS[7 % 7] / "brighter.png", brighter(draw(EXPRESSIONS[0], 7)))
    real = read_real(folder, Nothing())
    source = f"{EXPRESSIONS[5]}/p5.png"
    made = synthetic_set(tmp_path / "made", real, {"happy/new.png": (draw("happy", 6000), source)})
    found = leakage(real, made)
    pairs = {(leak.kind, leak.image, leak.of, leak.split, leak.identical) for leak in found.leaks}
    assert pairs == {
        ("real training image", source, f"{EXPRESSIONS[5]}/same.png", "test", True),
        ("source of a synthetic image", source, f"{EXPRESSIONS[5]}/same.png", "test", True),
        ("real training image", f"{EXPRESSIONS[6]}/p6.png", "happy/relabelled.png", "test", False),
        ("real training image", "angry/p7.png", "angry/brighter.png", "val", False),
        ("real validation image", f"{EXPRESSIONS[0]}/p301.png", "sad/of_val.jpg", "test", False),
    }
    assert sorted(found.test_copies) == sorted([f"{EXPRESSIONS[5]}/same.png", "happy/relabelled.png", "sad/of_val.jpg"])
    assert (len(found.identical_test_copies), found.label_conflicts) == (1, 2)
    assert found.leaks[0].identical
    assert found.leaks[-1].similarity < 1


def test_a_test_folder_inside_the_training_folder_is_all_identical(real: ImageSet, tmp_path: Path) -> None:
    inside = read_real(real.dataset.root / "train", Nothing())
    some = inside.take(range(0, len(inside), 3))
    found = leakage(real, strangers(real, tmp_path / "made", 3), test=some)
    assert found.test_copies == list(some.names)
    assert len(found.identical_test_copies) == len(some)
    assert found.counts["real training image in test"] == len(some)


def test_without_other_splits_nothing_leaks(tmp_path: Path) -> None:
    write_persons(tmp_path / "real", range(14))
    real = read_real(tmp_path / "real", Nothing())
    found = leakage(real, strangers(real, tmp_path / "made", 3))
    assert (found.counts, found.leaks, found.test_copies) == ({}, [], [])


def test_five_images_are_compared_too(tmp_path: Path) -> None:
    write_persons(tmp_path / "real" / "train", range(5))
    save(tmp_path / "real" / "test" / "happy" / "copy.jpg", enlarged(draw(EXPRESSIONS[3], 3)))
    save(tmp_path / "real" / "test" / "happy" / "other.png", draw("happy", 900))
    real = read_real(tmp_path / "real", Nothing())
    assert leakage(real, strangers(real, tmp_path / "made", 2)).test_copies == ["happy/copy.jpg"]


@pytest.mark.real
@pytest.mark.slow
def test_fer2013_test_copies_are_all_found(fer2013: Path, test_data: Path, tmp_path: Path) -> None:
    real = read_real(fer2013, Nothing())
    with (test_data / "data" / "fer2013_index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["also_in_other_split"] == "1"]
    found = leakage(real, strangers(real, tmp_path / "made"))
    assert len(rows) == len(found.identical_test_copies) == 568
    assert {f"{row['class']}/{row['file']}" for row in rows} <= set(found.test_copies)
    assert 1300 < len(found.test_copies) < 1600  # beside the 568, near-copies: looked at
    assert found.counts["synthetic image in test"] == 0


# --- copies -----------------------------------------------------------------------------------------------------------


def smile(expression: str, person: int) -> Array:
    """An honest edit: the same person with another expression."""
    return draw("happy" if expression != "happy" else "surprise", person)


def test_copies_are_caught_and_honest_edits_are_not(real: ImageSet, tmp_path: Path) -> None:
    original = {k: draw(EXPRESSIONS[k % 7], k) for k in range(60)}
    name = {k: f"{EXPRESSIONS[k % 7]}/p{k}.png" for k in original}
    made: dict[str, tuple[Array, str | None]] = {
        f"happy/edit{k}.png": (smile(EXPRESSIONS[k % 7], k), name[k]) for k in range(40)
    }
    made["happy/unedited.jpg"] = (brighter(original[50]), name[50])
    made["happy/equal.png"] = (original[51], name[51])
    made["happy/of_another.jpg"] = (original[52], name[53])
    made["happy/foreign.png"] = (enlarged(original[54]), None)
    made["happy/mirrored.png"] = (original[55][:, ::-1], None)
    found = copies(real, synthetic_set(tmp_path / "made", real, made))
    caught = {pair.synthetic: (pair.real, pair.is_source) for pair in found.nearest[: found.copies]}
    assert caught == {
        "happy/unedited.jpg": (name[50], True),
        "happy/equal.png": (name[51], True),
        "happy/of_another.jpg": (name[52], False),
        "happy/foreign.png": (name[54], False),
        "happy/mirrored.png": (name[55], False),
    }
    assert found.nearest[found.copies].similarity < found.threshold <= found.nearest[found.copies - 1].similarity
    assert found.share == pytest.approx(5 / 45)
    assert sum(found.synthetic_similarity.counts) == found.images == 45
    assert found.real_share == 0


def test_a_copied_set_stands_out_from_the_real_one(real: ImageSet, tmp_path: Path) -> None:
    made = {f"{EXPRESSIONS[k % 7]}/c{k}.png": (draw(EXPRESSIONS[k % 7], k), None) for k in range(30)}
    found = copies(real, synthetic_set(tmp_path / "made", real, made))
    assert found.share == 1
    assert found.synthetic_similarity.median == 1 > found.real_similarity.median
    fresh = copies(real, strangers(real, tmp_path / "fresh"))
    assert (fresh.copies, fresh.share) == (0, 0)


def test_copies_among_the_real_images_are_told_beside(tmp_path: Path) -> None:
    write_persons(tmp_path / "real", range(40))
    for k in range(10):
        save(tmp_path / "real" / "sad" / f"again{k}.png", draw(EXPRESSIONS[k % 7], k))
    real = read_real(tmp_path / "real", Nothing())
    assert copies(real, strangers(real, tmp_path / "made", 3)).real_share == pytest.approx(20 / 50)


def test_edited_faces_in_large_photos_are_compared_as_faces(tmp_path: Path) -> None:
    """Most of a large photo is left as it was: the face alone tells an edit from a copy."""

    def photo(expression: str, person: int) -> Array:
        scene = np.random.default_rng(person).integers(0, 255, (12, 12)).astype(np.uint8)
        scene = cv2.resize(scene, (288, 288), interpolation=cv2.INTER_CUBIC)
        scene[96:192, 96:192] = draw(expression, person, 96)
        return scene

    for person in range(40):
        save(tmp_path / "real" / EXPRESSIONS[person % 7] / f"p{person}.png", photo(EXPRESSIONS[person % 7], person))
    embedder = Middle()
    real = read_real(tmp_path / "real", Nothing(), embedder)
    save(tmp_path / "made" / "happy" / "edit.png", photo("happy", 1))
    save(tmp_path / "made" / "happy" / "copy.jpg", photo(EXPRESSIONS[2], 2))
    rows = [
        {"file_name": f"happy/{name}", "synthetic": "true", "source": f"{EXPRESSIONS[k]}/p{k}.png"}
        for k, name in ((1, "edit.png"), (2, "copy.jpg"))
    ]
    write_metadata(tmp_path / "made" / "metadata.csv", ("file_name", "synthetic", "source"), rows)
    found = copies(real, read_synthetic(tmp_path / "made", real.classes, Nothing(), embedder))
    assert [(pair.synthetic, pair.is_source) for pair in found.nearest[: found.copies]] == [("happy/copy.jpg", True)]


class Middle:
    """Finds a face in the middle third of every photo."""

    name = "middle"
    can_locate = True

    def locate(self, pixels: Array) -> Array | None:
        from facesynth.geometry import TEMPLATE

        return TEMPLATE / 48 * len(pixels) / 3 + len(pixels) / 3

    def embed(self, photos: list[Array], landmarks: list[Array | None]) -> Array:
        return np.ones((len(photos), 1), np.float32)


# --- labels -----------------------------------------------------------------------------------------------------------


def out_of_sample(pixels: Array, labels: Array, seed: int) -> Array:
    """Probabilities of a small classifier that did not see the image that it reads."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(PCA(30, random_state=seed), LogisticRegression(C=0.1, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return cross_val_predict(model, pixels.reshape(len(pixels), -1) / 255, labels, cv=folds, method="predict_proba")


def test_wrong_labels_are_doubted(tmp_path: Path) -> None:
    wrong = {}
    for person in range(300):
        true = ("happy", "neutral", "surprise")[person % 3]
        label = "neutral" if person % 30 == 0 else "happy" if person % 30 == 1 else true
        name = save(tmp_path / "real" / label / f"p{person}.png", draw(true, person))
        if label != true:
            wrong[name] = true
    real = read_real(tmp_path / "real", Nothing())
    judges = [out_of_sample(real.crops, real.labels, seed) for seed in (0, 1)]
    found = label_doubts(real, *judges)
    doubted = {doubt.image: doubt.read_as for doubt in found.images}
    right = [name for name in wrong if doubted.get(name) == wrong[name]]
    assert len(wrong) == 20
    assert len(right) >= 14
    assert len(doubted) - len(right) <= 10
    assert found.checked == 300
    assert sum(found.counts.values()) == len(doubted)
    assert {doubt.image for doubt in found.images[:6]} <= wrong.keys()  # the surest come first


def test_labels_are_doubted_by_two_judges_or_not_at_all(tmp_path: Path) -> None:
    write_persons(tmp_path / "real", range(14))
    real = read_real(tmp_path / "real", Nothing())
    sure = np.full((14, 7), 0.02)
    sure[np.arange(14), real.labels] = 0.88
    doubting = sure.copy()
    doubting[3] = np.roll(sure[3], 1)
    assert label_doubts(real, sure, doubting).images == []
    assert [doubt.image for doubt in label_doubts(real, doubting, doubting).images] == [real.names[3]]
    unread = doubting.copy()
    unread[3] = np.nan
    nothing = label_doubts(real, doubting, unread)
    assert (nothing.checked, nothing.images) == (13, [])
