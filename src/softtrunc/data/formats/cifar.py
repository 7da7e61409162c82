"""CIFAR-10 and CIFAR-100, pickled or binary, and the batches of the downsampled ImageNet."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from softtrunc.data.classes import CIFAR10
from softtrunc.data.formats.arrays import Npz
from softtrunc.data.formats.members import Members, check_labels, count_records
from softtrunc.data.formats.unpickle import unpickle
from softtrunc.data.source import ArrayImages, Encoded, ImageFiles, Part, Source, rows_by_file


class _Cifar(NamedTuple):
    """One of the four forms: its files, its classes, and where the labels are."""

    name: Literal["cifar10", "cifar100"]
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: int
    label_key: str = ""  # of a pickle
    label_bytes: int = 0  # before each image of a binary file; the last one counts


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR = (
    _Cifar("cifar10", _BATCHES, ("test_batch",), 10, label_key="labels"),
    _Cifar("cifar10", tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), 10, label_bytes=1),
    _Cifar("cifar100", ("train",), ("test",), 100, label_key="fine_labels"),
    _Cifar("cifar100", ("train.bin",), ("test.bin",), 100, label_bytes=2),
)


def cifar_source(members: Members) -> Source | None:
    """CIFAR-10 or CIFAR-100, if it is one, with labels (of CIFAR-100 the fine ones)."""
    found = [form for form in _CIFAR if any(n in members for n in (*form.train, *form.test))]
    # Any file may be called "train": CIFAR-100's come with the list of their classes.
    found = [f for f in found if f.label_key != "fine_labels" or "meta" in members]
    if not found:
        return None
    if len(found) > 1:
        forms = ", ".join(form.train[0] for form in found)
        raise ValueError(
            f"{members.location}: several data sets ({forms}): give the folder or archive of one"
        )
    form = found[0]

    def opener(split: str) -> Part:
        names = form.train if split == "train" else form.test
        members.require(names)
        read = _binary_batch if form.label_bytes else _pickled_batch
        batches = [read(content, where, form) for _, content, where in members.read(names)]
        images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
        classes = CIFAR10 if form.name == "cifar10" else ()
        return ArrayImages(members.location, images, labels, classes).part()

    return Source(form.name, form.name, str(members.location), ("train", "test"), opener)


_Batch = tuple[UInt8[np.ndarray, "n c h w"], Int64[np.ndarray, " n"]]


def _pickled_batch(content: bytes, where: str, form: _Cifar) -> _Batch:
    batch = unpickle(content, where)
    images = _square(batch.get("data"), where)
    if images.shape[2] != 32:
        raise ValueError(f"{where}: images of {images.shape[2]}x{images.shape[2]}, not 32x32")
    labels = batch.get(form.label_key)
    return images, check_labels(labels, len(images), range(form.classes), where)


def _binary_batch(content: bytes, where: str, form: _Cifar) -> _Batch:
    record = form.label_bytes + 3 * 32 * 32
    count = count_records(len(content), record, where)
    rows = np.frombuffer(content, np.uint8).reshape(count, record)
    labels = check_labels(rows[:, form.label_bytes - 1], count, range(form.classes), where)
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


_IMAGENET = re.compile(r"(?P<split>train_data_batch_(?P<number>\d+)|val_data)(?P<npz>\.npz)?$")


def imagenet_source(members: Members) -> Source | None:
    """The newer downsampled ImageNet (Chrabaszcz et al. 2017), if it is that; labels from 0."""
    found: dict[str, list[str]] = {}
    for name in members:
        if (match := _IMAGENET.fullmatch(name)) is not None:
            found.setdefault("train" if match["number"] else "test", []).append(name)
    for names in found.values():
        names.sort(key=lambda name: (int("".join(re.findall(r"_(\d+)", name)) or 0), name))
        if len({name.removesuffix(".npz") for name in names}) < len(names):
            raise ValueError(f"{members.location}: batches both as .npz and pickled: keep one kind")
    if not found:
        return None
    return Source(
        name="imagenet-npz",
        kind="imagenet",
        location=str(members.location),
        splits=found,
        open_split=lambda split: _ImagenetBatches(members, found[split]).part(),
    )


class _ImagenetBatches(ImageFiles):
    """Batches too large to hold together: one is in memory at a time."""

    def __init__(self, members: Members, files: Sequence[str]) -> None:
        self.location = members.location
        self._members = members
        labels = []
        names: list[str] = []
        for file, content, where in members.read(files):
            batch = _ImagenetBatch(content, where)
            # Labels alone: the images of an .npz stay packed.
            labels.append(check_labels(batch.get("labels"), len(batch), range(1, 1001), where) - 1)
            names += [f"{file}/{row}" for row in range(len(batch))]
        self.names = names
        self.labels = np.concatenate(labels)

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Pixels, batch after batch."""
        wanted = rows_by_file(names)
        for file, content, where in self._members.read(list(wanted)):
            images = _square(_ImagenetBatch(content, where).get("data"), where)
            for row in wanted[file]:
                yield Encoded(f"{file}/{row}", images[row].transpose(1, 2, 0))


class _ImagenetBatch:
    """Values of a batch by name, out of an .npz or a pickle. Its length is that of `data`."""

    def __init__(self, content: bytes, where: str) -> None:
        self._where = where
        self._npz = Npz(Path(where), content) if content.startswith(b"PK") else None
        self._values: Mapping[str, Any] = {} if self._npz else unpickle(content, where)

    def get(self, key: str) -> Any:
        """The value of that name; None: there is none."""
        if self._npz is None:
            return self._values.get(key)
        return self._npz.read(key) if key in self._npz.headers else None

    def __len__(self) -> int:
        if self._npz is not None and "data" in self._npz.headers:
            return self._npz.headers["data"].shape[0]
        return len(_square(self._values.get("data"), self._where))
