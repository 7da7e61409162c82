"""The IDX format of the MNIST family, plain or gzipped (LeCun, Cortes and Burges, 1998)."""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from softtrunc.data.formats.bounds import refuse_bomb
from softtrunc.data.source import ArrayImages, Part, Source, plain_name

_UINT8 = 0x08
_TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_BELOW = ("raw", "MNIST/raw", "FashionMNIST/raw")
# What deflate can do at best: a header that promises more than this is wrong.
_MAX_DEFLATE_RATIO = 1032
_NAME = re.compile(r"(?P<family>.*?)(?P<split>train|t10k|test)-images[-.]idx3-ubyte(?P<gz>\.gz)?$")


def _read(stream: io.BufferedIOBase, size: int, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
        raise ValueError(f"{path}: not an IDX file (it starts with {magic.hex() or 'nothing'})")
    if magic[2] != _UINT8:
        found = _TYPES.get(magic[2], f"type {magic[2]:#04x}")
        raise ValueError(f"{path}: IDX of {found}: only unsigned bytes (type 0x08) are images")
    sides = stream.read(4 * magic[3])
    if len(sides) < 4 * magic[3]:
        raise ValueError(f"{path}: cut short within its header")
    shape = tuple(int(side) for side in np.frombuffer(sides, dtype=">u4"))
    expected = math.prod(shape)
    if expected > size * (_MAX_DEFLATE_RATIO if path.suffix == ".gz" else 1):
        raise ValueError(f"{path}: its header promises {shape}, more than the file can hold")
    refuse_bomb(path, size, expected)
    content = stream.read(expected + 1)
    if len(content) != expected:
        what = "more" if len(content) > expected else f"only {len(content):,}"
        raise ValueError(
            f"{path}: its header promises {shape}, that is {expected:,} bytes, but there are "
            f"{what}: fetch it again"
        )
    # Copied, for the bytes themselves are read-only and PyTorch wants to own what it is given.
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def read_idx(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """The array of unsigned bytes in an IDX file, gzipped if its name ends in .gz.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not IDX of unsigned bytes, cut short, or longer than it says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    if path.suffix != ".gz":
        with path.open("rb") as plain:
            return _read(plain, size, path)
    try:
        with gzip.open(path) as unpacked:
            return _read(unpacked, size, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: broken gzip: {error}: fetch it again") from error


def is_idx_name(path: Path) -> bool:
    """Whether a file is called like the images of the MNIST family."""
    return _NAME.fullmatch(path.name) is not None


def _image_files(folder: Path) -> dict[str, Path]:
    """The image files of the MNIST family in a folder, by split ("train", "test"); else empty."""
    found: dict[str, Path] = {}
    families: set[str] = set()
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            families.add(match["family"])
            # Sorted: the unpacked of two comes first and is kept.
            found.setdefault("train" if match["split"] == "train" else "test", path)
    if len(families) > 1:
        raise ValueError(
            f"{folder}: IDX files of several data sets ({', '.join(sorted(families))}): put each "
            "into a folder of its own"
        )
    return found


def idx_source(path: Path) -> Source | None:
    """A data set of the MNIST family: `train-images-idx3-ubyte`, `t10k-...`, plain or .gz.

    The files lie in the folder, or in one below it as in torchvision's `MNIST/raw`; labels are read
    where theirs lie beside. None: there are no such files.
    """
    for below in ("", *_BELOW):
        folder = path / below
        if folder.is_dir() and (found := _image_files(folder)):
            break
    else:
        return None

    def opener(split: str) -> Part:
        path = found[split]
        images = read_idx(path)
        if images.ndim != 3:
            raise ValueError(
                f"{path}: {images.ndim} dimensions: images have 3 (count, height, width)"
            )
        name = path.name.replace("-images", "-labels").replace("idx3-ubyte", "idx1-ubyte")
        beside = path.with_name(name)
        labels = read_idx(beside) if beside.is_file() else None
        return ArrayImages(folder, images[:, None], labels).part()

    missing = "t10k" if "train" in found else "train"
    return Source(
        name=plain_name(folder),
        kind="idx",
        location=str(folder),
        splits=sorted(found, reverse=True),
        open_split=opener,
        advice=f"no {missing}-images-idx3-ubyte[.gz] for the SPLIT split",
    )
