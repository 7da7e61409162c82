"""Images as they are stored: uint8 levels and a card that says what they are."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from softtrunc.data.classes import numbered

# Memory-mapped data are read through in pieces of this size.
_SCAN_BYTES = 64 << 20


@dataclass(frozen=True)
class DataCard:
    """What a split of a data set is.

    - `name`, `split`, `source`: which data, which part, from where.
    - `count`, `channels`, `height`, `width`: its shape.
    - `levels`: number of grey levels, values 0 ... levels - 1.
    - `preprocessing`: what was done to the stored images.
    - `fingerprint`: SHA-256 over shape, levels and pixels; two splits with one fingerprint are
      the same data wherever they lie.
    - `classes`: what the labels 0, 1, ... are called; empty: there are none.
    - `label_fingerprint`: SHA-256 over the labels.
    """

    name: str
    split: str
    source: str
    count: int
    channels: int
    height: int
    width: int
    levels: int
    preprocessing: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    label_fingerprint: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataCard:
        """The card that `dataclasses.asdict` wrote.

        Raises:
            ValueError: if a field is missing, unknown, of another type or out of range.
        """
        fields = {f.name: int if f.type == "int" else str for f in dataclasses.fields(cls)}
        classes = values.get("classes", ())
        told = {"label_fingerprint": "", **values, "classes": ""}
        wrong = sorted(fields.keys() ^ told.keys()) or sorted(
            name for name, kind in fields.items() if type(told[name]) is not kind
        )
        least = {"count": 0, "channels": 1, "height": 1, "width": 1, "levels": 2}
        wrong = wrong or [name for name, lowest in least.items() if told[name] < lowest]
        if not isinstance(classes, list | tuple) or not all(type(c) is str for c in classes):
            wrong.append("classes")
        if wrong:
            raise ValueError(f"data card: missing, unknown or wrong: {', '.join(wrong)}")
        return cls(**told | {"classes": tuple(classes)})


class Skipped(NamedTuple):
    """A file that was left out, by its name within the source, and why."""

    name: str
    reason: str


# eq=False: comparing arrays element by element gives no single answer; compare fingerprints.
@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One split of a data set.

    - `images`: uint8 (N, C, H, W), in memory or memory-mapped.
    - `card`: what they are.
    - `labels`: int64 (N,), or None where there are none.
    - `skipped`: files that could not be read.
    - `converted`: how many images were changed how, beside cropping and resizing.
    - `unread`: whether the card is of an earlier day: not every pixel was compared with it since.
    - `splits`: which ones the data set has; () where that is not known.
    """

    images: UInt8[np.ndarray, "n c h w"]
    card: DataCard
    labels: Int64[np.ndarray, " n"] | None = None
    skipped: tuple[Skipped, ...] = ()
    converted: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unread: bool = False
    splits: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        images: np.ndarray,
        *,
        name: str,
        split: str,
        source: str,
        levels: int = 256,
        preprocessing: str = "none",
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
        skipped: Sequence[Skipped] = (),
        converted: Mapping[str, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageDataset:
        """Wrap images and write their card.

        Args:
            images: uint8 (N, C, H, W) with values below `levels`, N >= 1, C 1 or 3.
            name: of the data set, for its card.
            split: "train" or "test".
            source: where the images came from, for the card.
            preprocessing: what was done to them, for the card.
            levels: number of grey levels, 2 to 256.
            labels: integers, one per image. `classes`: their names; none: their numbers.
            skipped: files that could not be read.
            converted: how many images were changed how.
            progress: called with the number of images looked through and their total.

        Raises:
            ValueError: if the images are not what they must be.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"{source}: images must be uint8 of shape (N, 1 or 3, H, W), not "
                f"{images.dtype} {images.shape}"
            )
        if 0 in images.shape:
            raise ValueError(f"{source}: no image in the {split} split (shape {images.shape})")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"{source}: {len(images)} images but labels of shape {labels.shape}")
        highest, fingerprint = _scan(images, levels, progress)
        if not 2 <= levels <= 256 or highest >= levels:
            raise ValueError(
                f"{source}: levels={levels}: need 2 to 256 and values below it; the largest value "
                f"is {highest}"
            )
        n, c, h, w = images.shape
        card = DataCard(name, split, source, n, c, h, w, levels, preprocessing, fingerprint)
        numbers = None if labels is None else labels.astype(np.int64)
        if numbers is not None:
            known = tuple(classes) or numbered(numbers)
            if known and not 0 <= numbers.min() <= numbers.max() < len(known):
                raise ValueError(
                    f"{source}: labels from {numbers.min()} to {numbers.max()} for "
                    f"{len(known)} classes"
                )
            card = dataclasses.replace(
                card, classes=known, label_fingerprint=label_fingerprint(numbers)
            )
        return cls(images, card, numbers, tuple(skipped), dict(converted or {}))

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def batch(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The images with these numbers, in this order, on the CPU."""
        return torch.from_numpy(np.ascontiguousarray(self.images[indices.cpu().numpy()]))

    def classes_of(self, indices: Int[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """The labels of the images with these numbers, in this order, on the CPU.

        Raises:
            ValueError: if there are none.
        """
        if self.labels is None:
            raise ValueError(f"{self.card.name} ({self.card.split}): has no labels")
        return torch.from_numpy(self.labels)[indices.cpu()]

    def verify(self) -> None:
        """Read every pixel and compare with the card's fingerprint.

        Raises:
            ValueError: if these are not the images that the card describes.
        """
        found = _scan(self.images, self.card.levels)[1]
        if found != self.card.fingerprint:
            raise ValueError(
                f"{self.card.name} ({self.card.split}): the images have changed: SHA-256 "
                f"{found[:12]}, the card says {self.card.fingerprint[:12]}: prepare them again"
            )


def label_fingerprint(labels: Int64[np.ndarray, " n"]) -> str:
    """SHA-256 over labels."""
    return hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()


def _scan(
    images: np.ndarray, levels: int, progress: Callable[[int, int], None] | None = None
) -> tuple[int, str]:
    """Largest value and SHA-256 over shape, levels and pixels, in one pass over the data."""
    digest = hashlib.sha256(f"{images.shape} {levels}".encode())
    highest = 0
    rows = max(1, _SCAN_BYTES // max(1, images[0].nbytes))
    for first in range(0, len(images), rows):
        part = np.ascontiguousarray(images[first : first + rows])
        highest = max(highest, int(part.max()))
        digest.update(part.data)
        if progress is not None:
            progress(first + len(part), len(images))
    return highest, digest.hexdigest()
