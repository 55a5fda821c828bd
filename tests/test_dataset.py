"""Datasets: layouts, odd files, FER2013's CSV, and every kind of source that is none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faces
import numpy as np
import pytest
from PIL import Image

from facesynth import dataset
from facesynth.console import FacesynthError, UsageError
from facesynth.dataset import UnreadableImage, require_balanceable, scan

COUNTS = {"happy": 3, "angry": 2}


@contextmanager
def unprivileged() -> Iterator[None]:
    """File permissions do not bind root: act as another user."""
    root = os.geteuid() == 0
    try:
        os.seteuid(65534 if root else os.geteuid())
        yield
    finally:
        os.seteuid(0 if root else os.geteuid())


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_flat_folders_are_a_training_split(tmp_path: Path) -> None:
    data = scan(faces.write_tree(tmp_path, COUNTS, size=8))
    assert (data.form, data.classes, data.split_folders) == ("folder", ("angry", "happy"), {"train": ""})
    assert data.counts() == {"angry": 2, "happy": 3}
    assert data.counts("val") == {"angry": 0, "happy": 0}
    assert data.read(data.samples["train"][0]).pixels.shape == (8, 8, 1)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_splits_are_known_by_any_of_their_names(tmp_path: Path, val: str) -> None:
    for split, counts in {"train": COUNTS, val: {"happy": 1}, "test": {"sad": 1}}.items():
        faces.write_tree(tmp_path / split, counts, size=8)
    data = scan(tmp_path)
    assert data.split_folders == {"train": "train", "val": val, "test": "test"}
    assert data.counts("val") == {"angry": 0, "happy": 1, "sad": 0}
    sample = data.samples["val"][0]
    assert (sample.name, data.path(sample)) == ("happy/im0.png", tmp_path / val / "happy/im0.png")


def test_order_is_natural_and_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    for name in ["c2/im10", "c2/im9", "c2/im09", "c2/im1", "c2/part 2/im3", "c10/a", "c1/b"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(f"{tmp_path / name}.png")
    data = scan(tmp_path)
    assert data.classes == ("c1", "c2", "c10")
    assert [sample.name.removesuffix(".png") for sample in data.samples["train"]] == [
        *("c1/b", "c2/im1", "c2/im09", "c2/im9", "c2/im10", "c2/part 2/im3", "c10/a")
    ]


def test_what_is_no_image_is_skipped_with_its_reason(tmp_path: Path) -> None:
    faces.write_tree(tmp_path, COUNTS, size=8)
    (tmp_path / "metadata.csv").touch()
    (tmp_path / "happy" / "notes.txt").touch()
    (tmp_path / "happy" / ".DS_Store").touch()
    (tmp_path / "happy" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "happy" / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "happy" / "pipe.png")
    (tmp_path / "loose.jpg").touch()
    (tmp_path / "contempt").mkdir()
    data = scan(tmp_path)
    assert data.counts() == {"angry": 2, "happy": 3}
    assert {Path(path).name: reason.partition(" (")[0] for path, reason in data.skipped} == {
        "metadata.csv": "not an image",
        "notes.txt": "not an image",
        ".DS_Store": "hidden",
        "gone.png": "broken link",
        "self.png": "broken link",
        "pipe.png": "not a regular file",
        "loose.jpg": "image outside the class folders",
        "contempt": "class folder without images",
    }
    assert data.skipped_reasons()["not an image"] == 2


def test_link_loops_end_and_other_links_are_followed(tmp_path: Path) -> None:
    faces.write_tree(tmp_path / "set", COUNTS, size=8)
    faces.write_tree(tmp_path / "elsewhere", {"sad": 2}, size=8)
    (tmp_path / "set" / "sad").symlink_to(tmp_path / "elsewhere" / "sad")
    (tmp_path / "set" / "happy" / "again").symlink_to(tmp_path / "set" / "happy")
    data = scan(tmp_path / "set")
    assert data.counts() == {"angry": 2, "happy": 3, "sad": 2}
    assert data.skipped == [(str(tmp_path / "set" / "happy" / "again"), "link to a folder above it")]


def test_names_that_are_not_utf8_are_skipped_and_shown_safely(tmp_path: Path) -> None:
    faces.write_tree(tmp_path, COUNTS, size=8)
    name = os.fsencode(tmp_path / "happy") + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    data = scan(tmp_path)
    assert data.skipped == [(f"{tmp_path}/happy/caf\\udce9.png", "name is not UTF-8")]
    assert data.counts()["happy"] == 3


def test_folders_and_files_without_permission(public_folder: Path) -> None:
    faces.write_tree(public_folder, COUNTS | {"sad": 1}, size=8)
    (public_folder / "sad").chmod(0)
    (public_folder / "angry" / "im0.png").chmod(0)
    with unprivileged():
        data = scan(public_folder)
        assert data.skipped[0] == (str(public_folder / "sad"), "unreadable folder (Permission denied)")
        with pytest.raises(UnreadableImage, match=r"angry/im0\.png: cannot be read \(Permission denied\)"):
            data.read(data.samples["train"][0])
    (public_folder / "sad").chmod(0o755)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    data = scan(faces.write_tree(tmp_path, COUNTS, size=8))
    (tmp_path / "angry" / "im0.png").unlink()
    with pytest.raises(UnreadableImage, match=r"angry/im0\.png: cannot be read"):
        data.read(data.samples["train"][0])
    with pytest.raises(UnreadableImage, match=r"angry/im0\.png: cannot be read"):
        data.copy(data.samples["train"][0], tmp_path / "out.png", link=True)
    assert not (tmp_path / "out.png").exists()


def _layout(folder: Path, kind: str) -> Path:
    tiny = {"happy": 1}
    match kind:
        case "empty":
            pass
        case "archive":
            (folder / "faces.zip").touch()
            return folder / "faces.zip"
        case "text only":
            (folder / "readme.txt").touch()
        case "loose images":
            faces.write_tree(folder, tiny, size=8)
            shutil.move(folder / "happy" / "im0.png", folder)
            (folder / "happy").rmdir()
        case "class like a split":
            faces.write_tree(folder, {"happy": 1, "test": 0}, size=8)
        case "no training split":
            faces.write_tree(folder / "test", tiny, size=8)
        case "two of one split":
            for split in ("train", "val", "valid"):
                faces.write_tree(folder / split, tiny, size=8)
        case "one too high":
            faces.write_tree(folder / "fer" / "train", tiny, size=8)
        case "two tables":
            (folder / "a.csv").touch()
            (folder / "b.csv").touch()
        case "misspelt":
            (folder / "fer2013").mkdir()
            return folder / "fer213"
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty: expected one folder per class"),
        ("archive", "faces.zip is a file: .* unpack it first"),
        ("text only", "holds no images .skipped: 1 not an image"),
        ("loose images", "lie in no class folder"),
        ("class like a split", "'test' is named like a split but lies beside 'happy'. If .* rename it"),
        ("no training split", "holds 'test' but no 'train' folder"),
        ("two of one split", "holds both 'val' and 'valid': keep one val split"),
        ("one too high", "one folder deeper: give .*/fer"),
        ("two tables", "several CSV files .a.csv, b.csv."),
        ("misspelt", "fer213 does not exist. Did you mean 'fer2013'?"),
    ],
)
def test_what_is_no_dataset_is_told_apart(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scan(_layout(tmp_path, kind))


def test_balancing_takes_two_classes_that_have_training_images(tmp_path: Path) -> None:
    faces.write_tree(tmp_path / "one", {"happy": 2}, size=8)
    with pytest.raises(UsageError, match=r"one class only \(happy\)"):
        require_balanceable(scan(tmp_path / "one"))
    faces.write_tree(tmp_path / "two" / "train", COUNTS, size=8)
    require_balanceable(scan(tmp_path / "two"))
    faces.write_tree(tmp_path / "two" / "test", {"sad": 1}, size=8)
    with pytest.raises(UsageError, match="class 'sad' has images in another split"):
        require_balanceable(scan(tmp_path / "two"))


def test_copies_are_byte_for_byte_and_links_are_links(tmp_path: Path) -> None:
    data = scan(faces.write_tree(tmp_path / "set", COUNTS, size=8, suffix=".jpg"))
    sample = data.samples["train"][0]
    data.copy(sample, tmp_path / "out" / "copy.jpg")
    assert (tmp_path / "out" / "copy.jpg").read_bytes() == data.path(sample).read_bytes()
    for _ in range(2):  # a resumed run links again
        data.copy(sample, tmp_path / "out" / "link.jpg", link=True)
    assert (tmp_path / "out" / "link.jpg").samefile(data.path(sample))
    assert sorted(os.listdir(tmp_path / "out")) == ["copy.jpg", "link.jpg"]


# --- FER2013's CSV -------------------------------------------------------------------------------------------------


def test_csv_holds_three_splits_and_reads_like_folders(tmp_path: Path) -> None:
    table = faces.write_csv(tmp_path / "fer2013.csv", {"happy": 2, "angry": 3}, size=8)
    faces.write_csv(table, {"sad": 1}, usage="PublicTest", size=8)
    faces.write_csv(table, {"happy": 1}, usage="PrivateTest", size=8)
    for src in (table, tmp_path):
        data = scan(src)
        assert (data.form, data.classes) == ("csv", ("angry", "happy", "sad"))
        assert [sample.name for sample in data.samples["train"]][2:] == [
            f"{n}.png" for n in ("angry/im2", "happy/im0", "happy/im1")
        ]
        assert (data.counts("val")["sad"], data.counts("test")["happy"]) == (1, 1)
        face = data.read(data.samples["train"][-1])
        np.testing.assert_array_equal(np.rint(face.pixels[:, :, 0] * 255), faces.draw("happy", 1, 8))
    data.copy(data.samples["train"][-1], tmp_path / "out" / "im1.png")
    with Image.open(tmp_path / "out" / "im1.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), faces.draw("happy", 1, 8))


def test_csv_of_other_tools(tmp_path: Path) -> None:
    """Another order of columns, spaces in the header, quotes, a byte order mark, Windows line ends, blank lines."""
    table = tmp_path / "icml_face_data.csv"
    table.write_bytes(b'\xef\xbb\xbfemotion, Usage, pixels\r\n3,Training,"0 85 170 255"\r\n\r\n0,training,1 2 3 4\r\n')
    data = scan(table)
    assert data.counts() == {"angry": 1, "happy": 1}
    np.testing.assert_allclose(data.read(data.samples["train"][1]).pixels.ravel(), [0, 1 / 3, 2 / 3, 1], atol=1e-6)


HEADER = "emotion,pixels,Usage\n3,1 2 3 4,Training\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column emotion, pixels, usage in the header"),
        ("emotion,pixels\n3,1 2 3 4\n", "no column usage"),
        ("label,pixels,Usage\n", r"no column emotion in the header \(label,pixels,usage\)"),
        (HEADER + "7,1 2 3 4,Training\n", r"row 3: emotion '7' is not in 0\.\.6"),
        (HEADER + "-1,1 2 3 4,Training\n", r"row 3: emotion '-1' is not in 0\.\.6"),
        (HEADER + "happy,1 2 3 4,Training\n", r"row 3: emotion 'happy'"),
        (HEADER + "3,1 2 3,Training\n", "row 3: 3 pixels, expected 4"),
        (HEADER + "3,1 2 3 4 5 6 7 8 9,Training\n", "row 3: 9 pixels, expected 4"),
        ("emotion,pixels,Usage\n3,1 2 3,Training\n", "row 2: 3 pixels are no square image"),
        ("emotion,pixels,Usage\n3,,Training\n", "row 2: 0 pixels are no square image"),
        (HEADER + "3,1 2 3 4,Trainng\n", "row 3: Usage 'Trainng'"),
        (HEADER + "3,1 2", "row 3: 2 columns, expected 3; is the file cut short"),
        ("emotion,pixels,Usage\n", "no row with Usage 'Training'"),
        ("emotion,pixels,Usage\n3,1 2 3 4,PublicTest\n", "no row with Usage 'Training'"),
    ],
)
def test_csv_errors_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fer.csv").write_text(text)
    with pytest.raises(FacesynthError, match=r"fer\.csv.*" + message):
        scan(tmp_path / "fer.csv")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ("1 2 3 256", r"pixel value 256 is not in 0\.\.255"),
        ("1 -2 3 4", "pixel value -2"),
        ("1 2 x 4", "cannot be read"),
    ],
)
def test_csv_pixels_are_checked_when_read(tmp_path: Path, pixels: str, message: str) -> None:
    (tmp_path / "fer.csv").write_text(f"{HEADER}\n0,{pixels},Training\n")
    data = scan(tmp_path / "fer.csv")
    data.read(data.samples["train"][1])
    with pytest.raises(UnreadableImage, match=r"fer\.csv, row 4: .*" + message):
        data.read(data.samples["train"][0])


@pytest.mark.real
def test_fer2013_has_its_known_counts(fer2013: Path) -> None:
    data = scan(fer2013)
    assert list(data.counts().values()) == [3995, 436, 4097, 7215, 4965, 4830, 3171]
    assert sum(data.counts("test").values()) == 7178
    assert data.samples["train"][1].name == "angry/im1.png"
    assert dataset.to_gray(data.read(data.samples["test"][-1]).pixels).shape == (48, 48)
