"""Images, or tensors of floats, that come as one array: .npy, .npz and .safetensors."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Shaped

from softtrunc.data.formats.bounds import BROKEN_ZIP, refuse_bomb
from softtrunc.data.formats.folder import files_source
from softtrunc.data.formats.safetensors import Safetensors
from softtrunc.data.source import ArrayImages, Part, Source, plain_name
from softtrunc.feedback.text import one_line

# Names under which people keep images and labels, by split.
_IMAGE_KEYS = {
    "train": ("x_train", "train_images", "train_x", "train"),
    "test": ("x_test", "test_images", "test_x", "test", "x_val", "val_images", "val"),
}
_LABEL_KEYS = {
    "train": ("y_train", "train_labels", "train_y"),
    "test": ("y_test", "test_labels", "test_y", "y_val", "val_labels"),
}
_WHOLE_IMAGES = ("images", "arr_0", "x", "data", "samples", "latents")
_WHOLE_LABELS = ("labels", "y", "arr_1", "label")


IMAGES_ARE_UINT8 = "images are to be uint8 (multiply values in [0, 1] by 255, and round)"
"""What to do about floats that are images."""


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


def _read_header(stream: IO[bytes] | io.BufferedIOBase, size: int, where: str) -> _Header:
    """What a .npy of `size` bytes says of itself, read and checked before it is trusted."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        if version not in read:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = read[version](stream)
        if any(side < 0 for side in shape):
            raise ValueError(f"a shape of {shape}")
    # The header is a Python literal: one gone wrong ends in nearly any error of its parser.
    except Exception as error:
        reason = one_line(error)
        raise ValueError(f"{where}: not a NumPy array that can be read: {reason}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{where}: holds pickled Python objects, which can run code when read: refused; save a "
            "plain uint8 array"
        )
    promised = stream.tell() + math.prod(shape) * dtype.itemsize
    if promised != size:
        raise ValueError(
            f"{where}: says {dtype} {shape}, that is {promised:,} bytes, but has {size:,}: cut "
            "short or edited"
        )
    return _Header(shape, dtype)


def _to_nchw(array: np.ndarray, where: str) -> Shaped[np.ndarray, "n c h w"]:
    """View images as (N, C, H, W); where both C-last and C-first fit, C-last is meant.

    Floats are no images: they may have any number of channels, and have to come as (N, C, H, W).
    """
    if array.dtype.kind == "f":
        if array.dtype not in (np.float32, np.float16) or array.ndim != 4:
            raise ValueError(
                f"{where}: {array.dtype} values of shape {array.shape}: {IMAGES_ARE_UINT8}; other "
                "data are to be float32 or float16 of shape (N, C, H, W)"
            )
        return array
    if array.dtype != np.uint8:
        raise ValueError(
            f"{where}: {array.dtype} images: bits/dim and sharing need the stored uint8 levels: "
            "save 8-bit levels with .astype(numpy.uint8)"
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
        content: what is in it, where that is no file of its own.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = path
        self._content = content
        self.headers: dict[str, _Header] = {}
        size = path.stat().st_size if content is None else len(content)
        with self._open() as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    where = f"{path}: {info.filename}"
                    refuse_bomb(where, min(info.compress_size, size), info.file_size)
                    try:
                        member = archive.open(info)
                    except BROKEN_ZIP as error:
                        raise ValueError(f"{where}: cannot be unpacked: {error}") from error
                    with member:
                        header = _read_header(member, info.file_size, where)
                    self.headers[info.filename.removesuffix(".npy")] = header

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The arrays' shapes by name."""
        return {key: header.shape for key, header in self.headers.items()}

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(
                self.path if self._content is None else io.BytesIO(self._content)
            )
        except BROKEN_ZIP as error:
            raise ValueError(f"{self.path}: not a readable .npz: {error}") from error

    def read(self, key: str) -> np.ndarray:
        """One array, or a ValueError."""
        try:
            with self._open() as archive, archive.open(f"{key}.npy") as member:
                array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        # Packers and NumPy's parser have errors of all kinds for what is damaged.
        except Exception as error:
            reason = one_line(error)
            raise ValueError(f"{self.path}: {key}: cannot be read: {reason}") from error
        return array


Named = Npz | Safetensors
"""A file of named arrays."""


def _first(keys: tuple[str, ...], present: Collection[str]) -> str | None:
    return next((key for key in keys if key in present), None)


def _of_named(file: Named, key: str, label_key: str | None) -> ArrayImages:
    images = _to_nchw(file.read(key), f"{file.path}: {key}")
    labels = None if label_key is None else file.read(label_key)
    if labels is not None and labels.size != len(images):
        raise ValueError(
            f"{file.path}: {len(images)} images in {key}, {labels.size} in {label_key}"
        )
    if labels is not None and labels.dtype.kind not in "iub":
        raise ValueError(f"{file.path}: {label_key}: {labels.dtype} labels, not whole numbers")
    return ArrayImages(file.path, images, None if labels is None else labels.reshape(-1))


def _whole(file: Named) -> ArrayImages:
    """The one array of images, whose name tells no split."""
    key = _first(_WHOLE_IMAGES, file.shapes)
    arrays = [k for k, shape in file.shapes.items() if len(shape) in (3, 4)]
    if key is None and len(arrays) == 1:
        key = arrays[0]
    if key is None and {"mu", "sigma"} <= file.shapes.keys():
        raise ValueError(
            f"{file.path}: holds statistics of features (mu, sigma) and no images: evaluate "
            "--stats takes them"
        )
    if key is None:
        raise ValueError(
            f"{file.path}: arrays {', '.join(sorted(file.shapes)) or '(none)'}: no telling which "
            "are the images: name them x_train and x_test, or images"
        )
    return _of_named(file, key, _first(_WHOLE_LABELS, file.shapes))


def _of_npy(path: Path) -> ArrayImages:
    with path.open("rb") as stream:
        _read_header(stream, path.stat().st_size, str(path))
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return ArrayImages(path, _to_nchw(mapped, str(path)))


def is_array(path: Path) -> bool:
    """Whether a file is an array, by its content or, broken as it may be, by its name."""
    if path.suffix.lower() in (".npy", ".npz", ".safetensors"):
        return True
    with path.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BROKEN_ZIP:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def array_source(path: Path, held_out: float) -> Source:
    """Arrays of uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), or of floats (N, C, H, W).

    In an .npz or a .safetensors, arrays `x_train` and `x_test` (also `train_images`, `train`, ...)
    are the splits, with labels in `y_train` and `y_test`. Otherwise `images`, `arr_0`, `x`, `data`,
    `samples`, `latents` or the only such array is divided like a folder of images, by the numbers
    of its rows.
    """
    file: Named | None = None
    if path.suffix.lower() == ".safetensors":
        file = Safetensors(path)
    elif path.suffix.lower() == ".npz" or zipfile.is_zipfile(path):
        file = Npz(path)
    if file is not None:
        named = file
        found = {split: _first(names, named.shapes) for split, names in _IMAGE_KEYS.items()}
        keys = {split: key for split, key in found.items() if key is not None}
        if keys:

            def opener(split: str) -> Part:
                label_key = _first(_LABEL_KEYS[split], named.shapes)
                return _of_named(named, keys[split], label_key).part()

            return Source(plain_name(path), "array", str(path), keys, opener)
        images = _whole(named)
    else:
        images = _of_npy(path)
    advice = "too few images for a SPLIT split: name arrays x_train and x_test in an .npz"
    return dataclasses.replace(files_source(images, "array", held_out), advice=advice)
