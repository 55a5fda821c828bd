"""Settings: defaults, the merge of preset, file and flags, one-sentence errors, what makes two runs the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from facesynth import config
from facesynth.cli import app
from facesynth.config import AugmentConfig, BalanceConfig, differing_keys, load, preset_path
from facesynth.console import UsageError


@pytest.mark.parametrize(
    ("src", "out"),
    [("data/fer", "data/fer-balanced"), ("fer2013.csv", "fer2013-balanced"), ("set.v2", "set.v2-balanced")],
)
def test_output_is_by_default_next_to_the_source(src: str, out: str) -> None:
    assert load(BalanceConfig, {"src": src}).out == Path(out)


def test_output_of_the_current_folder_is_next_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces").mkdir()
    monkeypatch.chdir(tmp_path / "faces")
    assert load(AugmentConfig, {"src": "."}).out == tmp_path / "faces-augmented"


def test_flags_win_over_file_over_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick.yaml").write_text("seed: 1\nbatch_size: 1\nmax_attempts: 1\n")
    file = tmp_path / "run.yaml"
    file.write_text("seed: 2\nbatch_size: 2\n")
    monkeypatch.setattr(config, "PRESET_FOLDERS", (tmp_path,))
    merged = load(BalanceConfig, {"src": "x", "seed": 3, "workers": None}, preset="quick", file=file)
    assert (merged.seed, merged.batch_size, merged.max_attempts, merged.workers) == (3, 2, 1, None)


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("intensity: [1e-4, 5e-1]\n")
    assert config.read_yaml(file) == {"intensity": [1e-4, 0.5]}
    assert load(BalanceConfig, {"src": "x"}, file=file).intensity == (1e-4, 0.5)


def test_comma_lists_become_tuples() -> None:
    settings = load(AugmentConfig, {"src": "x", "intensity": "0.2,0.8", "expressions": "happy, sad"})
    assert settings.intensity == (0.2, 0.8)
    assert settings.expressions == ("happy", "sad")
    assert load(AugmentConfig, {"src": "x", "expressions": "all"}).expressions == "all"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "src is missing"),
        ({"identiy": "off"}, "unknown setting --identiy. Did you mean 'identity'?"),
        ({"identity": "of"}, "--identity: .*'insightface'.*, not 'of'"),
        ({"intensity": "0.8,0.2"}, "--intensity: 0.8 is above 0.2"),
        ({"intensity": "0.5"}, "--intensity: "),
        ({"intensity": "-1,0.5"}, "--intensity: should be greater than or equal to 0, not '-1'"),
        ({"intensity": "nan,1"}, "--intensity: "),
        ({"batch_size": 0}, "--batch-size: should be greater than or equal to 1, not 0"),
        ({"device": "gpu"}, "--device: "),
        ({"per_image": -1}, "--per-image: "),
        ({"expressions": " , "}, "--expressions: it is empty"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_its_name(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(AugmentConfig, flags if not flags else {"src": "x", **flags})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", r"unknown setting sed in .*run\.yaml\. Did you mean 'seed'\?"),
        ("seed: no", r"seed in .*run\.yaml: "),
        ("seed: 1\nseed: 2", r"run\.yaml, line 1: not YAML \(a key is given twice\)"),
        ("- 1\n- 2", r"run\.yaml: expected lines"),
        ("", r"run\.yaml: expected lines"),
        ("a: [1,\nb: }", r"run\.yaml, line 2: not YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load(BalanceConfig, {"src": "x"}, file=tmp_path / "run.yaml")


def test_missing_file_and_unknown_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read"):
        load(BalanceConfig, {"src": "x"}, file=tmp_path / "none.yaml")
    (tmp_path / "editor-48.yaml").touch()
    monkeypatch.setattr(config, "PRESET_FOLDERS", (tmp_path,))
    with pytest.raises(UsageError, match=r"no preset 'editor48'. Did you mean 'editor-48'?"):
        preset_path("editor48")


def test_settings_differ_where_bytes_do_and_nowhere_else() -> None:
    run = load(BalanceConfig, {"src": "x", "intensity": (0, 1)})
    same = load(BalanceConfig, {"src": "x", "intensity": "0,1", "workers": 7, "on_existing": "resume", "out": "y"})
    other = load(BalanceConfig, {"src": "x", "intensity": (0, 1), "seed": 1, "target": "0.5", "workers": 7})
    assert differing_keys(run.model_dump(mode="json"), same.model_dump(mode="json")) == []
    assert differing_keys(run.model_dump(mode="json"), other.model_dump(mode="json")) == ["seed", "target"]


def test_presets_are_listed_with_a_sentence_each() -> None:
    listed = CliRunner().invoke(app, ["train", "--list"])
    assert listed.exit_code == 0
    told = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())
    assert told.keys() == {path.stem for path in (Path(__file__).parents[1] / "presets").glob("*.yaml")}
    assert all(sentence.endswith(".") and 30 < len(sentence) < 110 for sentence in told.values())
