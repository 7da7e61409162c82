"""Images as they are stored, uint8, or tensors of floats; and a card that says what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor

from softtrunc.data.classes import numbered

# Memory-mapped data are read through in pieces of this size.
_SCAN_BYTES = 64 << 20


@dataclass(frozen=True)
class DataCard:
    """What a split of a data set is.

    - `name`, `split`, `source`: which data, which part, from where.
    - `count`, `channels`, `height`, `width`: its shape.
    - `levels`: number of grey levels, values 0 ... levels - 1; 0: floats on no grid.
    - `preprocessing`: what was done to the stored images.
    - `fingerprint`: SHA-256 over shape, levels and pixels; two splits with one fingerprint are
      the same data wherever they lie. Of floats over shape, type and values.
    - `classes`: what the labels 0, 1, ... are called; empty: there are none.
    - `label_fingerprint`: SHA-256 over the labels.
    - `value_range`: of floats, the low and high between which they are said to lie; None: images.
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
    value_range: tuple[float, float] | None = None

    @property
    def on_grid(self) -> bool:
        """Whether values are levels, of which there are bits; of floats there is a density."""
        return self.value_range is None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataCard:
        """The card that `dataclasses.asdict` wrote.

        Raises:
            ValueError: if a field is missing, unknown, of another type or out of range.
        """
        fields = {f.name: int if f.type == "int" else str for f in dataclasses.fields(cls)}
        classes, ends = values.get("classes", ()), values.get("value_range")
        told = {"label_fingerprint": "", **values, "classes": "", "value_range": ""}
        wrong = sorted(fields.keys() ^ told.keys()) or sorted(
            name for name, kind in fields.items() if type(told[name]) is not kind
        )
        levels = 2 if ends is None else 0
        least = {"count": 0, "channels": 1, "height": 1, "width": 1, "levels": levels}
        wrong = wrong or [name for name, lowest in least.items() if told[name] < lowest]
        if ends is not None and not is_range(ends):
            wrong.append("value_range")
        if not isinstance(classes, list | tuple) or not all(type(c) is str for c in classes):
            wrong.append("classes")
        if wrong:
            raise ValueError(f"data card: missing, unknown or wrong: {', '.join(wrong)}")
        spread = None if ends is None else (float(ends[0]), float(ends[1]))
        return cls(**told | {"classes": tuple(classes), "value_range": spread})


def is_range(ends: object) -> bool:
    """Whether these are two finite numbers, the low one first."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return False
    known = all(type(end) in (int, float) and math.isfinite(end) for end in ends)
    return known and ends[0] < ends[1]


class Skipped(NamedTuple):
    """A file that was left out, by its name within the source, and why."""

    name: str
    reason: str


# eq=False: comparing arrays element by element gives no single answer; compare fingerprints.
@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One split of a data set.

    - `images`: uint8 (N, C, H, W), or floats within the card's `value_range`; in memory or
      memory-mapped.
    - `card`: what they are.
    - `labels`: int64 (N,), or None where there are none.
    - `skipped`: files that could not be read.
    - `converted`: how many images were changed how, beside cropping and resizing.
    - `unread`: whether the card is of an earlier day: not every pixel was compared with it since.
    - `splits`: which ones the data set has; () where that is not known.
    """

    images: Shaped[np.ndarray, "n c h w"]
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
        _, highest, fingerprint = scan(images, levels, progress)
        if not 2 <= levels <= 256 or highest >= levels:
            raise ValueError(
                f"{source}: levels={levels}: need 2 to 256 and values below it; the largest value "
                f"is {highest:g}"
            )
        n, c, h, w = images.shape
        card = DataCard(name, split, source, n, c, h, w, levels, preprocessing, fingerprint)
        card, numbers = _labelled(card, labels, classes)
        return cls(images, card, numbers, tuple(skipped), dict(converted or {}))

    @classmethod
    def of_floats(
        cls,
        values: Float[np.ndarray, "n c h w"],
        *,
        name: str,
        split: str,
        source: str,
        value_range: tuple[float, float],
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
    ) -> ImageDataset:
        """Wrap tensors that are no images, an autoencoder's latents say, and write their card.

        Args:
            values: float32 or float16 (N, C, H, W), finite, N >= 1, any C.
            name: of the data set, for its card.
            split: "train" or "test".
            source: where they came from, for the card.
            value_range: low and high between which all values lie. A model sees them mapped from
                there to its own range.
            labels: integers, one per example. `classes`: their names; none: their numbers.

        Raises:
            ValueError: if the values are not what they must be.
        """
        if values.dtype not in (np.float32, np.float16) or values.ndim != 4 or 0 in values.shape:
            raise ValueError(
                f"{source}: need float32 or float16 of shape (N, C, H, W), N >= 1, not "
                f"{values.dtype} {values.shape}"
            )
        if not is_range(value_range):
            raise ValueError(f"{source}: value_range={value_range}: need finite low < high")
        low, high = float(value_range[0]), float(value_range[1])
        lowest, highest, fingerprint = scan(values, values.dtype)
        if not low <= lowest <= highest <= high:  # of nan nothing is true
            raise ValueError(
                f"{source}: values from {lowest:g} to {highest:g}, outside of value_range="
                f"[{low:g}, {high:g}]: write the range in which all of them lie"
            )
        n, c, h, w = values.shape
        card = DataCard(name, split, source, n, c, h, w, 0, "none", fingerprint)
        card = dataclasses.replace(card, value_range=(low, high))
        card, numbers = _labelled(card, labels, classes)
        return cls(values, card, numbers)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def batch(self, indices: Int[Tensor, " b"]) -> Shaped[Tensor, "b c h w"]:
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
        head = self.card.levels if self.card.on_grid else self.images.dtype
        found = scan(self.images, head)[2]
        if found != self.card.fingerprint:
            raise ValueError(
                f"{self.card.name} ({self.card.split}): the images have changed: SHA-256 "
                f"{found[:12]}, the card says {self.card.fingerprint[:12]}: prepare them again"
            )


def label_fingerprint(labels: Int64[np.ndarray, " n"]) -> str:
    """SHA-256 over labels."""
    return hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()


def _labelled(
    card: DataCard, labels: np.ndarray | None, classes: Sequence[str]
) -> tuple[DataCard, Int64[np.ndarray, " n"] | None]:
    """A card that knows its labels and what they are called, and the labels."""
    if labels is None:
        return card, None
    if labels.shape != (card.count,):
        raise ValueError(f"{card.source}: {card.count} images but labels of shape {labels.shape}")
    numbers = labels.astype(np.int64)
    known = tuple(classes) or numbered(numbers)
    if known and not 0 <= numbers.min() <= numbers.max() < len(known):
        raise ValueError(
            f"{card.source}: labels from {numbers.min()} to {numbers.max()} for {len(known)} "
            "classes"
        )
    fingerprint = label_fingerprint(numbers)
    return dataclasses.replace(card, classes=known, label_fingerprint=fingerprint), numbers


class Scanned(NamedTuple):
    """The ends of all values, nan if one is, and SHA-256 over the shape, `kind` and the values."""

    lowest: float
    highest: float
    fingerprint: str


def scan(
    values: np.ndarray, kind: object, progress: Callable[[int, int], None] | None = None
) -> Scanned:
    """Read an array through once; `kind` is the number of levels, or the type of floats."""
    digest = hashlib.sha256(f"{values.shape} {kind}".encode())
    lowest, highest, done = math.inf, -math.inf, 0
    for part in pieces(values):
        lowest = float(np.minimum(lowest, part.min()))
        highest = float(np.maximum(highest, part.max()))
        digest.update(part.data)
        done += len(part)
        if progress is not None:
            progress(done, len(values))
    return Scanned(lowest, highest, digest.hexdigest())


def pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array in contiguous parts that fit into memory."""
    rows = max(1, _SCAN_BYTES // max(1, values[0].nbytes))
    for first in range(0, len(values), rows):
        yield np.ascontiguousarray(values[first : first + rows])
