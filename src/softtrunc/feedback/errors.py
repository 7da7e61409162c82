"""A user's mistake, told in one line."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from softtrunc.feedback.text import shortened

LOST = {errno.EDQUOT, errno.EIO, errno.ENOSPC}
"""What the system says of content that is not on the disk."""


class UserError(Exception):
    """Something to be put right by whoever gave the command: what, where, what to write instead.

    It is one line: of a long one, as a file's own words may make it, the middle is left out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(shortened(text))


class RunFailedError(Exception):
    """The work itself went wrong: what happened, and what to change."""


class ToldElsewhereError(RunFailedError):
    """Another process of the job failed, and said why."""


_SIGNS_OF_FULL_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_full_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of a device, was too small for what was asked."""
    told = str(error).lower() if isinstance(error, RuntimeError) else ""
    full = any(sign in told for sign in _SIGNS_OF_FULL_MEMORY)
    return full or isinstance(error, MemoryError)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Tell the known word closest to `word`, or all of them if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def several(problems: Sequence[str], longest: int = 120) -> str:
    """The first of some problems, as many as fit into a line, and how many more there are."""
    shown = ""
    for number, problem in enumerate(problems):
        longer = f"{shown}; {problem}" if shown else problem
        if number and len(longer) > longest:
            return f"{shown} (and {len(problems) - number} more)"
        shown = longer
    return shown if len(shown) <= longest + 40 else f"{shown[:longest]} ..."


def all_of(where: str, problems: Sequence[str]) -> ValueError:
    """A refusal that names the first problems in its line, and all of them in a note."""
    error = ValueError(f"{where}: {several(problems)}")
    error.add_note("\n".join(problems))
    return error


@contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Within the block, refusals of values and files become a `UserError` that says where.

    Only for building objects and opening files from what a user wrote: there a ValueError is a
    judgement on the input. Around computations it would hide our own mistakes. A full or broken
    disk is nobody's mistake and stays an OSError.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in LOST:
            raise
        raise UserError(f"{where}: {error}" if where else str(error)) from error


@contextmanager
def missing_packages() -> Iterator[None]:
    """Within the block, the lack of an optional package becomes a `UserError`.

    Only around what says itself which extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from error
