"""One process, or one job of several, at a time where something is written."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import check_named
from softtrunc.feedback.json import read_json


@contextmanager
def only_one(out: Path, doing: str, *, option: str = "--out ") -> Iterator[None]:
    """Within the block nobody else may write `out`, on this machine or one that shares its disk.

    The system gives the lock back with the process, however it ends. On a disk that knows no locks
    the file alone is one, and is taken over from a dead process of the same machine.

    Args:
        out: the folder or file to write; it may be absent.
        doing: what the block does, e.g. "training into it".
        option: what names `out` on the command line; "" for nothing.

    Raises:
        UserError: if somebody else is writing it, saying who and what to do.
    """
    from filelock import FileLock, Timeout

    file, owner = _files(out)
    lock = FileLock(file, timeout=0)
    absent = [folder for folder in file.parents if not folder.exists()]
    with user_errors(f"{option}{out}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings(action="ignore"):  # of a disk without locks
                lock.acquire()
        except Timeout:
            raise UserError(_taken(out, doing, file, owner)) from None
    try:
        with suppress(OSError):
            owner.write_text(json.dumps(_me()), encoding="utf-8")
        yield
    finally:
        # While it is still held: who has opened it meanwhile finds it gone, and makes a new one.
        for path in (owner, file):
            with suppress(OSError):
                path.unlink()
        lock.release()
        for folder in absent:  # of a refused command nothing stays
            with suppress(OSError):
                folder.rmdir()


def _files(out: Path) -> tuple[Path, Path]:
    """The lock and who has it: Windows lets nobody read a locked file.

    They lie beside `out`, or in it where nothing can be written beside it.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolving would follow a link
    check_named(out)
    if out.is_dir() and not os.access(out.parent, os.W_OK):
        return out / ".lock.partial", out / ".owner.partial"
    return out.with_name(f".{out.name}.lock.partial"), out.with_name(f".{out.name}.owner.partial")


def _me() -> dict[str, object]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"process": os.getpid(), "machine": socket.gethostname(), "since": since}


def _taken(out: Path, doing: str, file: Path, owner: Path) -> str:
    try:
        known = read_json(owner)
        who = f" ({known['process']} on {known['machine']}, since {known['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        who = ""
    return (
        f"{out}: another process is {doing}{who}: wait for it or stop it; if that machine is gone, "
        f"delete {file}"
    )
