"""How long jobs tell where they are; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

__all__ = ["Progress", "Silent", "Task"]


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


class _NoTask:
    def advance(self, n: int = 1, note: str = "") -> None:
        """Nothing to draw."""


class Silent:
    """Progress that nobody sees."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:  # noqa: ARG002
        """A bar that is not drawn."""
        yield _NoTask()

    def say(self, line: str) -> None:
        """Nothing is printed."""
