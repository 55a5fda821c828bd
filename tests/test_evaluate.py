"""`facesynth evaluate` from the command line: what it writes, what CI steps rely on, and what bad input gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faces import write_tree
from PIL import Image

from facesynth.evaluation import SCHEMA_VERSION, Evaluation

Command = Callable[..., Any]
QUICK = ("--features", "judge", "--identity", "builtin", "--steps", "4", "--batch-size", "16")
CLASSES = ("happy", "neutral", "surprise")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    write_tree(tmp_path / "real/train", {"happy": 24, "neutral": 30, "surprise": 12})
    return write_tree(tmp_path / "real/test", dict.fromkeys(CLASSES, 8), first_person=500).parent


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "synthetic", {"happy": 8, "surprise": 18}, first_person=1000)


def report(folder: Path) -> Evaluation:
    return Evaluation.model_validate_json((folder / "report.json").read_text())


def test_it_writes_a_page_and_a_report_that_keeps_its_schema(real: Path, synthetic: Path, facesynth: Command) -> None:
    ended = facesynth("evaluate", real, synthetic, *QUICK, "--json")
    assert ended.code == 0, ended.err
    out = synthetic.with_name("synthetic-evaluation")
    found = report(out)
    assert json.loads(ended.out) == json.loads((out / "report.json").read_text())
    assert found.schema_version == SCHEMA_VERSION
    assert json.loads((out / "report.schema.json").read_text()) == Evaluation.model_json_schema()
    assert found.counts["train"] == {"happy": 24, "neutral": 30, "surprise": 12}
    assert found.counts["synthetic"] == {"happy": 8, "neutral": 0, "surprise": 18}
    assert found.fidelity.features.startswith("judge-48@")
    assert found.fidelity.gan_test is not None
    assert sum(map(sum, found.fidelity.gan_test.confusion)) == 26
    assert found.safety.copies.copies == 0
    assert found.uplift is None
    assert "add --uplift" in found.verdict[2]
    for sentence in found.verdict:
        assert sentence in ended.err
    assert "surprise" in (out / "report.html").read_text()


def test_the_output_of_balance_is_known_for_what_it_is(tmp_path: Path, facesynth: Command) -> None:
    src = write_tree(tmp_path / "faces", {"happy": 10, "neutral": 16, "surprise": 6}, first_person=500)
    assert facesynth("balance", src, "--identity", "builtin", "--workers", "1").code == 0
    made = src.with_name("faces-balanced")
    assert facesynth("evaluate", src, made, *QUICK).code == 0
    found = report(src.with_name("faces-balanced-evaluation"))
    assert found.counts["synthetic"] == {"happy": 6, "neutral": 0, "surprise": 10}
    assert found.safety.copies.copies == 0
    assert found.fidelity.identity is not None
    assert found.fidelity.identity.pairs == 16
    assert found.fidelity.intensity
    both = facesynth("evaluate", made, made, *QUICK, "--out", tmp_path / "both")  # real and synthetic in one folder
    assert both.code == 0, both.err
    assert report(tmp_path / "both").counts == found.counts
    page = src.with_name("faces-balanced-evaluation").joinpath("report.html").read_text()
    assert 'data-reason="identity: another person"' in page  # rejects are shown with their reasons


def test_copies_and_leaks_are_found_and_break_the_bounds_of_a_ci_step(
    real: Path, synthetic: Path, facesynth: Command
) -> None:
    shutil.copy(real / "train/happy/im3.png", synthetic / "happy/copied.png")
    Image.open(real / "test/surprise/im2.png").resize((96, 96)).save(synthetic / "surprise/leaked.jpg", quality=90)
    bounds = ("--fail-over", "copies=0,leaks=0", "--fail-under", "coverage.happy=0", "--fail-under", "gan_test=1.5")
    ended = facesynth("evaluate", real, synthetic, *QUICK, *bounds)
    assert ended.code == 3
    assert "copies is 1, over 0" in ended.err
    assert "leaks is 1, over 0" in ended.err
    assert "gan_test is" in ended.err
    assert "coverage.happy" not in ended.err
    leaks = report(synthetic.with_name("synthetic-evaluation")).safety.leakage.leaks
    assert [(leak.image, leak.of) for leak in leaks] == [("surprise/leaked.jpg", "surprise/im2.png")]


def test_uplift_gives_a_verdict_and_a_second_call_trains_nothing_again(
    real: Path, synthetic: Path, facesynth: Command
) -> None:
    asked = ("--uplift", "--arms", "sampler,share", "--seeds", "2", "--ratio", "0.5,1")
    ended = facesynth("evaluate", real, synthetic, *QUICK, *asked)
    assert ended.code == 0, ended.err
    out = synthetic.with_name("synthetic-evaluation")
    first = report(out)
    assert first.uplift is not None
    assert {arm.name for arm in first.uplift.arms} == {"sampler", "share"}
    assert [point.value for point in first.uplift.points] == [0.5, 1.0]
    assert first.uplift.claims[0].comparison.arm == "share"
    assert any(word in first.verdict[2] for word in ("They helped", "They hurt", "It cannot be told"))
    trained = {path: path.stat().st_mtime_ns for path in (out / "trainings").glob("*.safetensors")}
    again = facesynth("evaluate", real, synthetic, *QUICK, *asked)
    assert again.code == 2
    assert "--on-existing resume" in again.err
    assert facesynth("evaluate", real, synthetic, *QUICK, *asked, "--on-existing", "resume").code == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "trainings").glob("*.safetensors")} == trained
    assert report(out).uplift == first.uplift
    wrong = facesynth(
        "evaluate", real, synthetic / "nowhere", *QUICK, *asked, "--out", out, "--on-existing", "overwrite"
    )
    assert wrong.code == 2
    assert {path: path.stat().st_mtime_ns for path in (out / "trainings").glob("*.safetensors")} == trained


def test_folds_and_another_dataset_stand_in_for_a_test_split(
    real: Path, synthetic: Path, tmp_path: Path, facesynth: Command
) -> None:
    asked = ("--uplift", "--arms", "real,rare", "--seeds", "1")
    folds = facesynth(
        "evaluate", real / "train", synthetic, *QUICK, *asked, "--folds", "3", "--out", tmp_path / "folds"
    )
    assert folds.code == 0, folds.err
    bars = [line for line in folds.err.splitlines() if line.startswith("training ")]
    assert all(line.startswith("training 100%") for line in bars)  # also where an arm joins on the way
    found = report(tmp_path / "folds").uplift
    assert found is not None
    assert found.test_images["all"] == 66
    other = write_tree(tmp_path / "other", {"happy": 5, "surprise": 6}, first_person=3000)
    (other / "happy").rename(other / "joy")
    write_tree(other, {"sad": 3})
    mapped = ("--test", other, "--class-map", "joy=happy,sad=", "--out", tmp_path / "other-evaluation")
    across = facesynth("evaluate", real, synthetic, *QUICK, *asked, *mapped)
    assert across.code == 0, across.err
    found = report(tmp_path / "other-evaluation").uplift
    assert found is not None
    assert found.test_images["all"] == 11
    none = facesynth("evaluate", real / "train", synthetic, *QUICK, *asked, "--out", tmp_path / "none")
    assert none.code == 2
    assert "--folds" in none.err


def test_a_quick_uplift_leaves_out_what_pays_late(real: Path, synthetic: Path, facesynth: Command) -> None:
    ended = facesynth("evaluate", real, synthetic, *QUICK, "--uplift", "--quick")
    assert ended.code == 0, ended.err
    found = report(synthetic.with_name("synthetic-evaluation")).uplift
    assert found is not None
    assert {"sampler", "rare", "share", "first"} <= {arm.name for arm in found.arms}
    assert not {"strong", "mixup", "combined"} & {arm.name for arm in found.arms}
    assert "is known to ±" in found.notes[0]


def test_a_set_compared_with_itself_says_so_and_a_test_split_inside_the_training_split_is_found(
    real: Path, tmp_path: Path, facesynth: Command
) -> None:
    ended = facesynth("evaluate", real, real / "train", *QUICK, "--out", tmp_path / "itself")
    assert ended.code == 0, ended.err
    found = report(tmp_path / "itself")
    assert found.safety.copies.share == 1
    assert "66 of 66 are near-copies" in found.verdict[1]
    for label in CLASSES:
        for path in (real / "test" / label).iterdir():
            shutil.copy(path, real / "train" / label / f"again-{path.name}")
    synthetic = write_tree(tmp_path / "made", {"happy": 5, "surprise": 5}, first_person=2000)
    assert facesynth("evaluate", real, synthetic, *QUICK).code == 0
    leakage = report(tmp_path / "made-evaluation").safety.leakage
    assert len(leakage.identical_test_copies) == 24
    assert len(leakage.test_copies) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-under", "coverge.happy=1"], "Did you mean 'coverage.happy'?"),
        (["--fail-over", "copies"], "give NAME=NUMBER"),
        (["--fail-under", "uplift.macro_f1=0"], "Add --uplift"),
        (["--folds", "3"], "belongs to --uplift"),
        (["--uplift", "--arms", "real,sharee"], "Did you mean 'share'?"),
        (["--class-map", "joy=happy"], "belongs to --test"),
        (["--class-map", "joy=happy", "--test", "REAL"], "has no class 'joy'"),
        (["--uplift", "--folds", "3", "--test", "REAL"], "exclude each other"),
        (["--groups", "sex"], "metadata.csv"),
        (["--features", "nowhere.pth"], "no such file"),
        (["--out", "REAL"], "output"),
    ],
)
def test_wrong_flags_are_said_before_anything_is_trained(
    arguments: list[str], message: str, real: Path, synthetic: Path, facesynth: Command
) -> None:
    given = [str(real) if argument == "REAL" else argument for argument in arguments]
    ended = facesynth("evaluate", real, synthetic, *QUICK, *given)
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert not list(real.parent.rglob("*-evaluation/trainings/*.safetensors"))


def test_sets_that_cannot_be_compared(tmp_path: Path, real: Path, facesynth: Command) -> None:
    def error(first: Path, second: Path) -> str:
        ended = facesynth("evaluate", first, second, *QUICK, "--out", tmp_path / "out")
        assert ended.code == 2, ended.err
        return str(ended.err)

    (tmp_path / "empty").mkdir()
    assert "empty" in error(real, tmp_path / "empty")
    assert "does not exist" in error(real, tmp_path / "nowhere")
    one = write_tree(tmp_path / "one", {"happy": 5})
    assert "one class only" in error(one, one)
    sad = write_tree(tmp_path / "sad", {"sad": 5, "angry": 5})
    assert "no class in common" in error(real, sad)
    corrupt = tmp_path / "corrupt/happy"
    corrupt.mkdir(parents=True)
    (corrupt / "a.png").write_bytes(b"no image")
    assert "none of its 1 images can be read" in error(real, corrupt.parent)


def test_corrupt_and_few_images_are_no_reason_to_fail(real: Path, tmp_path: Path, facesynth: Command) -> None:
    few = write_tree(tmp_path / "few", {"happy": 5, "surprise": 2}, first_person=4000)
    (few / "happy/broken.png").write_bytes(b"no image")
    ended = facesynth("evaluate", real, few, *QUICK)
    assert ended.code == 0, ended.err
    assert "broken.png" in ended.err
    found = report(tmp_path / "few-evaluation")
    assert found.warnings
    assert found.fidelity.per_class["surprise"]["coverage"].note or found.fidelity.per_class["surprise"]["recall"].note
