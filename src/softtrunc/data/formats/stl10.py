"""STL-10 in its binary form (Coates, Ng and Lee, 2011)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from softtrunc.data.dataset import Skipped
from softtrunc.data.formats.members import Members
from softtrunc.data.source import Encoded, Part, Source

__all__ = ["find_stl10", "stl10_source"]

_SIDE = 96
_RECORD = 3 * _SIDE * _SIDE
_TRAIN, _UNLABELLED, _TEST = "train_X.bin", "unlabeled_X.bin", "test_X.bin"
_CLASSES = 10


def find_stl10(members: Members) -> bool:
    """Whether any of its files is there."""
    return any(name in members for name in (_TRAIN, _UNLABELLED, _TEST))


def stl10_source(members: Members) -> Source:
    """STL-10: `train` is the 5,000 labelled and the 100,000 unlabelled images, in this order.

    Only the test split has labels (0 ... 9; the files count from 1).
    """

    def opener(split: str, files: Sequence[str]) -> Part:
        missing = [name for name in files if name not in members]
        if missing:
            raise FileNotFoundError(f"{members.location}: {missing[0]} is missing: fetch it again")
        images = _Records(members, files)
        labels = _labels(members, "test_y.bin", len(images.names)) if split == "test" else None
        return Part(images, images.names, labels)

    parts = {"train": (_TRAIN, _UNLABELLED), "test": (_TEST,)}
    return Source(
        name="stl10",
        kind="stl10",
        location=str(members.location),
        parts={split: functools.partial(opener, split, files) for split, files in parts.items()},
    )


def _labels(members: Members, name: str, count: int) -> Int64[np.ndarray, " n"] | None:
    if name not in members:
        return None
    (content,) = members.read_all([name])
    labels = np.frombuffer(content, np.uint8)
    where = f"{members.location}: {name}"
    if len(labels) != count:
        raise ValueError(f"{where}: {len(labels):,} labels for {count:,} images")
    wrong = labels[(labels < 1) | (labels > _CLASSES)]
    if len(wrong):
        raise ValueError(f"{where}: label {wrong[0]} is outside 1 ... {_CLASSES}")
    return labels.astype(np.int64) - 1


class _Records:
    """Images of a fixed number of bytes, one after the other, read front to back."""

    def __init__(self, members: Members, files: Sequence[str]) -> None:
        self.location = members.location
        self.skipped: Sequence[Skipped] = ()
        self._members = members
        self._files = files
        names: list[str] = []
        for file in files:
            size = members.size(file)
            if not size or size % _RECORD:
                raise ValueError(
                    f"{members.location}: {file}: {size:,} bytes are not a whole number of images "
                    f"of {_RECORD:,} bytes: cut short; fetch it again"
                )
            names += [f"{file}/{row}" for row in range(size // _RECORD)]
        self.names: Sequence[str] = names

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Pixels: the files hold planes of red, green and blue, each column by column."""
        wanted: dict[str, list[int]] = {}
        for name in names:
            file, _, row = name.rpartition("/")
            wanted.setdefault(file, []).append(int(row))
        for file in self._files:
            if file not in wanted:
                continue
            with self._members.open(file) as stream:
                for number in sorted(wanted[file]):
                    stream.seek(number * _RECORD)
                    content = stream.read(_RECORD)
                    planes = np.frombuffer(content, np.uint8).reshape(3, _SIDE, _SIDE)
                    yield Encoded(f"{file}/{number}", planes.transpose(2, 1, 0))
