"""What every data set looks like from here: named images by split, and how to fetch them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped

from softtrunc.data.dataset import ImageDataset, Skipped

Kind = Literal[
    "digits", "fashion16", "prepared", "idx", "array", "archive", "folder", "cifar10", "cifar100",
    "imagenet", "stl10", "celeba", "lmdb", "parquet", "hub",
]  # fmt: skip
"""How a data set is stored."""


class NoSplitError(FileNotFoundError, ValueError):
    """There are data, but not for this split."""


class Encoded(NamedTuple):
    """An image: its name, and what is still to decode, or why there is nothing.

    `content` is a path, the bytes of an image file, or pixels uint8 (H, W, C).
    """

    name: str
    content: Path | bytes | np.ndarray | None
    reason: str = ""


class ImageFiles(ABC):
    """Named images.

    - `location`: the folder, archive or file.
    - `names`: POSIX names relative to the location.
    - `labels`: integers, one per name; None: there are none.
    - `classes`: what the labels 0, 1, ... are called, where that is known.
    - `skipped`: what looked like an image but is none.
    """

    location: Path | str
    names: Sequence[str]
    labels: np.ndarray | None = None
    classes: Sequence[str] = ()
    skipped: Sequence[Skipped] = ()

    @abstractmethod
    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """The images with these names, each once, in whatever order reading them is cheapest."""

    def part(self, names: Sequence[str] | None = None) -> Part:
        """Those with these names as one split, with their labels; None: all."""
        if names is None or self.labels is None:
            return Part(self, self.names if names is None else names, self.labels)
        row_of = {name: row for row, name in enumerate(self.names)}
        return Part(self, names, self.labels[[row_of[name] for name in names]])


@dataclass(frozen=True)
class Part:
    """One split.

    - `files`, `names`: its images, in their order.
    - `labels`: integers, one per name; None: there are none.
    - `data`: the split itself, where nothing is left to do.

    Raises:
        ValueError: if there are not as many labels as images.
    """

    files: ImageFiles
    names: Sequence[str]
    labels: np.ndarray | None = None
    data: ImageDataset | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.shape != (len(self.names),):
            raise ValueError(
                f"{self.files.location}: {len(self.names)} images but labels of shape "
                f"{self.labels.shape}"
            )


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read.

    - `name`: of the data set. `kind`: how it is stored. `location`: where.
    - `splits`: "train", "test", and by any other name what is neither. `open_split`: opens one.
    - `levels`: number of grey levels.
    - `advice`: what may be done about a split that is missing; "SPLIT" in it stands for its name.
    """

    name: str
    kind: Kind
    location: str
    splits: Collection[str]
    open_split: Callable[[str], Part]
    levels: int = 256
    advice: str = ""

    def part(self, split: str) -> Part:
        """Open a split.

        Raises:
            NoSplitError: if there is none of that name.
        """
        if split not in self.splits:
            why = self.advice.replace("SPLIT", split)
            why = why or f"no {split} split, only {', '.join(self.splits)}"
            raise NoSplitError(f"{self.location}: {why}")
        return self.open_split(split)


class ArrayImages(ImageFiles):
    """Images of one array, or tensors of floats; in memory or memory-mapped, named by their row."""

    def __init__(
        self,
        location: Path | str,
        images: Shaped[np.ndarray, "n c h w"],
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.location = location
        self.images = images
        self.labels = labels
        self.classes = classes
        self.names = [str(row) for row in range(len(images))]

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Pixels, in the order of the rows.

        Raises:
            ValueError: if these are floats.
        """
        if self.floats:
            raise ValueError(
                f"{self.location}: floating-point data (docs/latents.md), not images, which are to "
                "be uint8"
            )
        for row in sorted(int(name) for name in names):
            yield Encoded(str(row), self.images[row].transpose(1, 2, 0))

    @property
    def floats(self) -> bool:
        """Whether these are no images but tensors of floats."""
        return bool(self.images.dtype.kind == "f")

    def pick(self, names: Sequence[str]) -> Shaped[np.ndarray, "n c h w"]:
        """The images with these names, in this order; all of them without a copy."""
        return self.images if names == self.names else self.images[[int(name) for name in names]]

    @classmethod
    def finished(cls, data: ImageDataset, location: str) -> Part:
        """A split that is as it is to be."""
        images = cls(location, data.images, data.labels)
        images.skipped = data.skipped
        return Part(images, images.names, data.labels, data)


class JoinedFiles(ImageFiles):
    """Several collections as one; each one's names get its key in front, as a folder."""

    def __init__(self, location: Path | str, files: Mapping[str, ImageFiles]) -> None:
        self.location = location
        self._files = files
        self.names = [f"{key}/{name}" for key, part in files.items() for name in part.names]
        self.skipped = [
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
    parts = {split: source.part(split) for split in source.splits}
    first = next(iter(parts.values()))
    if all(part.files is first.files for part in parts.values()):
        order = {name: row for row, name in enumerate(first.files.names)}
        names = {name for part in parts.values() for name in part.names}
        return Part(first.files, sorted(names, key=lambda n: (order.get(n, len(order)), n)))
    files = JoinedFiles(source.location, {split: part.files for split, part in parts.items()})
    return Part(files, [f"{split}/{name}" for split, part in parts.items() for name in part.names])


def plain_name(location: Path | str) -> str:
    """What a folder or file is called, without its endings."""
    return Path(location).resolve().name.split(".")[0]


def rows_by_file(names: Iterable[str]) -> dict[str, list[int]]:
    """Of names FILE/ROW, the rows by file, sorted."""
    rows: dict[str, list[int]] = {}
    for name in names:
        file, _, row = name.rpartition("/")
        rows.setdefault(file, []).append(int(row))
    return {file: sorted(numbers) for file, numbers in rows.items()}
