"""Files written whole: a reader sees the old file or the new one, never a part.

One way for everything that this package writes. A file is written beside its place, forced to disk
and renamed; so a kill, a full disk or two writers at once leave a whole file behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from softtrunc.feedback.errors import LOST, UserError

# In the names of half-written files: several machines may write to one disk.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]

_SLOW_DISK = 120.0  # seconds

# What the system says of a place that a user named, whatever was to be done there.
_REFUSALS = {
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO, errno.EPERM,
    errno.EROFS,
}  # fmt: skip

_OF_RUST = re.compile(r"\(os error (\d+)\)")


def is_refusal(error: OSError) -> bool:
    """Whether the place is at fault rather than the work: no such file, a name too long, ..."""
    return error.filename is not None and error.errno in _REFUSALS


def complaint(error: OSError) -> str:
    """What the system said, behind the file that it said it of."""
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{error.strerror or error}"


def sync(path: Path) -> None:
    """Force a file or folder to disk, as far as the system lets us.

    Windows opens no folders and syncs no descriptor that was opened for reading alone; some network
    file systems refuse as well. The rename that follows is atomic all the same.

    Raises:
        OSError: if the disk is full or broken.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    with suppress(PermissionError):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in LOST:
                raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)


def _clear_killed(path: Path) -> None:
    """Remove what processes of this machine that are no more left half-written of a file."""
    if os.name != "posix":  # elsewhere asking for a process may end it
        return
    start, end = f".{path.name}.{_HOST}-", ".partial"
    for entry in os.scandir(path.parent):
        number = entry.name.removeprefix(start).removesuffix(end)
        if entry.name == f"{start}{number}{end}" and number.isdecimal():
            try:
                os.kill(int(number), 0)  # no signal: only whether there is one
            except ProcessLookupError:
                Path(entry).unlink(missing_ok=True)
            except (OSError, OverflowError):  # somebody else's
                continue


@contextmanager
def naming_lost_writes(path: Path) -> Iterator[None]:
    """The system's own words for a full or broken disk, which libraries hide, and the place.

    NumPy says how much it could not write, but neither where nor why; safetensors, written in Rust,
    has an error of its own; and what fails as a file is closed does not know its name.
    """
    try:
        yield
    except Exception as error:
        number, told = getattr(error, "errno", None), _OF_RUST.search(str(error))
        if number is None and isinstance(error, OSError) and str(error).endswith("written"):
            number = errno.ENOSPC
        elif number is None and told:
            number = int(told[1])
        if number in LOST and getattr(error, "filename", None) is None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well.

    Missing folders are made. After an error nothing is left but what was there before.

    Raises:
        FileExistsError: if `path` is something that no file may replace.
    """
    if path.exists() and not path.is_file():
        what = "is a folder, a device or a pipe, no file to replace"
        raise FileExistsError(errno.EEXIST, what, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_killed(path)
    partial = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.partial")
    try:
        with naming_lost_writes(path):
            yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8 with the line ends that `text` has."""
    write_bytes(path, text.encode("utf-8"))


def replace_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its name: everything in it is forced to disk first.

    `final` may be there only as an empty folder.
    """
    for path in partial.rglob("*"):
        sync(path)
    if final.is_dir():
        final.rmdir()
    partial.rename(final)
    sync(final.parent)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final` to write to; it takes that name when the block ends well.

    Missing parents are made. After an error nothing is left. `final` may be there only as an empty
    folder.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with naming_lost_writes(final):
            yield partial
        replace_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def appears(there: Callable[[], bool]) -> bool:
    """Whether something is there, or comes within two minutes.

    A network disk shows what other machines have written with a delay.
    """
    began = time.monotonic()
    while not (found := there()) and time.monotonic() - began < _SLOW_DISK:
        time.sleep(0.2)
    return found


def check_named(out: Path) -> None:
    """Refuse `.`, `/` and the like: no folder of ours, and nothing can be written beside them.

    Raises:
        UserError: if the path has no last name of its own, is a link that leads nowhere, or is not
            UTF-8: safetensors would write there what it cannot read.
    """
    if any("\udc80" <= letter <= "\udcff" for letter in str(out)):
        raise UserError(f"--out {out}: its name is not UTF-8, and weights need that: rename it")
    if out.name in ("", ".."):
        raise UserError(f"--out {str(out)!r}: write the name of a folder to make, e.g. runs/one")
    if out.is_symlink() and not out.exists():
        raise UserError(f"--out {out}: is a link that leads nowhere: choose another place")


def check_place(
    out: Path, ours: Callable[[Path], bool] = lambda _: False, strange: str = ""
) -> None:
    """Refuse a folder to write that holds anything but what the same command wrote.

    Half-written files (`.partial`) are no hindrance.

    Args:
        out: the folder; it may be absent.
        ours: whether something in it is of this command.
        strange: what to say of anything else, e.g. ", which no study wrote".

    Raises:
        UserError: if it has no name or is a file, or naming the first stranger.
    """
    check_named(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: exists and is not empty: it is a file: choose another place")
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if not path.name.endswith(".partial") and not ours(path):
            raise UserError(
                f"--out {out}: exists and is not empty: it holds {path.name!r}{strange}: choose "
                "another place"
            )
