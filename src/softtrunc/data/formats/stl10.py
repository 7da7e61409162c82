"""STL-10 in its binary form (Coates, Ng and Lee, 2011)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from softtrunc.data.formats.members import Members, check_labels, count_records
from softtrunc.data.source import Encoded, ImageFiles, Part, Source, rows_by_file

_SIDE = 96
_RECORD = 3 * _SIDE * _SIDE
_PARTS = {"train": ("train_X.bin", "unlabeled_X.bin"), "test": ("test_X.bin",)}
_TEST_LABELS = "test_y.bin"


def stl10_source(members: Members) -> Source | None:
    """STL-10, if it is that: `train` is the 5,000 labelled, then the 100,000 unlabelled images.

    Only the test split has labels (0 ... 9; the files count from 1).
    """
    if not any(name in members for files in _PARTS.values() for name in files):
        return None

    def opener(split: str) -> Part:
        members.require(_PARTS[split])
        images = _Records(members, _PARTS[split])
        if split == "test" and _TEST_LABELS in members:
            ((_, content, where),) = members.read([_TEST_LABELS])
            labels = np.frombuffer(content, np.uint8)
            images.labels = check_labels(labels, len(images.names), range(1, 11), where) - 1
        return images.part()

    return Source("stl10", "stl10", str(members.location), _PARTS, opener)


class _Records(ImageFiles):
    """Images of a fixed number of bytes, one after the other, read front to back."""

    def __init__(self, members: Members, files: Sequence[str]) -> None:
        self.location = members.location
        self._members = members
        self.names = [
            f"{file}/{row}"
            for file in files
            for row in range(
                count_records(members.size(file), _RECORD, f"{members.location}: {file}")
            )
        ]

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Pixels: the files hold planes of red, green and blue, each column by column."""
        for file, rows in rows_by_file(names).items():
            with self._members.open(file) as stream:
                for row in rows:
                    stream.seek(row * _RECORD)
                    content = stream.read(_RECORD)
                    planes = np.frombuffer(content, np.uint8).reshape(3, _SIDE, _SIDE)
                    yield Encoded(f"{file}/{row}", planes.transpose(2, 1, 0))
