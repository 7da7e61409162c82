"""The files of a release by their names, whether unpacked, packed, or as they were downloaded."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from softtrunc.data.formats.files import ArchiveFiles

__all__ = ["Members"]

_Open = tuple[Path | ArchiveFiles, str]


# No release has more files in one folder; image folders do, and need not be listed whole.
_FEW = 256


def _few_files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            some = list(itertools.islice(entries, _FEW + 1))
        return sorted(e.name for e in some if e.is_file()) if len(some) <= _FEW else []
    except OSError:  # a folder that may not be read is named where images are looked for
        return []


class Members:
    """Files by base name. Iterating gives the names.

    Args:
        location: the folder or archive, for messages.
        places: by base name, the folder or archive and the name within it.
    """

    def __init__(self, location: Path, places: Mapping[str, _Open]) -> None:
        self.location = location
        self._places = places

    @classmethod
    def of_folder(cls, folder: Path) -> Members:
        """The regular files of a folder, or those of its first sub-folder that has the name."""
        places: dict[str, _Open] = {}
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if entry.is_dir())
        for place in (folder, *map(Path, below)):
            for name in _few_files(place):
                places.setdefault(name, (place, name))
        return cls(folder, places)

    @classmethod
    def of_archives(cls, location: Path, archives: Sequence[ArchiveFiles]) -> Members:
        """The files of one or several archives."""
        places: dict[str, _Open] = {}
        for archive in archives:
            for member in archive.members:
                places.setdefault(posixpath.basename(member), (archive, member))
        return cls(location, places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

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

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """The contents of files, one after the other."""
        for name in names:
            with self.open(name) as stream:
                yield stream.read()
