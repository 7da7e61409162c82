"""One door to every data set: a name or a path."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from softtrunc.data.arrays import load_array
from softtrunc.data.collect import Allocate, Progress, in_memory
from softtrunc.data.dataset import DataCard, ImageDataset
from softtrunc.data.digits import load_digits_split
from softtrunc.data.files import open_files
from softtrunc.data.folder import load_files
from softtrunc.data.idx import find_idx, load_idx
from softtrunc.data.prepared import is_prepared, open_prepared, write_prepared
from softtrunc.data.splits import check_split

__all__ = ["Kind", "kind_of", "open_dataset", "prepare"]

Kind = str
"""One of "digits", "prepared", "idx", "array", "archive", "folder"."""

_ALLOWED = (
    'write "digits", or the path of a folder of images, a zip or tar of images, a .npy or .npz of '
    "uint8 images, a folder of MNIST-like IDX files, or a prepared folder"
)


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error):
        return False


def kind_of(source: str | Path) -> Kind:
    """How a source will be read.

    Raises:
        FileNotFoundError: if it is neither "digits" nor an existing path.
        ValueError: if the path is of no kind that is read.
    """
    path = Path(source)
    if str(source) == "digits":
        return "digits"
    if path.is_dir():
        if is_prepared(path):
            return "prepared"
        return "idx" if find_idx(path) else "folder"
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such data: {_ALLOWED}")
    if path.suffix.lower() in (".npy", ".npz"):
        return "array"
    if zipfile.is_zipfile(path) or _is_tar(path):
        return "archive"
    raise ValueError(f"{source}: not a kind of file that is read, or broken: {_ALLOWED}")


def _open(
    source: str | Path,
    split: str,
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    allocate: Allocate,
    progress: Progress | None,
) -> ImageDataset:
    check_split(split, source)
    if channels not in (None, 1, 3):
        raise ValueError(f"{source}: channels={channels}: write 1 (grey), 3 (RGB) or nothing")
    path, kind = Path(source), kind_of(source)
    if kind in ("folder", "archive"):
        return load_files(
            open_files(path),
            split,
            image_size=image_size,
            channels=channels,
            allocate=allocate,
            progress=progress,
        )
    if kind == "idx":
        return load_idx(path, split, image_size=image_size, channels=channels)
    if kind == "array":
        return load_array(path, split, image_size=image_size, channels=channels)
    data = load_digits_split(split) if kind == "digits" else open_prepared(path, split)
    card = data.card
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size not in (None, (card.height, card.width)) or channels not in (None, card.channels):
        raise ValueError(
            f"{source}: images are {card.channels} x {card.height} x {card.width}: leave out "
            "data.image_size and data.channels, or set them to this"
        )
    return data


def open_dataset(
    source: str | Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """Open one split of a data set, of whatever kind it turns out to be.

    Args:
        source: "digits"; or the path of a folder, zip or tar of images (`load_folder`,
            `load_archive`), a .npy or .npz (`load_array`), a folder of IDX files (`load_idx`) or
            a prepared folder (`open_prepared`).
        split: "train" or "test".
        image_size: side, or (height, width), to bring images to; None: as they are.
        channels: 1 or 3; None: as they are.
        progress: called with (done, total) while image files are decoded.

    Raises:
        FileNotFoundError: if there are no such data.
        ValueError: if they cannot be read, or not in the shape asked for.
    """
    return _open(source, split, image_size, channels, in_memory, progress)


def prepare(
    source: str | Path,
    out: Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    splits: Sequence[str] = ("train", "test"),
    progress: Progress | None = None,
) -> dict[str, DataCard]:
    """Decode once, train often: write each split as a memory-mapped uint8 .npy and a JSON card.

    Image files are decoded straight to disk, so the data may exceed the memory. The folder
    appears when everything is in it, and not at all if anything fails.

    Args:
        source: as in `open_dataset`.
        image_size: likewise.
        channels: likewise.
        progress: likewise.
        out: the folder to make.
        splits: which ones to write.

    Returns:
        The cards by split.

    Raises:
        ValueError: if `out` is in use, or as `open_dataset`.
    """
    return write_prepared(
        out,
        splits,
        lambda split, allocate: _open(source, split, image_size, channels, allocate, progress),
    )
