"""Where image files lie by name: in a folder, a zip or a tar. Archives are read in memory only.

Archives that are broken, cut short or decompression bombs raise a ValueError.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from softtrunc.data.dataset import Skipped
from softtrunc.data.formats.bounds import BROKEN_TAR, BROKEN_ZIP, refuse_bomb
from softtrunc.data.images.decode import (
    MAX_FILE_BYTES,
    NEEDS_HEIF,
    is_heif_name,
    is_image_name,
    is_image_start,
    too_large,
)
from softtrunc.data.source import Encoded, ImageFiles
from softtrunc.data.splits import name_order, split_of_folder

# An archive of images that unpacks to more than this many times its size is no such thing. All of
# it is never in memory at once.
_MAX_RATIO = 1000

# Bytes of a file by which an image is known.
_START = 16

_LINK = "a link or device, not a file"
_UNNAMED = "an image, but its name has no ending: add one, e.g. .png"
_LEADS_OUT = "its name leads out of the archive: refused"


class FolderFiles(ImageFiles):
    """Every image file below a folder, hidden files and folders left out.

    Where no name ends like an image's, files without an ending are taken for images. Links to
    files are followed, links to folders are not.
    """

    def __init__(self, location: Path) -> None:
        self.location = location
        names: list[str] = []
        bare: list[str] = []
        skipped: list[Skipped] = []

        def unreadable(error: OSError) -> None:
            relative = Path(error.filename).relative_to(location).as_posix()
            skipped.append(Skipped(relative, f"folder cannot be read: {error.strerror}"))

        for folder, folders, files in os.walk(location, onerror=unreadable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(folder).relative_to(location)
            names += [(inside / name).as_posix() for name in files if is_image_name(name)]
            bare += [(inside / name).as_posix() for name in files if _is_bare(name)]
            skipped += _unread_heif((inside / name).as_posix() for name in sorted(files))
        self.names = sorted(names or bare, key=name_order)
        self.bare = not names
        unnamed = () if self.bare else (n for n in bare if is_image_start(_start(location / n)))
        self.skipped = [*skipped, *(Skipped(name, _UNNAMED) for name in sorted(unnamed))]

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Paths: threads read them."""
        for name in sorted(names, key=name_order):
            path = Path(self.location, name)
            try:
                status = path.stat()
            except OSError as error:  # a link to nothing, or to itself
                yield Encoded(name, None, error.strerror or "cannot be read")
                continue
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                yield Encoded(name, None, "not a regular file")
            elif size > MAX_FILE_BYTES:
                yield Encoded(name, None, too_large(size))
            else:
                yield Encoded(name, path)


class OneFile(FolderFiles):
    """A single image file."""

    def __init__(self, path: Path) -> None:
        self.location = path.parent
        self.names = [path.name]
        self.bare = False
        self.skipped = []


class ArchiveFiles(ImageFiles):
    """Every image file in an archive, and as `members` every file.

    Args:
        location: the archive.
        sizes: number of bytes of every file by its name in the archive.
        refused: what is not to be read, by name, and why.
        starts: of files without an ending, how they begin.
    """

    def __init__(
        self,
        location: Path,
        sizes: Mapping[str, int],
        refused: Mapping[str, str],
        starts: Mapping[str, bytes],
    ) -> None:
        self.location = location
        self._new_name = _without_common_folder(list(sizes))
        self._old_name = {new: old for old, new in self._new_name.items()}
        self._sizes = {self._new_name[old]: size for old, size in sizes.items()}
        self.members = sorted(self._sizes, key=name_order)
        images = [name for name in self.members if _is_member_image(name)]
        bare = [name for name in self.members if _is_bare(name)]
        self.names = images or bare
        self.skipped = [Skipped(n, why) for n, why in refused.items() if _is_member_image(n)]
        self.skipped += _unread_heif(self.members)
        if images:
            starts = {self._new_name[old]: start for old, start in starts.items()}
            unnamed = [n for n in bare if is_image_start(starts.get(n, b""))]
            self.skipped += [Skipped(name, _UNNAMED) for name in unnamed]

    def size(self, member: str) -> int:
        """Number of bytes of one of `members`."""
        return self._sizes[member]

    @abstractmethod
    def stream(self, member: str) -> AbstractContextManager[IO[bytes]]:
        """One of `members`, open for reading."""


class _ZipFiles(ArchiveFiles):
    """A zip."""

    def __init__(self, location: Path) -> None:
        try:
            with zipfile.ZipFile(location) as archive:
                infos = archive.infolist()
        except BROKEN_ZIP as error:
            raise ValueError(f"{location}: not a readable zip: {error}") from error
        packed = location.stat().st_size
        refuse_bomb(location, packed, sum(info.file_size for info in infos), _MAX_RATIO)
        sizes: dict[str, int] = {}
        refused: dict[str, str] = {}
        files = [info for info in infos if not info.filename.endswith(("/", "\\"))]
        # Of several with one name the last counts, as where it is read.
        for name, info in {info.filename: info for info in files}.items():
            if stat.S_ISLNK(info.external_attr >> 16):
                refused[name] = _LINK
            elif _leads_out(name):
                refused[name] = _LEADS_OUT
            else:
                sizes[name] = info.file_size
        super().__init__(location, sizes, refused, _zip_starts(location, filter(_is_bare, sizes)))

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        """One of `members`, open for reading."""
        told = f"{self.location}: {member}: cannot be unpacked"
        with zipfile.ZipFile(self.location) as archive:
            try:
                opened = archive.open(self._old_name[member])
            except BROKEN_ZIP as error:
                raise ValueError(f"{told}: {error}") from error
            with opened as stream:
                try:
                    yield stream
                except ValueError:  # of whoever reads: it says itself what is wrong
                    raise
                except BROKEN_ZIP as error:
                    raise ValueError(f"{told}: {error}") from error

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the names."""
        with zipfile.ZipFile(self.location) as archive:
            for name in sorted(names, key=name_order):
                if self._sizes[name] > MAX_FILE_BYTES:
                    yield Encoded(name, None, too_large(self._sizes[name]))
                    continue
                try:
                    content = archive.read(self._old_name[name])
                except BROKEN_ZIP as error:
                    yield Encoded(name, None, f"cannot be unpacked: {error}")
                else:
                    yield Encoded(name, content)


class _TarFiles(ArchiveFiles):
    """A tar (also .gz, .bz2, .xz). Links and devices are skipped."""

    def __init__(self, location: Path) -> None:
        sizes: dict[str, int] = {}
        refused: dict[str, str] = {}
        starts: dict[str, bytes] = {}
        unpacked, packed = 0, location.stat().st_size
        with _opened_tar(location) as archive:
            for member in archive:
                # Before the next header is looked for, for that unpacks what lies between.
                unpacked += member.size
                refuse_bomb(location, packed, unpacked, _MAX_RATIO)
                if _leads_out(member.name):
                    refused[member.name] = _LEADS_OUT
                elif member.isreg():
                    sizes.setdefault(member.name, member.size)
                    if _is_bare(member.name) and (stream := archive.extractfile(member)):
                        starts.setdefault(member.name, stream.read(_START))
                elif not member.isdir():
                    refused[member.name] = _LINK
            _refuse_cut(archive)
        super().__init__(location, sizes, refused, starts)

    def _found(
        self, archive: tarfile.TarFile, names: Collection[str]
    ) -> Iterator[tuple[str, IO[bytes]]]:
        """Files in the order of the archive: going back would unpack it again."""
        wanted = set(names)
        for member in archive:
            name = self._new_name.get(member.name)
            if name in wanted and member.isreg():
                wanted.discard(name)
                stream = archive.extractfile(member)
                assert stream is not None  # a regular file has content
                yield name, stream
            if not wanted:
                return

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the archive."""
        with _opened_tar(self.location) as archive:
            for name, stream in self._found(archive, names):
                if self._sizes[name] > MAX_FILE_BYTES:
                    yield Encoded(name, None, too_large(self._sizes[name]))
                else:
                    yield Encoded(name, stream.read())

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        """One of `members`, open for reading."""
        with _opened_tar(self.location) as archive:
            for _, stream in self._found(archive, [member]):
                yield stream
                return


@contextmanager
def _opened_tar(location: Path | str) -> Iterator[tarfile.TarFile]:
    """A tar open for reading; any way in which it can be broken becomes a ValueError."""
    try:
        archive = tarfile.open(location)  # noqa: SIM115  (closed below)
    except BROKEN_TAR as error:
        raise ValueError(f"{location}: not a readable tar: {error}") from error
    with archive:
        try:
            yield archive
        except BROKEN_TAR as error:
            raise ValueError(f"{location}: broken or cut short: {error}: fetch it again") from error


def _refuse_cut(archive: tarfile.TarFile) -> None:
    """Python takes a broken header for the end; the true end is a block of zeros."""
    stream = archive.fileobj
    assert stream is not None  # it is open
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end of archive after {len(archive.getmembers())} members")


def _zip_starts(location: Path, names: Iterable[str]) -> dict[str, bytes]:
    """How these members begin, as far as they can be unpacked."""
    starts: dict[str, bytes] = {}
    with zipfile.ZipFile(location) as archive:
        for name in names:
            with suppress(*BROKEN_ZIP), archive.open(name) as stream:
                starts[name] = stream.read(_START)
    return starts


def _start(path: Path) -> bytes:
    """How a file begins; nothing if it is none that can be read."""
    if not path.is_file():  # no pipe, which would be waited for
        return b""
    with suppress(OSError), path.open("rb") as stream:
        return stream.read(_START)
    return b""


def _is_member_image(name: str) -> bool:
    name = _posix(name)
    return "__MACOSX" not in name.split("/") and is_image_name(name)


def _posix(name: str) -> str:
    """A name with slashes: some programs for Windows write backslashes, which zip forbids."""
    return name.replace("\\", "/")


def _leads_out(name: str) -> bool:
    """Whether unpacking this would write outside of the folder that it is unpacked into."""
    name = _posix(name)
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def _unread_heif(names: Iterable[str]) -> list[Skipped]:
    """Images whose package is not installed, with what to do."""
    unread = (name for name in names if is_heif_name(name) and not is_image_name(name))
    return [Skipped(name, NEEDS_HEIF) for name in unread]


def _is_bare(name: str) -> bool:
    """Whether a name has no ending (and is not hidden): an image's is then in its content."""
    return "." not in posixpath.basename(_posix(name))


def _without_common_folder(members: Sequence[str]) -> dict[str, str]:
    """Tidy names; a folder that holds the whole archive is dropped unless it names a split.

    So an archive of a folder and that folder itself give the same names, hence the same split.
    """
    tidy = {name: posixpath.normpath(_posix(name)).lstrip("/") for name in members}
    tops = {name.split("/")[0] if "/" in name else None for name in tidy.values()}
    if len(tops) == 1 and (top := tops.pop()) is not None and split_of_folder(top) is None:
        return {name: value[len(top) + 1 :] for name, value in tidy.items()}
    return tidy


def open_archive(location: Path) -> ArchiveFiles:
    """The image files of a zip or tar."""
    return _ZipFiles(location) if zipfile.is_zipfile(location) else _TarFiles(location)
