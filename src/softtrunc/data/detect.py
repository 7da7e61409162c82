"""What a source is, told by what is in it.

Every format has a function that gives a `Source`, or None where the data are of another kind. All
raise a ValueError for data of their kind that are broken.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from pathlib import Path

from softtrunc.data.formats.arrays import array_source, is_array
from softtrunc.data.formats.celeba import celeba_source
from softtrunc.data.formats.cifar import cifar_source, imagenet_source
from softtrunc.data.formats.digits import digits_source
from softtrunc.data.formats.fashion16 import fashion16_source
from softtrunc.data.formats.files import FolderFiles, OneFile, open_archive
from softtrunc.data.formats.folder import files_source
from softtrunc.data.formats.hub import SCHEME, hub_source, saved_source
from softtrunc.data.formats.idx import idx_source, is_idx_name
from softtrunc.data.formats.lsun import lmdb_source
from softtrunc.data.formats.members import Members
from softtrunc.data.formats.parquet import is_parquet, parquet_source
from softtrunc.data.formats.stl10 import stl10_source
from softtrunc.data.images.decode import NEEDS_HEIF, is_heif_name, is_image_name
from softtrunc.data.preparing.prepared import prepared_source
from softtrunc.data.source import JoinedFiles, Source, plain_name
from softtrunc.data.splits import HELD_OUT

_ALLOWED = (
    'write "digits", "fashion16", hf://OWNER/NAME, or a path: images in a folder, zip or tar, '
    ".npy, .npz, .safetensors, IDX, Parquet, prepared data, or a data set as released "
    "(docs/data.md)"
)


def _is_archive(path: Path) -> bool:
    try:
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except (EOFError, OSError, zlib.error):
        return False


def _released(members: Members) -> Source | None:
    """A release whose files have names of their own."""
    return cifar_source(members) or imagenet_source(members) or stl10_source(members)


def _open_archive(path: Path, held_out: float) -> Source:
    if celeba := celeba_source(path):
        return celeba
    archive = open_archive(path)
    released = _released(Members.of_archives(path, [archive]))
    return released or files_source(archive, "archive", held_out)


def _open_folder(path: Path, held_out: float) -> Source:
    known = (
        prepared_source(path)
        or saved_source(path, held_out)
        or lmdb_source(path, held_out)
        or parquet_source(path, held_out)
        or idx_source(path)
        or celeba_source(path)
        or _released(Members.of_folder(path))
    )
    if known is not None:
        return known
    files = FolderFiles(path)
    beside_images = files.names and not files.bare
    paths = [] if beside_images else sorted(p for p in path.iterdir() if _is_archive(p))
    if not paths:
        return files_source(files, "folder", held_out)
    if len(paths) == 1:
        return _open_archive(paths[0], held_out)
    # A release in several archives, or one archive of images for each split.
    archives = {p.name.split(".")[0]: open_archive(p) for p in paths}
    released = _released(Members.of_archives(path, archives.values()))
    return released or files_source(JoinedFiles(path, archives), "archive", held_out)


def open_source(source: str | Path, held_out: float = HELD_OUT) -> Source:
    """Find out what a source is, by what is in it.

    Args:
        source: a name or a path.
        held_out: share in [0, 1) that is the test split where the data come without splits.

    Raises:
        FileNotFoundError: if it is neither a name nor an existing path.
        ModuleNotFoundError: if reading it needs a package that is not installed.
        ValueError: if it is of no kind that is read, or broken.
    """
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"{source}: held_out={held_out}: need a share in [0, 1), e.g. 0.1")
    text, path = str(source), Path(source)
    if not text.strip():  # an empty path would be the present folder
        raise FileNotFoundError(f"{text!r}: no such data: {_ALLOWED}")
    if text == "digits":
        return digits_source()
    if text == "fashion16":
        return fashion16_source()
    if text.startswith(SCHEME):
        return hub_source(text, held_out)
    if path.is_dir():
        return _open_folder(path, held_out)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such data: {_ALLOWED}")
    if not path.is_file():  # opening a pipe would wait for somebody to write
        raise ValueError(f"{source}: a pipe, a socket or a device, not a file")
    if is_array(path):
        return array_source(path, held_out)
    if is_parquet(path) and (tables := parquet_source(path, held_out)):
        return tables
    if is_idx_name(path):
        return _open_folder(path.parent, held_out)
    if _is_archive(path):
        return _open_archive(path, held_out)
    if is_image_name(path.name):
        return files_source(OneFile(path), "folder", 0.0, name=plain_name(path))
    if is_heif_name(path.name):
        raise ValueError(f"{source}: {NEEDS_HEIF}")
    raise ValueError(f"{source}: not a kind of file that is read, or broken: {_ALLOWED}")
