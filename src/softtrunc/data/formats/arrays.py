"""Images that come as one array: NumPy's .npy and .npz."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from softtrunc.data.formats.folder import files_source
from softtrunc.data.source import ArrayImages, Part, Source, plain_name

__all__ = ["Npz", "array_source", "is_array", "to_nchw"]

# Names under which people keep images and labels, by split.
_IMAGE_KEYS = {
    "train": ("x_train", "train_images", "train_x", "train"),
    "test": ("x_test", "test_images", "test_x", "test", "x_val", "val_images", "val"),
}
_LABEL_KEYS = {
    "train": ("y_train", "train_labels", "train_y"),
    "test": ("y_test", "test_labels", "test_y", "y_val", "val_labels"),
}
_WHOLE_IMAGES = ("images", "arr_0", "x", "data", "samples")
_WHOLE_LABELS = ("labels", "y", "arr_1", "label")


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    bytes_in_header: int

    @property
    def bytes_in_file(self) -> int:
        return self.bytes_in_header + math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...
    def tell(self) -> int: ...


def _read_header(stream: _Readable, where: str) -> _Header:
    """What a .npy says of itself, read before any of it is trusted."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"version {version} of the format")
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, OSError) as error:
        raise ValueError(f"{where}: not a NumPy array that can be read: {error}") from error
    return _Header(shape, dtype, stream.tell())


def _check_header(header: _Header, size: int, where: str) -> None:
    if header.dtype.hasobject:
        raise ValueError(
            f"{where}: holds pickled Python objects, which can run code when read: refused; save a "
            "plain uint8 array"
        )
    if header.bytes_in_file != size:
        raise ValueError(
            f"{where}: says {header.dtype} {header.shape}, that is {header.bytes_in_file:,} bytes, "
            f"but has {size:,}: cut short or edited"
        )


def to_nchw(array: np.ndarray, where: str) -> UInt8[np.ndarray, "n c h w"]:
    """View an array of images as (N, C, H, W).

    Args:
        array: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; where both C-last and
            C-first fit, C-last is meant.
        where: for messages.

    Raises:
        ValueError: for other types and shapes.
    """
    if array.dtype != np.uint8:
        hint = (
            "multiply values in [0, 1] by 255, round, and save with .astype(numpy.uint8)"
            if array.dtype.kind == "f"
            else "save 8-bit levels with .astype(numpy.uint8)"
        )
        raise ValueError(
            f"{where}: {array.dtype} images: bits/dim and sharing need the stored uint8 levels: "
            f"{hint}"
        )
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise ValueError(
        f"{where}: shape {array.shape}: need (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    )


class Npz:
    """The arrays of an .npz, each read whole after its header was checked.

    Args:
        path: where it is, for messages too.
        stream: its content, where that is no file of its own.
    """

    def __init__(self, path: Path, stream: io.BytesIO | None = None) -> None:
        self.path = path
        self._file = path if stream is None else stream
        self.headers: dict[str, _Header] = {}
        with self._open() as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    where = f"{path}: {info.filename}"
                    try:
                        member = archive.open(info)
                    except (RuntimeError, zipfile.BadZipFile) as error:
                        raise ValueError(f"{where}: cannot be unpacked: {error}") from error
                    with member:
                        header = _read_header(member, where)
                    _check_header(header, info.file_size, where)
                    self.headers[info.filename.removesuffix(".npy")] = header

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{self.path}: not a readable .npz: {error}") from error

    def _rewound(self) -> Path | io.BytesIO:
        if not isinstance(self._file, Path):
            self._file.seek(0)
        return self._file

    def read(self, key: str) -> np.ndarray:
        """One array.

        Raises:
            ValueError: if it cannot be read.
        """
        try:
            with np.load(self._rewound(), allow_pickle=False) as arrays:
                array: np.ndarray = arrays[key]
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError) as error:
            raise ValueError(f"{self.path}: {key}: cannot be read: {error}") from error
        return array


def _first(keys: tuple[str, ...], present: Mapping[str, object]) -> str | None:
    return next((key for key in keys if key in present), None)


def _of_npz(npz: Npz, key: str, label_key: str | None) -> ArrayImages:
    images = to_nchw(npz.read(key), f"{npz.path}: {key}")
    labels = None if label_key is None else npz.read(label_key).reshape(-1)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{npz.path}: {len(images)} images in {key}, {len(labels)} in {label_key}")
    return ArrayImages(npz.path, images, labels)


def _whole_npz(npz: Npz) -> ArrayImages:
    """The one array of images, whose name tells no split."""
    key = _first(_WHOLE_IMAGES, npz.headers)
    arrays = [k for k, h in npz.headers.items() if len(h.shape) in (3, 4)]
    if key is None and len(arrays) == 1:
        key = arrays[0]
    if key is None:
        raise ValueError(
            f"{npz.path}: arrays {', '.join(sorted(npz.headers)) or '(none)'}: no telling which "
            "are the images: name them x_train and x_test, or images"
        )
    return _of_npz(npz, key, _first(_WHOLE_LABELS, npz.headers))


def _of_npy(path: Path) -> ArrayImages:
    with path.open("rb") as stream:
        header = _read_header(stream, str(path))
    _check_header(header, path.stat().st_size, str(path))
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return ArrayImages(path, to_nchw(mapped, str(path)))


def is_array(path: Path) -> bool:
    """Whether a file is a .npy or .npz, by its content or, broken as it may be, by its name."""
    if path.suffix.lower() in (".npy", ".npz"):
        return True
    with path.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def array_source(path: Path, held_out: float) -> Source:
    """A .npy or .npz of uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W).

    In an .npz, arrays `x_train` and `x_test` (also `train_images`, `train`, ...) are the splits,
    with labels in `y_train` and `y_test`. Otherwise `images`, `arr_0`, `x`, `data`, `samples` or
    the only such array is divided like a folder of images, by the numbers of its rows.

    Raises:
        ValueError: if it is cut short, holds pickles, or no uint8 images.
    """
    if path.suffix.lower() == ".npz" or zipfile.is_zipfile(path):
        npz = Npz(path)
        keys = {split: _first(names, npz.headers) for split, names in _IMAGE_KEYS.items()}
        if any(keys.values()):

            def opener(split: str, key: str) -> Part:
                return _of_npz(npz, key, _first(_LABEL_KEYS[split], npz.headers)).part()

            parts = {s: functools.partial(opener, s, key) for s, key in keys.items() if key}
            return Source(plain_name(path), "array", str(path), parts)
        images = _whole_npz(npz)
    else:
        images = _of_npy(path)
    advice = "too few images for a SPLIT split: name arrays x_train and x_test in an .npz"
    return dataclasses.replace(files_source(images, "array", held_out), advice=advice)
