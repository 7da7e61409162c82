"""Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from softtrunc.feedback.launched import is_first
from softtrunc.feedback.progress import Task
from softtrunc.feedback.text import hours, printable

_SECONDS_BETWEEN_LINES = 10.0
# What is over sooner needs no line.
_SECONDS_WORTH_A_LINE = 2.0


class _Verbatim(Console):
    """A console on which text from files and names is shown as it is: never markup or control."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments with their text escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def echo(text: str, *, nl: bool = True) -> None:
    """Text on standard output, control characters escaped."""
    sys.stdout.write(printable(text) + ("\n" if nl else ""))


def stdout(width: int = 120) -> Console:
    """Where results go: as wide as the terminal, `width` for a table elsewhere.

    Of several processes that share the work only the first one speaks.
    """
    return _Verbatim(width=None if sys.stdout.isatty() else width, quiet=not is_first())


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, n: int = 1, note: str = "") -> None:
        """Move the bar; an empty note leaves the one before."""
        if note:
            self._progress.update(self._task, advance=n, note=note)
        else:
            self._progress.advance(self._task, n)


class _Lines:
    def __init__(self, label: str, total: int, done: int) -> None:
        self._label = label
        self._total = total
        self._done = self._first = done
        self._start = self._last = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Print a line every ten seconds, and one at the end of what took some time."""
        self._done += n
        moment = time.monotonic()
        elapsed = moment - self._start
        soon = moment - self._last < _SECONDS_BETWEEN_LINES
        if soon and (self._done < self._total or elapsed < _SECONDS_WORTH_A_LINE):
            return
        self._last = moment
        left = elapsed / max(self._done - self._first, 1) * (self._total - self._done)
        times = f"{hours(elapsed)}, {hours(left)} left"
        line = f"{self._label}: {self._done}/{self._total}  {times}  {note}"
        print(printable(line.rstrip()), file=sys.stderr, flush=True)


class ConsoleProgress:
    """Progress on standard error, so that standard output holds results alone."""

    def __init__(self) -> None:
        self._console = _Verbatim(stderr=True, quiet=not is_first())
        self._display: Progress | None = None
        self._open = 0

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar, or lines every ten seconds where there is no terminal.

        Tasks may overlap: their bars then stand below each other.
        """
        if not self._console.is_terminal:
            yield _Lines(label, total, done)
            return
        if self._display is None:
            self._display = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._display.start()
        self._open += 1
        try:
            yield _Bar(
                self._display, self._display.add_task(label, total=total, completed=done, note="")
            )
        finally:
            self._open -= 1
            if self._open == 0:
                self._display.stop()
                self._display = None

    def say(self, line: str) -> None:
        """One line."""
        self._console.print(line, soft_wrap=True)
