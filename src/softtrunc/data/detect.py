"""What a source is, told by what is in it."""

from __future__ import annotations

import functools
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from softtrunc.data.dataset import ImageDataset
from softtrunc.data.formats.arrays import is_array, load_array
from softtrunc.data.formats.celeba import celeba_source, find_partition
from softtrunc.data.formats.cifar import cifar_source, find_cifar, find_imagenet, imagenet_source
from softtrunc.data.formats.digits import load_digits_split
from softtrunc.data.formats.files import FolderFiles, open_archive
from softtrunc.data.formats.folder import files_source
from softtrunc.data.formats.hub import SCHEME, hub_source, is_saved, saved_source
from softtrunc.data.formats.idx import find_idx, idx_folder, is_idx_name, load_idx
from softtrunc.data.formats.lsun import find_lmdb, lmdb_source
from softtrunc.data.formats.members import Members
from softtrunc.data.formats.parquet import find_parquet, is_parquet, parquet_source
from softtrunc.data.formats.stl10 import find_stl10, stl10_source
from softtrunc.data.preparing.prepared import is_prepared, open_prepared
from softtrunc.data.source import ArrayImages, JoinedFiles, Part, Source

__all__ = ["Kind", "kind_of", "open_source"]

Kind = str
"""One of "digits", "prepared", "idx", "array", "archive", "folder", "cifar10", "cifar100",
"imagenet", "stl10", "celeba", "lmdb", "parquet", "hub"."""

_ALLOWED = (
    'write "digits", hf://OWNER/NAME, or the path of a folder, zip or tar of images, a .npy or '
    ".npz of uint8 images, MNIST-like IDX files, CIFAR, downsampled ImageNet, STL-10, CelebA or "
    "LSUN as released, Parquet files, or a prepared folder"
)


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error):
        return False


def _is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or _is_tar(path))


def _loaded(
    kind: Kind, path: str, load: Callable[[str], ImageDataset], splits: Sequence[str]
) -> Source:
    """A source of what is read whole; names and levels are in its cards."""
    first = load(splits[0]).card if kind in ("digits", "prepared") else None

    def opener(split: str) -> Part:
        return ArrayImages.part(load(split), path)

    return Source(
        name=Path(path).resolve().name.split(".")[0] if first is None else first.name,
        kind=kind,
        location=first.source if kind == "digits" and first is not None else path,
        parts={split: functools.partial(opener, split) for split in splits},
        levels=256 if first is None else first.levels,
    )


def _released(members: Members) -> Source | None:
    """A release whose files have names of their own."""
    if (form := find_cifar(members)) is not None:
        return cifar_source(members, form)
    if found := find_imagenet(members):
        return imagenet_source(members, found)
    return stl10_source(members) if find_stl10(members) else None


def _open_archive(path: Path) -> Source:
    partition = find_partition(path)
    if partition is not None:
        return celeba_source(path, partition)
    archive = open_archive(path)
    released = _released(Members.of_archives(path, [archive]))
    return released or files_source(archive, "archive")


def _open_folder(path: Path) -> Source:
    if is_prepared(path):
        splits = [split for split in ("train", "test") if (path / f"{split}.json").is_file()]
        return _loaded("prepared", str(path), lambda split: open_prepared(path, split), splits)
    if is_saved(path):
        return saved_source(path)
    if found := find_lmdb(path):
        return lmdb_source(path, found)
    if tables := find_parquet(path):
        return parquet_source(path, tables)
    if (place := idx_folder(path)) is not None:
        splits = sorted(find_idx(place), reverse=True)
        return _loaded("idx", str(place), lambda split: load_idx(place, split), splits)
    if (partition := find_partition(path)) is not None:
        return celeba_source(path, partition)
    if (released := _released(Members.of_folder(path))) is not None:
        return released
    files = FolderFiles(path)
    archives = [] if files.names and not files.bare else _archives_in(path)
    if len(archives) == 1:
        return _open_archive(archives[0])
    return _open_archives(path, archives) if archives else files_source(files, "folder")


def _archives_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_archive(path))


def _open_archives(folder: Path, paths: Sequence[Path]) -> Source:
    """A release in several archives, or one archive of images for each split."""
    archives = {path.name.split(".")[0]: open_archive(path) for path in paths}
    released = _released(Members.of_archives(folder, list(archives.values())))
    return released or files_source(JoinedFiles(folder, archives), "archive")


def open_source(source: str | Path) -> Source:
    """Find out what a source is, by what is in it.

    Raises:
        FileNotFoundError: if it is neither a name nor an existing path.
        ModuleNotFoundError: if reading it needs a package that is not installed.
        ValueError: if it is of no kind that is read, or broken.
    """
    text, path = str(source), Path(source)
    if text == "digits":
        return _loaded("digits", text, load_digits_split, ("train", "test"))
    if text.startswith(SCHEME):
        return hub_source(text)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such data: {_ALLOWED}")
    if is_array(path):
        splits = ("train", "test")
        return _loaded("array", text, lambda split: load_array(path, split), splits)
    if is_parquet(path):
        return parquet_source(path, {"": [path]})
    if is_idx_name(path):
        return _open_folder(path.parent)
    if _is_archive(path):
        return _open_archive(path)
    raise ValueError(f"{source}: not a kind of file that is read, or broken: {_ALLOWED}")


def kind_of(source: str | Path) -> Kind:
    """How a source will be read.

    Raises:
        FileNotFoundError: if it is neither a name nor an existing path.
        ValueError: if the path is of no kind that is read.
    """
    return open_source(source).kind
