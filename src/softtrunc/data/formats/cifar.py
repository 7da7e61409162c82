"""CIFAR-10 and CIFAR-100, pickled or binary, and the batches of the downsampled ImageNet."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from softtrunc.data.dataset import Skipped
from softtrunc.data.formats.arrays import Npz
from softtrunc.data.formats.members import Members
from softtrunc.data.formats.unpickle import unpickle
from softtrunc.data.source import ArrayImages, Encoded, Part, Source

__all__ = ["cifar_source", "find_cifar", "find_imagenet", "imagenet_source"]


class _Cifar(NamedTuple):
    """One of the four forms: its files, its classes, and where the labels are."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: int
    label_key: str = ""  # of a pickle
    label_bytes: int = 0  # before each image of a binary file; the last one counts


_CIFAR = (
    _Cifar(
        "cifar10",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        10,
        label_key="labels",
    ),
    _Cifar(
        "cifar10",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        10,
        label_bytes=1,
    ),
    _Cifar("cifar100", ("train",), ("test",), 100, label_key="fine_labels"),
    _Cifar("cifar100", ("train.bin",), ("test.bin",), 100, label_bytes=2),
)


def find_cifar(members: Members) -> _Cifar | None:
    """Which form of CIFAR is among the files, if any.

    Raises:
        ValueError: if there is more than one.
    """
    found = [
        form
        for form in _CIFAR
        if any(name in members for name in form.train) or any(n in members for n in form.test)
    ]
    # Any file may be called "train": CIFAR-100's come with the list of their classes.
    found = [f for f in found if f.label_key != "fine_labels" or "meta" in members]
    if len(found) > 1:
        forms = ", ".join(form.train[0] for form in found)
        raise ValueError(
            f"{members.location}: several data sets ({forms}): give the folder or archive of one"
        )
    return found[0] if found else None


def cifar_source(members: Members, form: _Cifar) -> Source:
    """CIFAR-10 or CIFAR-100 with labels (of CIFAR-100 the fine ones)."""

    def opener(names: Sequence[str]) -> Part:
        missing = [name for name in names if name not in members]
        if missing:
            raise FileNotFoundError(f"{members.location}: {missing[0]} is missing: fetch it again")
        read = _binary_batch if form.label_bytes else _pickled_batch
        batches = [
            read(content, f"{members.location}: {name}", form)
            for name, content in zip(names, members.read_all(names), strict=True)
        ]
        images = np.concatenate([batch[0] for batch in batches])
        labels = np.concatenate([batch[1] for batch in batches])
        return Part(ArrayImages(members.location, images), _rows(len(images)), labels)

    parts = {"train": form.train, "test": form.test}
    return Source(
        name=form.name,
        kind=form.name,
        location=str(members.location),
        parts={split: functools.partial(opener, names) for split, names in parts.items()},
    )


def _rows(count: int) -> list[str]:
    return [str(row) for row in range(count)]


_Batch = tuple[UInt8[np.ndarray, "n c h w"], Int64[np.ndarray, " n"]]


def _pickled_batch(content: bytes, where: str, form: _Cifar) -> _Batch:
    batch = unpickle(content, where)
    images = _square(batch.get("data"), where)
    if images.shape[2] != 32:
        raise ValueError(f"{where}: images of {images.shape[2]}x{images.shape[2]}, not 32x32")
    return images, _labels(batch.get(form.label_key), len(images), range(form.classes), where)


def _binary_batch(content: bytes, where: str, form: _Cifar) -> _Batch:
    record = form.label_bytes + 3 * 32 * 32
    if not content or len(content) % record:
        raise ValueError(
            f"{where}: {len(content):,} bytes are not a whole number of images of {record:,} "
            "bytes: cut short; fetch it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = _labels(rows[:, form.label_bytes - 1], len(rows), range(form.classes), where)
    return rows[:, form.label_bytes :].reshape(-1, 3, 32, 32), labels


def _square(data: object, where: str) -> UInt8[np.ndarray, "n c h w"]:
    """Rows of red, green and blue planes as square images."""
    if not isinstance(data, np.ndarray):
        raise ValueError(f"{where}: no array named data in it: not a batch of images")
    side = int((data.shape[-1] / 3) ** 0.5) if data.ndim == 2 else 0
    if data.dtype != np.uint8 or data.ndim != 2 or 3 * side * side != data.shape[1] or not side:
        raise ValueError(
            f"{where}: data is {data.dtype} {data.shape}, not uint8 (N, 3 x side x side)"
        )
    return data.reshape(-1, 3, side, side)


def _labels(labels: object, count: int, allowed: range, where: str) -> Int64[np.ndarray, " n"]:
    found = np.asarray(labels)
    if labels is None or found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"{where}: no list of labels in it")
    if len(found) != count:
        raise ValueError(f"{where}: {len(found):,} labels for {count:,} images")
    wrong = found[(found < allowed.start) | (found >= allowed.stop)]
    if len(wrong):
        raise ValueError(
            f"{where}: label {wrong[0]} is outside {allowed.start} ... {allowed.stop - 1}"
        )
    return found.astype(np.int64)


_IMAGENET = re.compile(r"(?P<split>train_data_batch_(?P<number>\d+)|val_data)(?P<npz>\.npz)?$")


def find_imagenet(members: Members) -> dict[str, list[str]]:
    """The batches of the newer downsampled ImageNet by split, in order; else empty."""
    found: dict[str, list[str]] = {}
    for name in members:
        if (match := _IMAGENET.fullmatch(name)) is not None:
            found.setdefault("train" if match["number"] else "test", []).append(name)
    for names in found.values():
        names.sort(key=lambda name: (int("".join(re.findall(r"_(\d+)", name)) or 0), name))
        numbers = [name.removesuffix(".npz") for name in names]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"{members.location}: batches both as .npz and pickled: keep one kind")
    return found


def imagenet_source(members: Members, found: Mapping[str, Sequence[str]]) -> Source:
    """The newer downsampled ImageNet (Chrabaszcz et al. 2017); labels from 0."""

    def opener(split: str) -> Part:
        images = _Batches(members, found[split])
        return Part(images, images.names, images.labels)

    return Source(
        name="imagenet-npz",
        kind="imagenet",
        location=str(members.location),
        parts={split: functools.partial(opener, split) for split in found},
    )


class _Batches:
    """Batches too large to hold together: one is in memory at a time."""

    def __init__(self, members: Members, files: Sequence[str]) -> None:
        self.location = members.location
        self.skipped: Sequence[Skipped] = ()
        self._members = members
        self._files = files
        labels = []
        names: list[str] = []
        for file, content in zip(files, members.read_all(files), strict=True):
            where = f"{members.location}: {file}"
            get = _getter(content, where)
            # Labels alone: the images of an .npz stay packed.
            count = get.rows()
            labels.append(_labels(get("labels"), count, range(1, 1001), where) - 1)
            names += [f"{file}/{row}" for row in range(count)]
        self.names: Sequence[str] = names
        self.labels = np.concatenate(labels)

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Pixels, batch after batch."""
        wanted: dict[str, list[int]] = {}
        for name in names:
            file, _, row = name.rpartition("/")
            wanted.setdefault(file, []).append(int(row))
        files = [file for file in self._files if file in wanted]
        for file, content in zip(files, self._members.read_all(files), strict=True):
            where = f"{self.location}: {file}"
            images = _square(_getter(content, where)("data"), where)
            for number in sorted(wanted[file]):
                yield Encoded(f"{file}/{number}", images[number].transpose(1, 2, 0))


class _getter:  # noqa: N801  (reads as a function)
    """Values of a batch by name."""

    def __init__(self, content: bytes, where: str) -> None:
        self._where = where
        self._npz: Npz | None = None
        self._values: Mapping[str, Any] = {}
        if content.startswith(b"PK"):
            self._npz = Npz(Path(where), io.BytesIO(content))
        else:
            self._values = unpickle(content, where)

    def __call__(self, key: str) -> Any:
        if self._npz is None:
            return self._values.get(key)
        return self._npz.read(key) if key in self._npz.headers else None

    def rows(self) -> int:
        if self._npz is None:
            return len(_square(self._values.get("data"), self._where))
        header = self._npz.headers.get("data")
        if header is None:
            raise ValueError(f"{self._where}: no array named data in it: not a batch of images")
        return int(header.shape[0])
