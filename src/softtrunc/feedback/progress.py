"""How long jobs tell where they are; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

Count = Callable[[int, int], None]
"""`(done, total)`: how far some work is that knows only once it has begun how much there is."""


@runtime_checkable
class Task(Protocol):
    """One bar."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Another `n` units are done; `note` is a short text beside the bar."""


@runtime_checkable
class Progress(Protocol):
    """Where bars and lines go."""

    def task(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        """A bar of `total` units for as long as the context lasts."""

    def say(self, line: str) -> None:
        """One line of text."""


class Silent:
    """Progress that nobody sees."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:  # noqa: ARG002
        """A bar that is not drawn."""
        yield self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Nothing to draw."""

    def say(self, line: str) -> None:
        """Nothing is printed."""


@contextmanager
def counting(progress: Progress, label: str, unit: int = 1) -> Iterator[Count]:
    """A `(done, total)` callback that draws a bar, which appears with the first call.

    Args:
        progress: where the bar goes.
        label: of the bar.
        unit: what the bar counts in, e.g. `1 << 20` for MiB where `done` is in bytes.
    """
    bar: Task | None = None
    shown = 0
    with ExitStack() as stack:

        def count(done: int, total: int) -> None:
            nonlocal bar, shown
            if bar is None:
                bar = stack.enter_context(progress.task(label, total // unit))
            bar.advance(done // unit - shown)
            shown = done // unit

        yield count
