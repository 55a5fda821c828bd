"""Targets in all their spellings, and the errors that name both numbers."""

from __future__ import annotations

from pathlib import Path

import faces
import pytest

from facesynth.console import UsageError
from facesynth.target import canonical_label, deficits, resolve

COUNTS = {"angry": 40, "disgust": 4, "happy": 100}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("uniform", (100, 100, 100)),
        ("uniform:120", (120, 120, 120)),
        ("0.5", (50, 50, 100)),
        ("0.2", (40, 20, 100)),
        ("1", (100, 100, 100)),
        ("0.29", (40, 29, 100)),
        ("disgust=20", (40, 20, 100)),
        ("Disgusted=20, ANGER=50", (50, 20, 100)),
        ({"disgust": 20}, (40, 20, 100)),
        ({"angry": 0.25, "disgust": 0.25, "happy": 0.5}, (50, 50, 100)),
        ({"angry": 0.1, "disgust": 0.4, "happy": 0.5}, (40, 160, 200)),
    ],
)
def test_every_spelling(spec: str, expected: tuple[int, ...]) -> None:
    target = resolve(spec, COUNTS)
    assert list(target) == list(COUNTS)
    assert tuple(target.values()) == expected


def test_yaml_files_of_counts_and_of_shares(tmp_path: Path) -> None:
    (tmp_path / "counts.yaml").write_text("happiness: 110\n1_disgust: 50\n")
    (tmp_path / "shares.yml").write_text("angry: 2.5e-1\ndisgust: 25e-2\nhappy: 0.5\n")
    assert resolve(str(tmp_path / "counts.yaml"), COUNTS) == {"angry": 40, "disgust": 50, "happy": 110}
    assert resolve(tmp_path / "shares.yml", COUNTS) == {"angry": 50, "disgust": 50, "happy": 100}


def test_like_another_dataset_scales_its_distribution_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = faces.write_tree(tmp_path, {"angry": 2, "disgust": 1, "happy": 2, "surprise": 3}, size=8)
    assert resolve(f"like:{other}", COUNTS) == {"angry": 100, "disgust": 50, "happy": 100}
    assert "surprise" in capsys.readouterr().err


def test_like_a_dataset_that_lacks_a_class(tmp_path: Path) -> None:
    other = faces.write_tree(tmp_path, {"angry": 1, "happy": 1}, size=8)
    with pytest.raises(UsageError, match="no share to 'disgust', which has 4 real images"):
        resolve(f"like:{other}", COUNTS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unifrom", "'unifrom' is no target. Did you mean 'uniform'?"),
        ("", "'' is no target"),
        ("uniform:50", "happy: target 50 is below the 100 real images; real images are never dropped"),
        ("uniform:", "'' is not a whole number"),
        ("disgust=3", "disgust: target 3 is below the 4 real images"),
        ("disgust=0", "disgust: target 0 is below the 4 real images"),
        ("disgust=-5", "disgust: -5 is negative"),
        ("disgust=nan", "disgust: 'nan' is not a whole number"),
        ("disgust=10.5", "disgust: '10.5' is not a whole number"),
        ("disgust", "'disgust' is no target"),
        ("disgust=5,happy", "'happy': say CLASS=COUNT"),
        ("disgsut=5", "unknown class 'disgsut' in the target. Did you mean 'disgust'?"),
        ("disgust=5,disgusted=6", "names class 'disgust' twice"),
        ("disgust=99999999999", "the most is 10,000,000"),
        ("0", "above 0 and at most 1"),
        ("-0.5", "above 0 and at most 1"),
        ("nan", "above 0 and at most 1"),
        ("inf", "above 0 and at most 1"),
        ("2000", "say uniform:2000"),
        ("like:/nowhere/at/all", "does not exist"),
        ("none.yaml", "none.yaml: cannot be read"),
        ({"angry": 0.5, "disgust": 0.1, "happy": 0.5}, "sum to 1.1, not to 1"),
        ({"angry": 0.5, "happy": 0.5}, "no share to 'disgust'"),
        ({"angry": 0.5, "disgust": 0.0, "happy": 0.5}, "no share to 'disgust'"),
        ({"angry": 0.5, "disgust": -0.5, "happy": 1}, "disgust: -0.5 is not a share"),
        ({"angry": float("nan"), "disgust": 0.5, "happy": 0.5}, "angry: nan is not a share"),
        ({"angry": 0.5, "disgust": 2000}, "disgust: 2000 is not a share"),
        ({"disgust": True}, "disgust: 'True' is not a whole number"),
        ({"angry": 1e-9, "disgust": 0.5, "happy": 0.499999999}, "the most is 10,000,000"),
    ],
)
def test_an_impossible_target_is_named(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(spec, COUNTS)
    assert message in str(caught.value)


def test_two_classes_of_one_expression_need_the_exact_name() -> None:
    counts = {"calm": 1, "neutral": 2, "happy": 3}
    assert resolve("calm=2", counts)["calm"] == 2
    with pytest.raises(UsageError, match="may mean calm or neutral"):
        resolve("neutrality=5", counts)


def test_deficits() -> None:
    assert deficits(COUNTS, resolve("0.5", COUNTS)) == {"angry": 10, "disgust": 46, "happy": 0}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Anger", "angry"),
        ("0_angry", "angry"),
        ("1-Disgust", "disgust"),
        ("03 Happiness", "happy"),
        ("surprised", "surprise"),
        ("no expression", "neutral"),
        ("contempt", "contempt"),
        ("6", "6"),
        ("Smirk", "smirk"),
    ],
)
def test_canonical_label(name: str, label: str) -> None:
    assert canonical_label(name) == label
