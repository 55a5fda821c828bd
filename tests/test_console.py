"""Messages: on stderr, each warning once, quiet when asked, and safe to print whatever a file is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from facesynth import console
from facesynth.console import did_you_mean, note, printable, progress, set_quiet, warn


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    set_quiet(False)


def test_warnings_appear_once_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        warn("the disk [bold]is slow[/bold]")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: the disk [bold]is slow[/bold]\n")


def test_quiet_silences_notes_and_progress_but_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    note("a note")
    with progress("generating", total=2) as bar:
        bar.advance(2)
    warn("still heard")
    assert capsys.readouterr().err == "warning: still heard\n"


def test_progress_in_a_log_is_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    with progress("generating", total=1200, completed=200) as bar:
        bar.describe("accepted 71%")
        bar.advance(400)
        bar.advance(600)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("generating 50%  600/1,200  ")
    assert " img/s  ETA " in first
    assert first.endswith("accepted 71%")
    assert second.startswith("generating 100%  1,200/1,200  ")
    assert "ETA" not in last


def test_near_misses_are_suggested() -> None:
    assert did_you_mean("Disgst", ["disgust", "fear"]) == " Did you mean 'disgust'?"
    assert did_you_mean("xyz", ["disgust", "fear"]) == ""


def test_no_file_name_can_steer_the_terminal() -> None:
    assert printable("caf\udce9 \x1b[31m\n é") == "caf\\udce9 \\x1b[31m\\n é"
