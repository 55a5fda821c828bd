from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Ended, Tiny
from faces import draw, write_tree
from PIL import Image

import facesynth as package
from facesynth.photo import SYNTHETIC_MEDIA
from facesynth.synthesis import GENTLE_TRIES

Command = Callable[..., Ended]
COUNTS = {"happy": 5, "neutral": 4, "surprise": 3}
QUICK = ("--identity", "off", "--workers", "1")


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "faces", COUNTS, first_person=700)


def made(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["synthetic"] == "true"]


@pytest.mark.parametrize(
    ("expressions", "wanted"),
    [
        ("same", {"happy": 10, "neutral": 8, "surprise": 6}),
        ("all", {"happy": 24, "neutral": 24, "surprise": 24}),
        ("surprise, happiness", {"happy": 24, "neutral": 0, "surprise": 24}),
    ],
)
def test_every_image_is_varied_toward_every_expression_asked_for(
    expressions: str, wanted: dict[str, int], src: Path, facesynth: Command
) -> None:
    ended = facesynth("augment", src, "-n", 2, "--expressions", expressions, *QUICK, "--json")
    assert ended.code in (0, 3), ended.err  # random edits do not all pass
    result = json.loads(ended.out)
    assert {label: result["target"][label] - count for label, count in COUNTS.items()} == wanted
    rows = made(src.with_name("faces-augmented"))
    assert Counter(row["label"] for row in rows) == Counter(result["synthetic"])
    assert sum(result["short"].values()) == sum(wanted.values()) - len(rows)
    variations = Counter((row["source"], row["label"]) for row in rows)
    assert 1 <= max(variations.values()) <= 2
    if expressions == "same":
        assert all(row["label"] == row["source_label"] for row in rows)


def test_classic_variations_all_land_and_all_differ(src: Path, facesynth: Command) -> None:
    ended = facesynth("augment", src, "--method", "classic", "-n", 3, *QUICK)
    assert ended.code == 0, ended.err
    out = src.with_name("faces-augmented")
    rows = made(out)
    assert Counter(row["source"] for row in rows) == {
        path.relative_to(src).as_posix(): 3 for path in src.rglob("*.png")
    }
    assert {(row["generator"], row["intensity"], row["expression_score"]) for row in rows} == {("classic", "", "")}
    pixels = {np.asarray(Image.open(path)).tobytes() for path in out.rglob("*.png")}
    assert len(pixels) == 12 + 36
    assert all(SYNTHETIC_MEDIA.encode() in (out / row["file_name"]).read_bytes() for row in rows)


def face_with_itself_as_alpha(mode: str, size: int) -> Image.Image:
    colour = draw("happy", 1, size, colour=True)
    alpha = draw("happy", 1, size)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([colour, alpha]))
    if mode == "LA":
        return Image.fromarray(np.dstack([alpha, alpha]))
    return Image.fromarray(colour).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16"])
def test_classic_variations_keep_the_form_of_the_file(mode: str, tmp_path: Path, facesynth: Command) -> None:
    (tmp_path / "faces/happy").mkdir(parents=True)
    suffix = ".tif" if mode == "CMYK" else ".png"
    if mode == "I;16":
        image = Image.fromarray(draw("happy", 1, 60).astype(np.uint16) * 257)
    else:
        image = face_with_itself_as_alpha(mode, 60)
    image.save(tmp_path / f"faces/happy/a{suffix}")
    assert facesynth("augment", tmp_path / "faces", "--method", "classic", "-n", 8, *QUICK).code == 0
    for row in made(tmp_path / "faces-augmented"):
        varied = Image.open(tmp_path / "faces-augmented" / row["file_name"])
        assert (varied.mode, varied.size, varied.format) == (
            image.mode,
            image.size,
            "TIFF" if suffix == ".tif" else "PNG",
        )
        assert not np.array_equal(np.asarray(varied), np.asarray(image))
        if mode == "LA":  # light, noise and erasing leave alpha alone, so only about the same
            gray, alpha = np.moveaxis(np.asarray(varied).astype(float), 2, 0)
            assert np.corrcoef(alpha.ravel(), gray.ravel())[0, 1] > 0.6


def test_alpha_is_mirrored_with_the_face(tmp_path: Path, facesynth: Command) -> None:
    (tmp_path / "faces/happy").mkdir(parents=True)
    split = np.zeros((48, 48, 2), np.uint8)
    split[:, :24] = 255
    face = np.dstack([np.where(split[:, :, 0] > 0, draw("happy", 1) // 2 + 128, draw("happy", 1) // 4), split[:, :, 1]])
    Image.fromarray(face.astype(np.uint8)).save(tmp_path / "faces/happy/a.png")
    assert facesynth("augment", tmp_path / "faces", "--method", "classic", "-n", 12, *QUICK).code == 0
    sides = set()
    for row in made(tmp_path / "faces-augmented"):
        gray, alpha = np.moveaxis(np.asarray(Image.open(tmp_path / "faces-augmented" / row["file_name"])) / 255.0, 2, 0)
        bright_left, opaque_left = (plane[:, :12].mean() > plane[:, -12:].mean() for plane in (gray, alpha))
        assert bright_left == opaque_left
        sides.add(bool(opaque_left))
    assert sides == {True, False}


def test_classic_variations_come_on_top_of_edits(src: Path, facesynth: Command) -> None:
    for method in ("editor", "editor+classic"):
        ended = facesynth(
            "augment", src, "--expressions", "all", "--method", method, *QUICK, "-o", src.with_name(method)
        )
        assert ended.code in (0, 3), ended.err
    edited, both = made(src.with_name("editor")), made(src.with_name("editor+classic"))
    assert [row["seed"] for row in edited] == [row["seed"] for row in both]  # the gates judge the edit
    assert all(row["generator"].endswith("+classic") for row in both)
    for row in both:
        first, second = (
            np.asarray(Image.open(src.with_name(m) / row["file_name"])) for m in ("editor", "editor+classic")
        )
        assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("size", "asked", "ends"), [(48, (), (0.8, 0.95)), (96, (), (0.6, 0.8)), (96, ("--intensity", "0.9,1"), (0.9, 1.0))]
)
def test_photos_are_edited_less_broadly_unless_an_intensity_is_asked_for(
    size: int, asked: tuple[str, ...], ends: tuple[float, float], tmp_path: Path, facesynth: Command
) -> None:
    src = write_tree(tmp_path / "faces", COUNTS, size)
    ended = facesynth("augment", src, "--expressions", "all", "--max-attempts", GENTLE_TRIES, *QUICK, *asked)
    assert ended.code in (0, 3)
    out = src.with_name("faces-augmented")
    found = [float(row["intensity"]) for row in made(out)]
    assert len(found) > 5
    assert ends[0] <= min(found) < max(found) <= ends[1]
    low, high = ends if asked else (round(min(found), 2), round(max(found), 2))
    assert f"intensities {low:g} to {high:g}" in (out / "README.md").read_text()


def test_one_class_is_enough_to_augment(tmp_path: Path, tiny: Tiny) -> None:
    src = write_tree(tmp_path / "faces", {"happy": 3})
    result = package.augment(src, 2, method="classic", identity="off", workers=1, judge=str(tiny.judge))
    assert result.synthetic == {"happy": 6}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--expressions", "hapy"), "Did you mean 'happy'"),
        (("--expressions", "all", "--method", "classic"), "cannot change an expression"),
        (("--per-image", 0), "--per-image"),
        (("--method", "magic"), "--method"),
    ],
)
def test_wrong_settings_are_named(flags: tuple[object, ...], message: str, src: Path, facesynth: Command) -> None:
    ended = facesynth("augment", src, *flags, *QUICK)
    assert ended.code == 2
    assert message in ended.err
    assert not src.with_name("faces-augmented").exists()
