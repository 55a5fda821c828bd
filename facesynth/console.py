"""What a person sees: messages and progress on stderr, the error classes, the exit codes. Data alone goes to stdout."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Self

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

EXIT_SHORT = 3
"""Exit code of a run that finished, but short of its target: a result, not an error."""

PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines where stderr is no terminal (logs of a CI job)."""

stderr = Console(stderr=True)


class FacesynthError(Exception):
    """One sentence that names the file or the value, and the next step."""

    exit_code = 1


class UsageError(FacesynthError):
    """The command or the call was wrong: an argument, a flag, a path or a configuration file."""

    exit_code = 2


class _State:
    quiet = False
    mute = False
    said: ClassVar[set[str]] = set()


def set_quiet(quiet: bool) -> None:
    """Silence `note` and progress. Warnings and errors are still printed."""
    _State.quiet = quiet or _State.mute


def mute() -> None:
    """Silence this process but for errors: it works beside one that speaks for both."""
    _State.quiet = _State.mute = True


def is_quiet() -> bool:
    """Whether `set_quiet` asked for silence: for libraries that show progress of their own."""
    return _State.quiet


def is_mute() -> bool:
    """Whether another process speaks for this one."""
    return _State.mute


def warn(message: str) -> None:
    """Print a warning on stderr, each text once per process."""
    if message not in _State.said and not _State.mute:
        _State.said.add(message)
        _print(f"warning: {message}", style="yellow")


def error(message: str) -> None:
    """Print an error on stderr."""
    _print(f"error: {message}", style="red")


def note(message: str, once: bool = False) -> None:
    """Print a line of information on stderr, unless quiet; with `once`, each text once per process."""
    if not _State.quiet and not (once and message in _State.said):
        _State.said.add(message)
        _print(message)


def _print(message: str, style: str | None = None) -> None:
    # File names may hold [brackets]: never read them as markup.
    stderr.print(message, style=style, markup=False, highlight=False, soft_wrap=True)


def printable(text: object) -> str:
    """`text` with every character escaped that a terminal or UTF-8 cannot show (file names may hold anything)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The words " Did you mean 'x'?" for the option nearest to `name`, or "" when none is near."""
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""


def plan_table(counts: Mapping[str, int], target: Mapping[str, int]) -> None:
    """Show the plan on stderr, unless quiet: real, final and missing images of each class."""
    if _State.quiet:
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_footer=True)
    columns = [
        ("real", counts),
        ("target", target),
        ("to make", {label: target[label] - counts[label] for label in counts}),
    ]
    table.add_column("class", footer="all")
    for title, values in columns:
        table.add_column(title, justify="right", footer=f"{sum(values.values()):,}")
    for label in counts:
        table.add_row(Text(printable(label)), *(f"{values[label]:,}" for _, values in columns))
    stderr.print(table)


class Progress:
    """A running count on stderr: a bar in a terminal, a plain line every ten seconds elsewhere, nothing when quiet.

    Use as a context manager. What an earlier run had `completed` counts, but not toward the rate.
    """

    def __init__(self, description: str, total: int, completed: int = 0, unit: str = "img") -> None:
        self.description, self.total, self.completed, self.unit = description, total, completed, unit
        self.detail = ""
        self._completed_before = completed
        self._rich: RichProgress | None = None

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        if stderr.is_terminal and not _State.quiet:
            self._rich = _rich_progress(self)
            self._task = self._rich.add_task(self.description, total=self.total, completed=self.completed, rate="")
            self._rich.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._rich is not None:
            self._rich.stop()
        else:
            self._plain_line()

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self.completed += count
        if self._rich is not None:
            self._rich.update(self._task, completed=self.completed, rate=self._rate())
        elif time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._plain_line()

    def count_earlier(self, count: int) -> None:
        """Count what an earlier run had finished: it does not tell how fast this one is."""
        self._completed_before += count
        self.advance(count)

    def end(self) -> None:
        """Say that there is no more to do than was done, where less came than was expected."""
        self.total = self.completed
        if self._rich is not None:
            self._rich.update(self._task, total=self.total)

    def describe(self, detail: str) -> None:
        """Replace the text under the bar; it may hold several lines."""
        self.detail = detail

    def _speed(self) -> float:
        return (self.completed - self._completed_before) / max(time.monotonic() - self._started, 1e-6)

    def _rate(self) -> str:
        return f"{self._speed():,.0f} {self.unit}/s"

    def _plain_line(self) -> None:
        self._last_line = time.monotonic()
        left = self.total - self.completed
        moving = self.completed > self._completed_before and left > 0
        eta = f"  ETA {timedelta(seconds=round(left / self._speed()))}" if moving else ""
        percent = f"{self.completed / self.total:.0%}" if self.total else "100%"
        detail = "  " + self.detail.replace("\n", "  ") if self.detail else ""
        note(f"{self.description} {percent}  {self.completed:,}/{self.total:,}  {self._rate()}{eta}{detail}")


def _rich_progress(owner: Progress) -> RichProgress:
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class WithDetail(RichProgress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            if owner.detail:
                yield Text(owner.detail, style="dim")

    return WithDetail(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
    )


def progress(description: str, total: int, completed: int = 0, unit: str = "img") -> Progress:
    """A `Progress` to use in a `with` statement."""
    return Progress(description, total, completed, unit)
