"""Groups are found where something tells them; a planted bias gets its sentence, and no bias gets none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from faces import write_tree
from PIL import Image

from facesynth.console import UsageError
from facesynth.dataset import Dataset, Sample
from facesynth.fairness import bias
from facesynth.groups import AttributeModel, Groups, find_groups, groups_by_columns, groups_by_model
from facesynth.identity import IdentityError
from facesynth.imageset import ImageSet, SyntheticSet, read_real, read_synthetic
from facesynth.output import write_metadata
from facesynth.synthesis import Row

Array = np.ndarray[Any, Any]

CLASSES = ("angry", "happy", "sad")


class Nothing:
    """An extractor for tests that look at no features."""

    name = "nothing"

    def __call__(self, photos: list[Array], crops: Array) -> tuple[Array, Array]:
        return np.zeros((len(photos), 1), np.float32), np.zeros((len(photos), 1), np.float32)


def named(split: str, count: int, sources: tuple[str, ...] | None = None) -> ImageSet:
    """Images of which only names and labels count."""
    samples = tuple(Sample(split, f"{CLASSES[k % 3]}/im{k}.png", CLASSES[k % 3]) for k in range(count))
    dataset = Dataset(Path("faces"), "folder", CLASSES, {split: list(samples)}, {split: split}, [])
    zeros = np.zeros(count)
    arrays = {"labels": np.arange(count) % 3, "crops": zeros, "descriptors": zeros, "digests": zeros}
    common: dict[str, Any] = {"dataset": dataset, "samples": samples, "classes": CLASSES, "features": {}, "logits": {}}
    if sources is None:
        return ImageSet(**arrays, **common)
    return SyntheticSet(**arrays, **common, sources=sources, source_labels=sources, intensities=zeros, weights=zeros)


def dataset_of(train: int, test: int) -> ImageSet:
    first, second = named("train", train), named("test", test)
    joined = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("labels", "crops")}
    return ImageSet(
        first.dataset, first.samples + second.samples, CLASSES, **joined, descriptors=joined["crops"],
        digests=joined["crops"], features={}, logits={},
    )  # fmt: skip


def tried(real: ImageSet, sources: Array, accepted: Array) -> list[Row]:
    names = real.of("train").names
    return [
        Row("happy", k, 0, names[source], "sad", 1.0, None if ok else "identity: another person", {})
        for k, (source, ok) in enumerate(zip(sources, accepted, strict=True))
    ]


def scene(rng: np.random.Generator, acceptance: float, accuracy: float, share: float = 0.5, raised: float = 0.0) -> Any:
    """A run on 1,200 training and 1,200 test faces, the figures of women as given; those of men are 0.5, 0.7 and 0.5."""
    real = dataset_of(1200, 1200)
    sex = rng.permutation(np.repeat(["female", "male"], 1200))
    women = np.flatnonzero(sex[:1200] == "female")
    men = np.flatnonzero(sex[:1200] == "male")
    made = np.where(rng.random(800) < share, rng.choice(women, 800), rng.choice(men, 800))
    names = real.of("train").names
    synthetic = named("train", 800, tuple(names[row] for row in made))
    candidates = rng.integers(0, 1200, 1500)
    passed = rng.random(1500) < np.where(sex[candidates] == "female", acceptance, 0.5)
    labels = real.of("test").labels
    is_woman = sex[1200:] == "female"
    draw_of_image = rng.random(1200)
    before = np.where(draw_of_image < np.where(is_woman, accuracy, 0.7), labels, (labels + 1) % 3)
    after = np.where(draw_of_image < np.where(is_woman, accuracy + raised, 0.7), labels, (labels + 1) % 3)
    groups = Groups("a test", {"sex": sex}, {"sex": sex[made]})
    return real, synthetic, groups, tried(real, candidates, passed), before, after


def test_each_planted_bias_gets_its_sentence() -> None:
    rng = np.random.default_rng(0)
    found = bias(*scene(rng, acceptance=0.3, accuracy=0.5, share=0.7, raised=0.1))
    said = " ".join(found.sentences)
    assert "candidates from sources of sex 'female' pass the gates in 3" in said.replace("Candidates", "candidates")
    assert "sex 'female' makes up 7" in said.replace("Sex", "sex")
    assert "before balancing, sex 'female' is read right in 5" in said.replace("Before", "before")
    assert "balancing raises the accuracy on sex 'female' from 5" in said.replace(
        "Balancing raises", "balancing raises"
    )
    assert "on sex 'male'" not in said
    women = next(group for group in found.groups if group.group == "female")
    assert women.acceptance is not None
    assert women.accuracy_before is not None
    assert women.accuracy_after is not None
    assert women.acceptance.low < 0.3 < women.acceptance.high
    assert women.accuracy_before.low < 0.5 < women.accuracy_before.high
    assert women.share_before.value == pytest.approx(0.5, abs=0.04)
    assert women.share_before.value < women.share_after.value < 0.7
    assert np.trace(women.confusion_after) / np.sum(women.confusion_after) == pytest.approx(women.accuracy_after.value)


def test_without_bias_hardly_anything_is_said() -> None:
    rng = np.random.default_rng(1)
    sentences = [bias(*scene(rng, acceptance=0.5, accuracy=0.7)).sentences for _ in range(30)]
    assert sum(map(bool, sentences)) <= 5  # 5 % at most are expected


def test_images_of_one_source_are_no_independent_cases() -> None:
    """One woman's thousand copies do not tell how women fare."""
    real = dataset_of(40, 3)
    sex = np.array((["female", "male"] * 20) + ["male"] * 3)
    names = real.of("train").names
    sources = [0] * 400 + list(range(1, 40, 2)) * 5
    synthetic = named("train", 500, tuple(names[row] for row in sources))
    rows = tried(real, np.array(sources), np.array([True] * 400 + [False, True] * 50))
    found = bias(real, synthetic, Groups("a test", {"sex": sex}, {"sex": sex[sources]}), rows)
    assert found.sentences == []
    women = found.groups[0]
    assert women.acceptance is not None
    assert (women.group, women.source_reuse, women.acceptance.value) == ("female", 400, 1)
    assert women.acceptance.low < 0.3
    assert women.accuracy_before is None


def test_a_group_of_one_person_and_unknown_faces_are_no_obstacle() -> None:
    real = dataset_of(30, 10)
    values = np.array([""] * 20 + ["x"] * 9 + ["y"] + [""] * 10)
    found = bias(
        real, named("train", 3, ("", "", "")), Groups("a test", {"kind": values}, {"kind": np.array([""] * 3)})
    )
    assert [(group.group, group.share_before.value, group.acceptance) for group in found.groups] == [
        ("x", 0.9, None),
        ("y", 0.1, None),
    ]
    assert found.sentences == []


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path / "cache"))
    write_tree(tmp_path / "real" / "train", {"happy": 3, "sad": 3})
    write_tree(tmp_path / "real" / "test", {"happy": 2, "sad": 1}, first_person=50)
    write_tree(tmp_path / "made" / "train", {"happy": 2})
    rows = [{"file_name": f"happy/im{k}.png", "synthetic": "true", "source": ("sad/im2.png", "")[k]} for k in range(2)]
    write_metadata(tmp_path / "made" / "train" / "metadata.csv", ("file_name", "synthetic", "source"), rows)
    return tmp_path


def read(folder: Path) -> tuple[ImageSet, SyntheticSet]:
    real = read_real(folder / "real", Nothing())
    return real, read_synthetic(folder / "made", real.classes, Nothing())


def known(real: ImageSet, values: Array) -> dict[str, str]:
    """Group by path of the images that have one."""
    paths = [f"{sample.split}/{sample.name}" for sample in real.samples]
    return {path: value for path, value in zip(paths, values.tolist(), strict=True) if value}


def test_groups_come_from_each_splits_metadata(folder: Path) -> None:
    (folder / "real/train/metadata.csv").write_text(
        "file_name,sex\nhappy/im0.png,f\nhappy/im1.png,m\nsad/im2.png, f \nhappy/im2.png,\n"
    )
    (folder / "real/test/metadata.csv").write_text("file_name,sex\nhappy/im0.png,m\n")
    real, synthetic = read(folder)
    groups = groups_by_columns(real, synthetic, ["sex"])
    assert known(real, groups.real["sex"]) == {
        "train/happy/im0.png": "f",
        "train/happy/im1.png": "m",
        "train/sad/im2.png": "f",
        "test/happy/im0.png": "m",
    }
    assert groups.synthetic["sex"].tolist() == ["f", ""]
    assert "metadata.csv" in groups.origin


def test_groups_come_from_a_table_of_the_users(folder: Path) -> None:
    table = folder / "people.csv"
    table.write_text("file_name,sex,age\ntrain/happy/im0.png,f,old\ntest/happy/im0.png,m,young\nsad/im0.png,f,young\n")
    real, synthetic = read(folder)
    groups = groups_by_columns(real, synthetic, ["sex", "age"], table)
    both = {"train/happy/im0.png": "f old", "test/happy/im0.png": "m young"}
    both |= {
        "train/sad/im0.png": "f young",
        "test/sad/im0.png": "f young",
    }  # a path below the split's folder is in each split
    joined = np.char.add(np.char.add(groups.real["sex"], " "), groups.real["age"])
    assert known(real, np.where(joined == " ", "", joined)) == both


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "metadata.csv"),
        ("file_name,gender\n", "no column 'sex'"),
        ("file_name,sex\nelsewhere.png,f\n", "0 different values"),
    ],
)
def test_unusable_columns_are_refused(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        (folder / "real/train/metadata.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        groups_by_columns(*read(folder), ["sex"])


def test_a_column_with_many_values_is_no_grouping(folder: Path) -> None:
    write_tree(folder / "real" / "train", {"happy": 30})
    rows = "".join(f"happy/im{k}.png,{k}\n" for k in range(30))
    (folder / "real/train/metadata.csv").write_text(f"file_name,person\n{rows}")
    with pytest.raises(UsageError, match="30 different values"):
        groups_by_columns(*read(folder), ["person"])


def attribute_model(path: Path) -> Path:
    """An attribute model that takes bright faces for male and old: sex from, and age as, the mean of the picture."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["rgb"]),
        helper.make_node("Gemm", ["rgb", "weights", "offsets"], ["fc1"]),
    ]
    # The picture comes in as (value − 127.5) / 128, from a box 1.5 times the face, black around it.
    weights = np.array([[0, 1, 1]] + [[0, 0, 0]] * 2, np.float32)
    inputs = [helper.make_tensor_value_info("data", TensorProto.FLOAT, [None, 3, 96, 96])]
    outputs = [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [None, 3])]
    constants = [onnx.numpy_helper.from_array(weights, "weights")]
    constants.append(onnx.numpy_helper.from_array(np.array([0, 0.75, 1], np.float32), "offsets"))
    graph = helper.make_graph(nodes, "attributes", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_the_attribute_model_guesses_sex_and_age(folder: Path) -> None:
    for k in range(3):
        Image.fromarray(np.full((48, 48), (20, 250, 250)[k], np.uint8)).save(folder / f"real/train/sad/im{k}.png")
    Image.fromarray(np.full((200, 200), 250, np.uint8)).save(folder / "made/train/happy/im1.png")
    model = AttributeModel(attribute_model(folder / "genderage.onnx"), lambda pixels: None)
    real, synthetic = read(folder)
    groups = groups_by_model(real, synthetic, model)
    sex, age = known(real, groups.real["sex"]), known(real, groups.real["age_group"])
    assert [sex[f"train/sad/im{k}.png"] for k in range(3)] == ["female", "male", "male"]
    assert [age[f"train/sad/im{k}.png"] for k in range(3)] == ["under 18", "60 and over", "60 and over"]
    assert groups.synthetic["sex"].tolist() == ["male", "male"]  # its source's, and its own where no source is known
    assert "genderage.onnx" in groups.origin


def test_the_face_in_a_large_photo_is_what_is_looked_at(folder: Path) -> None:
    from facesynth.geometry import TEMPLATE

    photo = np.zeros((400, 400, 3), np.float32)
    photo[100:200, 200:300] = 1
    model = AttributeModel(attribute_model(folder / "genderage.onnx"), lambda pixels: TEMPLATE * 100 / 48 + [200, 100])
    aside = AttributeModel(model_path := folder / "genderage.onnx", lambda pixels: TEMPLATE * 100 / 48 + [0, 250])
    assert model_path.exists()
    assert (model(photo)[0], aside(photo)[0]) == ("male", "female")


def test_a_broken_attribute_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "genderage.onnx").write_bytes(b"no model")
    with pytest.raises(IdentityError, match=r"genderage\.onnx"):
        AttributeModel(tmp_path / "genderage.onnx", lambda pixels: None)


def test_without_columns_and_model_there_are_no_groups(folder: Path) -> None:
    assert find_groups(*read(folder)) is None


@pytest.mark.real
def test_a_pack_without_attribute_model_gives_no_groups(folder: Path, test_data: Path) -> None:
    from facesynth.identity import InsightfaceEmbedder

    embedder = InsightfaceEmbedder(test_data / "models/insightface/models/facepack")
    assert find_groups(*read(folder), embedder=embedder) is None
