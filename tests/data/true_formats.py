"""Writers of data sets in the formats in which they are released, from their descriptions."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _text(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _array_of_python2(array: np.ndarray) -> bytes:
    """The opcodes that Python 2's cPickle, protocol 2, wrote for a uint8 matrix."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text(b"b") + b"\x87R"
        b"(K\x01" + b"".join(map(_number, array.shape)) + b"\x86"
        b"cnumpy\ndtype\n" + _text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + _text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", array.nbytes) + array.tobytes() + b"tb"
    )


def python2_batch(data: np.ndarray, **lists: list[int]) -> bytes:
    """A batch of CIFAR as it was pickled in 2009: byte strings, and an array of rows."""
    labels = b"".join(
        _text(name.encode()) + b"](" + b"".join(map(_number, values)) + b"e"
        for name, values in lists.items()
    )
    names = b"](" + b"".join(_text(b"image_%d.png" % i) for i in range(len(data))) + b"e"
    return (
        b"\x80\x02}("
        + _text(b"batch_label")
        + _text(b"training batch 1 of 5")
        + labels
        + _text(b"data")
        + _array_of_python2(data)
        + _text(b"filenames")
        + names
        + b"u."
    )


def rows(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as rows of red, green and blue planes."""
    return images.reshape(len(images), -1)


def write_cifar10(folder: Path, images: np.ndarray, labels: list[int], per_batch: int = 4) -> None:
    """`cifar-10-batches-py`: the last batch is the test set."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        part = slice(i * per_batch, (i + 1) * per_batch)
        content = python2_batch(rows(images[part]), labels=labels[part])
        (folder / name).write_bytes(content)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]}, protocol=2))


def write_cifar10_binary(folder: Path, images: np.ndarray, labels: list[int]) -> None:
    """`cifar-10-batches-bin`: a label and 3,072 pixels, again and again."""
    folder.mkdir(parents=True, exist_ok=True)
    records = np.concatenate([np.array(labels, np.uint8)[:, None], rows(images)], axis=1)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        (folder / name).write_bytes(part.tobytes())


def write_stl10(folder: Path, images: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    """`stl10_binary`: planes of colour, each column by column; labels from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, stack in images.items():
        # (N, C, H, W): the column is the slow index of a plane.
        (folder / f"{name}_X.bin").write_bytes(stack.transpose(0, 1, 3, 2).tobytes())
    for name, numbers in labels.items():
        (folder / f"{name}_y.bin").write_bytes(bytes(numbers))


def pack(folder: Path, path: Path) -> Path:
    """A folder with its name as a .tar.gz or .zip, the way releases come."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
        return path
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        archive.add(folder, folder.name)
    return path


def write_lmdb(folder: Path, content: dict[bytes, bytes]) -> None:
    """An LSUN folder."""
    import lmdb

    folder.mkdir(parents=True)
    with (
        lmdb.open(str(folder), map_size=64 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in content.items():
            transaction.put(key, value)
