"""The files of a release by their names, whether unpacked, packed, or as they were downloaded."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

from softtrunc.data.formats.bounds import refuse_bomb
from softtrunc.data.formats.files import ArchiveFiles

_Place = tuple[Path | ArchiveFiles, str]

# No release has more files in one folder; image folders do, and need not be listed whole.
_FEW = 256


def _few_files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            some = list(itertools.islice(entries, _FEW + 1))
        return sorted(e.name for e in some if _is(e.is_file)) if len(some) <= _FEW else []
    except OSError:  # a folder that may not be read is named where images are looked for
        return []


def _is(question: Callable[[], bool]) -> bool:
    """What an entry of a folder answers; no where it cannot be told, as of a link to itself."""
    try:
        return question()
    except OSError:
        return False


class Members:
    """Files by base name. Iterating gives the names.

    Args:
        location: the folder or archive, for messages.
        places: by base name, the folder or archive and the name within it.
    """

    def __init__(self, location: Path, places: Mapping[str, _Place]) -> None:
        self.location = location
        self._places = places

    @classmethod
    def of_folder(cls, folder: Path) -> Members:
        """The regular files of a folder, or those of its first sub-folder that has the name."""
        places: dict[str, _Place] = {}
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if _is(entry.is_dir))
        for place in (folder, *map(Path, below)):
            for name in _few_files(place):
                places.setdefault(name, (place, name))
        return cls(folder, places)

    @classmethod
    def of_archives(cls, location: Path, archives: Iterable[ArchiveFiles]) -> Members:
        """The files of one or several archives."""
        places: dict[str, _Place] = {}
        for archive in archives:
            for member in archive.members:
                places.setdefault(posixpath.basename(member), (archive, member))
        return cls(location, places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def require(self, names: Sequence[str]) -> None:
        """Refuse a release that is not whole.

        Raises:
            FileNotFoundError: naming the first file that is not there.
        """
        for name in names:
            if name not in self:
                raise FileNotFoundError(f"{self.location}: {name} is missing: fetch it again")

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file, open for reading."""
        place, member = self._places[name]
        if isinstance(place, Path):
            return (place / member).open("rb")
        return place.stream(member)

    def size(self, name: str) -> int:
        """A file's number of bytes."""
        place, member = self._places[name]
        if isinstance(place, Path):
            return (place / member).stat().st_size
        return place.size(member)

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes, str]]:
        """Files one after the other: name, content, and what to call it in messages.

        Raises:
            ValueError: if one unpacks to far more than images do.
        """
        for name in names:
            place, _ = self._places[name]
            if isinstance(place, ArchiveFiles):
                packed = Path(place.location).stat().st_size
                refuse_bomb(f"{self.location}: {name}", packed, self.size(name))
            with self.open(name) as stream:
                yield name, stream.read(), f"{self.location}: {name}"


def count_records(size: int, record: int, where: str) -> int:
    """How many images of `record` bytes a file of `size` bytes holds."""
    if not size or size % record:
        raise ValueError(
            f"{where}: {size:,} bytes are not a whole number of images of {record:,} bytes: cut "
            "short; fetch it again"
        )
    return size // record


def check_labels(labels: object, count: int, allowed: range, where: str) -> Int64[np.ndarray, " n"]:
    """One label for each image."""
    found = np.asarray(labels)
    if labels is None or found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"{where}: no list of labels in it")
    if len(found) != count:
        raise ValueError(f"{where}: {len(found):,} labels for {count:,} images")
    wrong = found[(found < allowed.start) | (found >= allowed.stop)]
    if len(wrong):
        raise ValueError(
            f"{where}: label {wrong[0]} is outside {allowed.start} ... {allowed.stop - 1}"
        )
    return found.astype(np.int64)
