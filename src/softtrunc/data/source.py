"""What every data set looks like from here: named images by split, and how to fetch them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from softtrunc.data.dataset import ImageDataset, Skipped

__all__ = [
    "ArrayImages",
    "Encoded",
    "ImageFiles",
    "JoinedFiles",
    "NoSplitError",
    "Part",
    "Source",
    "joined",
]


class NoSplitError(FileNotFoundError, ValueError):
    """There are data, but not for this split."""


class Encoded(NamedTuple):
    """An image: its name, and what is still to decode, or why there is nothing.

    `content` is a path, the bytes of an image file, or pixels uint8 (H, W, C).
    """

    name: str
    content: Path | bytes | np.ndarray | None
    reason: str = ""


@runtime_checkable
class ImageFiles(Protocol):
    """Named images."""

    @property
    def location(self) -> Path | str:
        """The folder, archive or file."""

    @property
    def names(self) -> Sequence[str]:
        """POSIX names relative to the location."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What looked like an image but is none."""

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """The images with these names, each once, in whatever order reading them is cheapest."""


@dataclass(frozen=True)
class Part:
    """One split.

    - `files`, `names`: its images, in their order.
    - `labels`: integers, one per name; None: there are none.
    """

    files: ImageFiles
    names: Sequence[str]
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read.

    - `name`: of the data set. `kind`: how it is stored. `location`: where.
    - `parts`: opens a split by name: "train", "test", and by any other name what is neither.
    - `levels`: number of grey levels.
    - `advice`: what may be done about a split that is missing; "SPLIT" in it stands for its name.
    """

    name: str
    kind: str
    location: str
    parts: Mapping[str, Callable[[], Part]]
    levels: int = 256
    advice: str = ""

    def part(self, split: str) -> Part:
        """Open a split.

        Raises:
            NoSplitError: if there is none of that name.
        """
        if split not in self.parts:
            why = self.advice.replace("SPLIT", split)
            why = why or f"no {split} split, only {', '.join(self.parts)}"
            raise NoSplitError(f"{self.location}: {why}")
        return self.parts[split]()


class ArrayImages:
    """Images of one array, in memory or memory-mapped, named by their row."""

    def __init__(self, location: Path | str, images: UInt8[np.ndarray, "n c h w"]) -> None:
        self.location = location
        self.images = images
        self.names: Sequence[str] = [str(row) for row in range(len(images))]
        self.skipped: Sequence[Skipped] = ()

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Pixels, in the order of the rows."""
        for row in sorted(int(name) for name in names):
            yield Encoded(str(row), self.images[row].transpose(1, 2, 0))

    @classmethod
    def part(cls, data: ImageDataset, location: str) -> Part:
        """A data set as a split of a source."""
        images = cls(location, data.images)
        images.skipped = data.skipped
        return Part(images, images.names, data.labels)


class JoinedFiles:
    """Several collections as one; each one's names get its key in front, as a folder."""

    def __init__(self, location: Path | str, files: Mapping[str, ImageFiles]) -> None:
        self.location = location
        self._files = files
        self.names: Sequence[str] = [
            f"{k}/{name}" for k, part in files.items() for name in part.names
        ]
        self.skipped: Sequence[Skipped] = [
            Skipped(f"{key}/{s.name}", s.reason)
            for key, part in files.items()
            for s in part.skipped
        ]

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """One collection after the other."""
        wanted: dict[str, list[str]] = {key: [] for key in self._files}
        for name in names:
            key, _, rest = name.partition("/")
            wanted[key].append(rest)
        for key, rest_of in wanted.items():
            for encoded in self._files[key].read(rest_of) if rest_of else ():
                yield encoded._replace(name=f"{key}/{encoded.name}")


def joined(source: Source) -> Part:
    """All images of a source as one split: for data sets that hold nothing out."""
    parts = {split: source.part(split) for split in source.parts}
    first = next(iter(parts.values()))
    if all(part.files is first.files for part in parts.values()):
        return Part(first.files, sorted({name for part in parts.values() for name in part.names}))
    files = JoinedFiles(source.location, {split: part.files for split, part in parts.items()})
    names = [f"{split}/{name}" for split, part in parts.items() for name in part.names]
    return Part(files, names)
