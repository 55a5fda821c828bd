"""Files out: whole or not there at all, apart from the source, and errors that name the way on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from facesynth import output
from facesynth.console import FacesynthError, UsageError
from facesynth.output import check_output, hard_link, require_distinct_names, write_atomic, write_metadata


def test_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for data in (b"old", b"new"):
        write_atomic(tmp_path / "a" / "b.png", data)
    assert (tmp_path / "a" / "b.png").read_bytes() == b"new"
    assert os.listdir(tmp_path / "a") == ["b.png"]


@pytest.mark.parametrize(
    ("code", "step"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose another --out"), (errno.EACCES, "choose another --out")],
)
def test_a_failed_write_keeps_the_old_file(
    code: int, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError(code, os.strerror(code))

    write_atomic(tmp_path / "im.png", b"old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(FacesynthError, match=rf"cannot write .*im\.png \({os.strerror(code)}\): .*{step}"):
        write_atomic(tmp_path / "im.png", b"new")
    assert (tmp_path / "im.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["im.png"]


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FacesynthError, match=r"cannot write .*im\.png"):
        write_atomic(tmp_path / "file" / "im.png", b"")


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", _killed)
    monkeypatch.setattr(Path, "unlink", lambda *_: None)
    with pytest.raises(SystemExit):
        write_atomic(tmp_path / "im.png", b"half")
    monkeypatch.undo()
    assert len(os.listdir(tmp_path)) == 1
    write_atomic(tmp_path / "im.png", b"whole")
    assert os.listdir(tmp_path) == ["im.png"]


def _killed(*_: object) -> None:
    raise SystemExit


def test_metadata_rows_keep_their_columns(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"file_name": 'a, "b".png', "label": "happy"},
        {"label": "sad", "file_name": "é.png", "seed": 3},
    ]
    write_metadata(tmp_path / "metadata.csv", ["file_name", "label", "seed"], iter(rows))
    text = (tmp_path / "metadata.csv").read_bytes().decode()
    assert text == 'file_name,label,seed\n"a, ""b"".png",happy,\né.png,sad,3\n'
    with pytest.raises(ValueError, match="sede"):
        write_metadata(tmp_path / "metadata.csv", ["file_name"], [{"sede": 1}])
    assert (tmp_path / "metadata.csv").read_bytes().decode() == text


def test_links_that_cannot_be_made_are_left_to_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_device(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_device)
    (tmp_path / "a").touch()
    assert [hard_link(tmp_path / "a", tmp_path / "out" / "happy" / name) for name in "bc"] == [False, False]
    assert capsys.readouterr().err.count("no hard links to") == 1


@pytest.mark.parametrize(
    ("src", "out", "message"),
    [
        ("set", "set", "is the source itself"),
        ("set", "./x/../set", "is the source itself"),
        ("set", "link", "is the source itself"),
        ("set", "set/out", "lies inside the source"),
        ("set/train", "set", "lies inside the output"),
        ("set/fer.csv", "set", "lies inside the output"),
        ("set", "file", "is a file"),
    ],
)
def test_output_must_be_apart_from_the_source(src: str, out: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        check_output(tmp_path / src, tmp_path / out)


def test_output_beside_the_source_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "set", tmp_path / "set-balanced")
    check_output(tmp_path / "fer.csv", tmp_path / "fer-balanced")


def test_names_that_differ_in_case_matter_where_the_file_system_ignores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["happy/a.png", "happy/b.png", "happy/A.png"]
    monkeypatch.setattr(output, "ignores_case", lambda _: False)
    require_distinct_names(names, tmp_path)
    monkeypatch.setattr(output, "ignores_case", lambda _: True)
    require_distinct_names(names[:2], tmp_path)
    with pytest.raises(UsageError, match=r"'happy/a\.png' and 'happy/A\.png' differ in case alone"):
        require_distinct_names(names, tmp_path)


def test_the_file_system_is_asked_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    assert output.ignores_case(tmp_path / "not" / "yet") == (tmp_path / "PROBE").exists()
    assert os.listdir(tmp_path) == ["probe"]
