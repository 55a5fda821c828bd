"""`balance` and `augment` with a generator that draws faces from noise: nothing has a source, all else is as with edits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Ended, Tiny
from faces import draw, write_tree
from pages import Page
from PIL import Image
from test_balance import outcome, run_and_stop, synthetic, table

from facesynth import demo, weights
from facesynth.generators.drawer import FaceDrawer
from facesynth.generators.latent import Generator
from facesynth.photo import SYNTHETIC_MEDIA, Encoding, Photo, in_form_of

Command = Callable[..., Ended]
COUNTS = {"happy": 5, "neutral": 9, "surprise": 4}
QUICK = ("--workers", "1", "--batch-size", "4")


def write_faces(folder: Path, **form: Any) -> Path:
    """Drawn faces with a photo out of focus among them: the tiny generator's are no sharper."""
    write_tree(folder, COUNTS, first_person=500, **form)
    path = next((folder / "neutral").iterdir())
    Image.fromarray(cv2.GaussianBlur(np.asarray(Image.open(path)), (0, 0), 3)).save(path)
    return folder


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces")


@pytest.fixture
def builtin_faces(tiny: Tiny, tiny_generator: Path) -> Iterator[None]:
    """The tiny generator in the place of faces-48."""
    path = tiny.folder / "faces-48.safetensors"
    path.write_bytes(tiny_generator.read_bytes())
    yield
    path.unlink()


@pytest.fixture(scope="module")
def command(tiny: Tiny, tiny_generator: Path) -> list[object]:
    return [tiny.script, "balance", "--generator", tiny_generator, "--identity", "builtin"]


@pytest.fixture(scope="module")
def undisturbed(command: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that was left alone."""
    src = write_faces(tmp_path_factory.mktemp("undisturbed") / "faces")
    assert subprocess.run([sys.executable, *command, src, *QUICK]).returncode == 0
    return src.with_name("faces-balanced")


def test_classes_are_filled_with_faces_that_have_no_source(undisturbed: Path) -> None:
    assert Counter(row["label"] for row in table(undisturbed)) == dict.fromkeys(COUNTS, 9)
    rows = synthetic(undisturbed)
    for row in rows:
        assert row["generator"].startswith("tiny-gan@")
        assert (row["source"], row["source_label"], row["intensity"]) == ("", "", "")
        assert row["identity_model"] == "embedder-48"
        assert all(-1 < float(row[f"{gate}_score"]) != 0 for gate in ("quality", "expression", "novelty", "identity"))
        data = (undisturbed / row["file_name"]).read_bytes()
        assert SYNTHETIC_MEDIA.encode() in data
        assert b"facesynth:seed=" in data
        assert b"facesynth:source" not in data
    assert len({(undisturbed / row["file_name"]).read_bytes() for row in rows}) == 9


def test_two_processes_and_runs_that_were_killed_end_in_the_same_bytes(
    undisturbed: Path, command: list[object], tiny: Tiny, tmp_path: Path
) -> None:
    several = write_faces(tmp_path / "several/faces")
    done = subprocess.run([sys.executable, *command, several, "--workers", "2", *QUICK[2:]])
    assert done.returncode == 0
    killed = write_faces(tmp_path / "killed/faces")
    codes, said = run_and_stop(
        tiny, "SIGKILL", [4, 20, 6, 8, 10_000], *command[1:], killed, *QUICK, "--on-existing", "resume"
    )
    assert codes[0] == -9
    assert codes.count(-9) >= 3, said
    assert codes[-1] == 0, said
    for src in (several, killed):
        assert outcome(src.with_name("faces-balanced")) == outcome(undisturbed)


def test_a_face_does_not_depend_on_its_batch(tiny_generator: Path) -> None:
    drawer = FaceDrawer(weights.load(str(tiny_generator)))
    noise = np.random.default_rng(0).standard_normal((9, drawer.latent_size), np.float32)
    together = drawer.draw([k % 3 for k in range(9)], noise)
    alone = np.concatenate([drawer.draw([k % 3], noise[k : k + 1]) for k in range(9)])
    assert np.allclose(together, alone, atol=1e-5)


def test_the_output_has_the_form_of_the_dataset(tmp_path: Path, tiny_generator: Path, facesynth: Command) -> None:
    src = write_faces(tmp_path / "faces", size=60, mode="RGB", suffix=".jpg")
    (src / "happy/im0.jpg").write_bytes(b"not an image")  # the form is that of the first one that can be read
    ended = facesynth("balance", src, "--generator", tiny_generator, "--identity", "off", *QUICK)
    assert ended.code == 0, ended.err
    pattern = Image.open(src / "happy/im1.jpg")
    for row in synthetic(tmp_path / "faces-balanced"):
        made = Image.open(tmp_path / "faces-balanced" / row["file_name"])
        assert row["file_name"].endswith(".jpg")
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (60, 60))
        assert made.quantization == pattern.quantization


@pytest.mark.parametrize(
    ("mode", "channels", "carried", "expected"),
    [("L", 1, None, None), ("RGB", 3, None, None), ("LA", 1, 90, 255), ("RGBA", 3, 90, 255), ("CMYK", 3, 90, 0)],
)
@pytest.mark.parametrize("drawn", [1, 3])
@pytest.mark.parametrize("size", [(24, 24), (90, 70)])
def test_a_picture_takes_the_form_of_any_photo(
    mode: str, channels: int, carried: int | None, expected: int | None, drawn: int, size: tuple[int, int]
) -> None:
    plane = None if carried is None else np.full(size, carried, np.uint8)
    pattern = Photo(np.zeros((*size, channels), np.float32), Encoding("PNG", mode, channels, plane))
    photo = in_form_of(pattern, np.full((48, 48, drawn), 0.5, np.float32))
    assert photo.pixels.shape == (min(size), min(size), channels)  # a face is not stretched
    assert photo.pixels.dtype == np.float32
    assert np.allclose(photo.pixels, 0.5, atol=1e-5)
    if expected is None:
        assert photo.encoding.carried is None
    else:
        assert photo.encoding.carried is not None
        assert photo.encoding.carried.shape == photo.pixels.shape[:2]
        assert (photo.encoding.carried == expected).all()


def test_copies_of_real_images_of_the_wanted_class_or_another_are_turned_down(
    src: Path, tiny_generator: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = [np.asarray(Image.open(src / name)) / np.float32(255) for name in ("happy/im1.png", "neutral/im4.png")]

    def remember(drawer: FaceDrawer, target: list[int], noise: np.ndarray) -> np.ndarray:
        return np.stack([real[k % 2][:, :, None] for k in range(len(noise))])

    with monkeypatch.context() as patch:
        patch.setattr(FaceDrawer, "draw", remember)
        flags = ("--identity", "off", *QUICK, "--max-attempts", "2", "--json")
        ended = facesynth("balance", src, "-t", "happy=9", "--generator", tiny_generator, *flags)
    assert ended.code == 3
    result = json.loads(ended.out)
    assert result["synthetic"]["happy"] == 0
    reasons = result["rejected"]["happy"]
    assert reasons["novelty: copy of a real image"] >= 4
    assert not any(reason.startswith("quality") for reason in reasons)


def test_a_face_that_is_drawn_twice_is_kept_once(
    src: Path, tiny_generator: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = np.tile(draw("happy", 4000)[None, :, :, None] / np.float32(255), (4, 1, 1, 1))
    monkeypatch.setattr(FaceDrawer, "draw", lambda drawer, target, noise: same[: len(noise)])
    flags = ("--identity", "off", *QUICK, "--max-attempts", "2", "--json")
    ended = facesynth("balance", src, "-t", "happy=9", "--generator", tiny_generator, *flags)
    result = json.loads(ended.out)
    assert result["synthetic"]["happy"] == 1
    assert result["rejected"]["happy"] == {"novelty: copy of another result": 6}


@pytest.mark.parametrize("method", ["editor", "editor+classic"])
def test_augment_draws_new_faces_of_the_class_for_every_image(
    method: str, src: Path, tiny_generator: Path, facesynth: Command
) -> None:
    flags = ("--method", method, "--identity", "off", *QUICK)
    ended = facesynth("augment", src, "-n", 2, "--generator", tiny_generator, *flags)
    assert ended.code == 0, ended.err
    rows = synthetic(src.with_name("faces-augmented"))
    assert Counter(row["label"] for row in rows) == {label: 2 * count for label, count in COUNTS.items()}
    assert {row["source"] for row in rows} == {""}
    assert all(row["generator"].endswith("+classic") == (method != "editor") for row in rows)


def unconditional(folder: Path) -> Path:
    path = folder / "any.safetensors"
    weights.save(path, "generator", Generator("conv-48", ["happy", "sad"], 8, width=4), {"classes": ["happy", "sad"]})
    return path


def test_one_that_knows_no_classes_is_sorted_by_the_judge(
    src: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anyone(drawer: FaceDrawer, target: list[int], noise: np.ndarray) -> np.ndarray:
        assert set(target) == {0}
        persons = (abs(noise[:, 0]) * 1e6).astype(int)
        faces = [draw(("happy", "surprise")[person % 2], 5000 + person) for person in persons]
        return np.stack(faces)[..., None] / np.float32(255)

    monkeypatch.setattr(FaceDrawer, "draw", anyone)
    ended = facesynth("balance", src, "--generator", unconditional(src.parent), "--identity", "off", *QUICK, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["synthetic"] == {"happy": 4, "neutral": 0, "surprise": 5}


def test_only_wanted_classes_must_be_known(src: Path, tiny_generator: Path, facesynth: Command) -> None:
    (src / "neutral").rename(src / "smirk")
    flags = ("--generator", tiny_generator, "--identity", "off", *QUICK)
    assert facesynth("balance", src, *flags).code == 0
    ended = facesynth("balance", src, "-t", "smirk=12", *flags, "-o", src.with_name("more"))
    assert ended.code == 2
    assert "the generator" in ended.err
    assert "does not know the class 'smirk' (it knows happy, neutral, surprise)" in ended.err
    assert not src.with_name("more").exists()


def test_what_cannot_be_is_said_before_anything_is_written(
    src: Path, tiny: Tiny, tiny_generator: Path, facesynth: Command
) -> None:
    wrong = facesynth("balance", src, "--generator", tiny.judge, *QUICK)
    assert wrong.code == 1
    assert "holds a classifier" in wrong.err
    assert "editor, translator or denoiser (edit real faces) or generator (draws new ones)" in wrong.err
    weaker = facesynth("balance", src, "--generator", tiny_generator, "--intensity", "0.5,1", *QUICK)
    assert weaker.code == 2
    assert "--intensity" in weaker.err
    assert [path.name for path in src.parent.iterdir()] == ["faces"]


def test_announcement_report_and_card_tell_of_drawn_faces(src: Path, tiny_generator: Path, facesynth: Command) -> None:
    flags = ("--generator", tiny_generator, "--identity", "builtin", *QUICK, "-t", "uniform:30")
    ended = facesynth("balance", src, *flags, "--max-attempts", 1)
    assert ended.err.count("generator: tiny-gan   identity: embedder-48") == 1
    page = Page(src.with_name("faces-balanced.facesynth").joinpath("report.html").read_text())
    assert page.open == []
    for expected in (
        "a face drawn from noise",
        "Drawn faces",
        "Identity compares a drawn face with every real one",
        "meant to show nobody",
    ):
        assert expected in page.text, expected
    for unexpected in ("Left the photograph", "edit of a photograph", "An edit still shows", "None →"):
        assert unexpected not in page.text, unexpected
    words = [image["alt"] or "" for image in page.all("img")]
    assert words
    assert all(alt.startswith("Drawn face") for alt in words)
    card = src.with_name("faces-balanced").joinpath("README.md").read_text()
    for expected in (
        "each face drawn from noise",
        "A drawn face is meant to show nobody",
        "identity (cosine to the most similar real face",
    ):
        assert expected in card, expected
    for unexpected in ("edited", "intensities", "the same person"):
        assert unexpected not in card, unexpected
    only = src.with_name("only")
    assert facesynth("balance", src, *flags, "--synthetic-only", "-o", only, "--max-attempts", 1).code in (0, 3)
    assert "synthetic images, drawn to go with the real ones of faces, which are not part of it" in (
        (only / "README.md").read_text()
    )


@pytest.mark.usefixtures("builtin_faces")
def test_new_people_can_be_drawn_and_then_edited(
    src: Path, tiny: Tiny, tiny_generator: Path, facesynth: Command
) -> None:
    flags = ("--sources", "new", "--intensity", "0.5,1", "--identity", "builtin", *QUICK)
    ended = facesynth("balance", src, *flags)
    assert ended.code == 0, ended.err
    assert "people: faces-48" in ended.err
    out = src.with_name("faces-balanced")
    rows = synthetic(out)
    assert Counter(row["label"] for row in rows) == {"happy": 4, "surprise": 5}
    drawer, editor = (weights.file_digest(tiny.folder / f"{name}.safetensors") for name in ("faces-48", "editor-48"))
    for row in rows:
        assert row["generator"] == f"faces-48@{drawer}+editor-48@{editor}"
        assert row["source"] == ""
        assert 0.5 <= float(row["intensity"]) <= 1
    assert "each face drawn from noise, edited with intensities 0.5 to 1" in (out / "README.md").read_text()
    named = src.with_name("named")
    told = ("--sources", tiny_generator, *flags[2:], "-o", named)
    assert facesynth("balance", src, *told).code == 0
    for row, same in zip(rows, synthetic(named), strict=True):
        assert (named / same["file_name"]).read_bytes() != b""
        assert (row["seed"], row["intensity"]) == (same["seed"], same["intensity"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--generator", "GAN", "--sources", "new"),
            "there is none here: the generator .* makes faces without sources",
        ),
        (("--sources", "JUDGE"), "holds a classifier, but faces are made by"),
        (("--sources", "ANY"), "draws no faces of a wanted expression"),
    ],
)
def test_sources_that_cannot_be_are_refused(
    flags: tuple[str, ...], message: str, src: Path, tiny: Tiny, tiny_generator: Path, facesynth: Command
) -> None:
    paths = {"GAN": tiny_generator, "JUDGE": tiny.judge, "ANY": unconditional(src.parent)}
    ended = facesynth("balance", src, *(paths.get(flag, flag) for flag in flags), *QUICK)
    assert ended.code in (1, 2)
    assert re.search(message, ended.err), ended.err
    assert not src.with_name("faces-balanced").exists()


@pytest.mark.usefixtures("builtin_faces")
def test_the_demo_draws_a_dataset_and_balances_it(
    facesynth: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "COUNTS", {"happy": 12, "neutral": 8, "surprise": 4, "disgust": 3})
    ended = facesynth("balance", "--demo", *QUICK)
    assert ended.code == 0, ended.err
    drawn = {path.parent.name: path.read_bytes() for path in (tmp_path / "facesynth-demo").glob("*/*.png")}
    assert drawn.keys() == {"happy", "neutral", "surprise"}  # those that the generator knows
    assert all(SYNTHETIC_MEDIA.encode() in data for data in drawn.values())
    rows = table(tmp_path / "facesynth-demo-balanced")
    assert Counter(row["label"] for row in rows) == dict.fromkeys(drawn, 12)
    again = facesynth("balance", "--demo", *QUICK)
    assert (again.code, "finished already" in again.err) == (0, True)
    for flags in (("--demo", "faces"), ("--demo", "--dry-run")):
        assert "--demo draws its own dataset" in facesynth("balance", *flags).err
    assert "src is missing" in facesynth("balance").err


def test_evaluate_measures_what_needs_no_source(
    tmp_path: Path, tiny_generator: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        write_faces(tmp_path / "faces" / split)
    src, out = tmp_path / "faces", tmp_path / "faces-balanced"
    assert facesynth("balance", src, "--generator", tiny_generator, "--identity", "builtin", *QUICK).code == 0
    flags = ("--features", "judge", "--identity", "builtin", "--steps", "4", "--batch-size", "16")
    ended = facesynth("evaluate", src, out, *flags)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "faces-balanced-evaluation/report.json").read_text())
    assert found["counts"]["synthetic"] == {"happy": 4, "neutral": 0, "surprise": 5}
    assert found["fidelity"]["identity"] is None
    assert found["fidelity"]["intensity"] == {}
    assert found["safety"]["copies"]["copies"] == 0
