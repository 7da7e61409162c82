"""Where image files lie by name: in a folder, a zip or a tar. Archives are read in memory only."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from softtrunc.data.dataset import Skipped
from softtrunc.data.images.decode import MAX_FILE_BYTES, is_image_name
from softtrunc.data.source import Encoded, ImageFiles
from softtrunc.data.splits import split_of_folder

__all__ = ["ArchiveFiles", "FolderFiles", "TarFiles", "ZipFiles", "open_archive", "open_files"]

# An archive of images that unpacks to more than this many times its size is no such thing.
_MAX_RATIO = 1000

_LINK = "a link or device, not a file"
_LEADS_OUT = "its name leads out of the archive: refused"


class FolderFiles:
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
        self.names: Sequence[str] = sorted(names or bare)
        self.bare = not names
        self.skipped: Sequence[Skipped] = skipped

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Paths: threads read them."""
        for name in sorted(names):
            path = self.location / name
            try:
                size = path.stat().st_size
            except OSError as error:
                yield Encoded(name, None, error.strerror or "cannot be read")
                continue
            if not path.is_file():
                yield Encoded(name, None, "not a regular file")
            elif size > MAX_FILE_BYTES:
                yield Encoded(name, None, _too_large(size))
            else:
                yield Encoded(name, path)


class ZipFiles:
    """Every image file in a zip.

    Raises:
        ValueError: if it is broken, or unpacks to far more than its size.
    """

    def __init__(self, location: Path) -> None:
        self.location = location
        try:
            with zipfile.ZipFile(location) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise ValueError(f"{location}: not a readable zip: {error}") from error
        _refuse_bomb(location, sum(info.file_size for info in infos))
        plain = {info.filename: info for info in infos if not info.is_dir()}
        skipped = {
            name: _LINK if stat.S_ISLNK(info.external_attr >> 16) else _LEADS_OUT
            for name, info in plain.items()
            if stat.S_ISLNK(info.external_attr >> 16) or _leads_out(name)
        }
        renamed = _without_common_folder([name for name in plain if name not in skipped])
        self._members = {new: plain[name] for name, new in renamed.items()}
        self.members: Sequence[str] = sorted(self._members)
        self.names: Sequence[str] = _images_among(self.members)
        self.skipped: Sequence[Skipped] = _skipped_images(skipped)

    def size(self, member: str) -> int:
        """Number of bytes of one of `members`."""
        return self._members[member].file_size

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        """One of `members`, open for reading.

        Raises:
            ValueError: if it cannot be unpacked, at the latest when it is read.
        """
        try:
            with (
                zipfile.ZipFile(self.location) as archive,
                archive.open(self._members[member]) as stream,
            ):
                yield stream
        except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self.location}: {member}: cannot be unpacked: {error}") from error

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the names."""
        with zipfile.ZipFile(self.location) as archive:
            for name in sorted(names):
                info = self._members[name]
                if info.file_size > MAX_FILE_BYTES:
                    yield Encoded(name, None, _too_large(info.file_size))
                    continue
                try:
                    content = archive.read(info)
                except (
                    RuntimeError,  # encrypted; also NotImplementedError: unknown compression
                    zipfile.BadZipFile,
                    zlib.error,
                    EOFError,
                    OSError,
                ) as error:
                    yield Encoded(name, None, f"cannot be unpacked: {error}")
                else:
                    yield Encoded(name, content)


class TarFiles:
    """Every image file in a tar (also .gz, .bz2, .xz). Links and devices are skipped.

    Raises:
        ValueError: if it is broken or cut short, or unpacks to far more than its size.
    """

    def __init__(self, location: Path) -> None:
        self.location = location
        members: dict[str, int] = {}
        skipped: dict[str, str] = {}
        unpacked = 0
        with _OpenTar(self.location) as archive:
            for member in archive:
                # Before the next header is looked for, for that unpacks what lies between.
                unpacked += member.size
                _refuse_bomb(location, unpacked)
                if _leads_out(member.name):
                    skipped[member.name] = _LEADS_OUT
                elif member.isreg():
                    members.setdefault(member.name, member.size)
                elif not member.isdir():
                    skipped[member.name] = _LINK
            _refuse_cut(archive)
        self._renamed = _without_common_folder(list(members))
        self._sizes = {self._renamed[name]: size for name, size in members.items()}
        self.members: Sequence[str] = sorted(self._sizes)
        self.names: Sequence[str] = _images_among(self.members)
        self.skipped: Sequence[Skipped] = _skipped_images(skipped)

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the archive: going back would unpack it again."""
        wanted = set(names)
        with _OpenTar(self.location) as archive:
            for member in archive:
                name = self._renamed.get(member.name)
                if name not in wanted or not member.isreg():
                    continue
                wanted.discard(name)
                if member.size > MAX_FILE_BYTES:
                    yield Encoded(name, None, _too_large(member.size))
                    continue
                stream = archive.extractfile(member)
                assert stream is not None  # a regular file has content
                yield Encoded(name, stream.read())

    def size(self, member: str) -> int:
        """Number of bytes of one of `members`."""
        return self._sizes[member]

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        """One of `members`, open for reading.

        Raises:
            ValueError: if the archive is broken.
        """
        with _OpenTar(self.location) as archive:
            for info in archive:
                if info.isreg() and self._renamed.get(info.name) == member:
                    stream = archive.extractfile(info)
                    assert stream is not None  # a regular file has content
                    with stream:
                        yield stream
                    return


class _OpenTar:
    """A tar open for reading; any way in which it can be broken becomes a ValueError."""

    def __init__(self, location: Path) -> None:
        self._location = location

    def __enter__(self) -> tarfile.TarFile:
        try:
            self._archive = tarfile.open(self._location)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{self._location}: not a readable tar: {error}") from error
        return self._archive

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._archive.close()
        # lzma and bz2 have errors of their own, none of them a subclass of the others'.
        broken = isinstance(error, (tarfile.TarError, EOFError, OSError, zlib.error))
        if broken or type(error).__name__ == "LZMAError":
            raise ValueError(
                f"{self._location}: broken or cut short: {error}: fetch it again"
            ) from error


def _refuse_cut(archive: tarfile.TarFile) -> None:
    """Python takes a broken header for the end; the true end is a block of zeros."""
    stream = archive.fileobj
    assert stream is not None  # it is open
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end of archive after {len(archive.getmembers())} members")


def _is_member_image(name: str) -> bool:
    return "__MACOSX" not in name.split("/") and is_image_name(name)


def _leads_out(name: str) -> bool:
    """Whether unpacking this would write outside of the folder that it is unpacked into."""
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def _skipped_images(reasons: Mapping[str, str]) -> list[Skipped]:
    return [Skipped(name, why) for name, why in reasons.items() if _is_member_image(name)]


def _is_bare(name: str) -> bool:
    """Whether a name has no ending (and is not hidden): an image's is then in its content."""
    return "." not in posixpath.basename(name)


def _images_among(members: Sequence[str]) -> list[str]:
    images = [name for name in members if _is_member_image(name)]
    return images or [name for name in members if _is_bare(name)]


def _too_large(size: int) -> str:
    return f"{size:,} bytes are too many for an image file"


def _refuse_bomb(location: Path, unpacked: int) -> None:
    packed = location.stat().st_size
    if unpacked > _MAX_RATIO * packed:
        raise ValueError(
            f"{location}: unpacks to {unpacked:,} bytes, over {_MAX_RATIO} times its size: refused "
            "as a decompression bomb"
        )


def _without_common_folder(members: Sequence[str]) -> dict[str, str]:
    """Tidy names; a folder that holds the whole archive is dropped unless it names a split.

    So an archive of a folder and that folder itself give the same names, hence the same split.
    """
    tidy = {name: posixpath.normpath(name).lstrip("/") for name in members}
    tops = {name.split("/")[0] if "/" in name else None for name in tidy.values()}
    if len(tops) == 1 and (top := tops.pop()) is not None and split_of_folder(top) is None:
        return {name: value[len(top) + 1 :] for name, value in tidy.items()}
    return tidy


ArchiveFiles = ZipFiles | TarFiles


def open_archive(location: Path) -> ArchiveFiles:
    """The image files of a zip or tar.

    Raises:
        ValueError: if it is neither, or broken.
    """
    return ZipFiles(location) if zipfile.is_zipfile(location) else TarFiles(location)


def open_files(location: Path) -> ImageFiles:
    """The image files of a folder, zip or tar.

    Raises:
        ValueError: if it is none of these, or broken.
    """
    return FolderFiles(location) if location.is_dir() else open_archive(location)
