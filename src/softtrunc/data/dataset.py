"""Images as they are stored: uint8 levels and a card that says what they are."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

__all__ = ["DataCard", "ImageDataset"]


@dataclass(frozen=True)
class DataCard:
    """What a split of a data set is.

    - `name`, `split`, `source`: which data, which part, from where.
    - `count`, `channels`, `height`, `width`: its shape.
    - `levels`: number of grey levels, values 0 ... levels - 1.
    - `preprocessing`: what was done to the stored images.
    - `fingerprint`: SHA-256 over shape, levels and pixels; two splits with one fingerprint are
      the same data wherever they lie.
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataCard:
        """The card that `dataclasses.asdict` wrote.

        Raises:
            ValueError: if a field is missing, unknown or of another type.
        """
        fields = {f.name: int if f.type == "int" else str for f in dataclasses.fields(cls)}
        wrong = sorted(fields.keys() ^ values.keys()) or sorted(
            name for name, kind in fields.items() if type(values[name]) is not kind
        )
        if wrong:
            raise ValueError(f"data card: missing, unknown or wrong: {', '.join(wrong)}")
        return cls(**values)


@dataclass(frozen=True)
class ImageDataset:
    """One split of a data set.

    - `images`: uint8 (N, C, H, W), in memory or memory-mapped.
    - `card`: what they are.
    - `labels`: int64 (N,), or None where there are none.
    - `skipped`: files that could not be read, with the reason.
    """

    images: np.ndarray
    card: DataCard
    labels: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()

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
        skipped: tuple[tuple[str, str], ...] = (),
    ) -> ImageDataset:
        """Wrap images and write their card.

        Args:
            images: uint8 (N, C, H, W) with values below `levels`, N >= 1, C 1 or 3.
            name: of the data set.
            split: "train" or "test".
            source: where they came from.
            levels: number of grey levels, 2 to 256.
            preprocessing: what was done to them.
            labels: one per image.
            skipped: files left out, with the reason.

        Raises:
            ValueError: if the images are not what they must be.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"{source}: images must be uint8 of shape (N, 1 or 3, H, W), not "
                f"{images.dtype} {images.shape}"
            )
        if len(images) == 0:
            raise ValueError(f"{source}: no image in the {split} split")
        if not 2 <= levels <= 256 or int(images.max()) >= levels:
            raise ValueError(
                f"{source}: levels={levels}: need 2 to 256 and values below it; the largest value "
                f"is {int(images.max())}"
            )
        card = DataCard(
            name=name,
            split=split,
            source=source,
            count=images.shape[0],
            channels=images.shape[1],
            height=images.shape[2],
            width=images.shape[3],
            levels=levels,
            preprocessing=preprocessing,
            fingerprint=_fingerprint(images, levels),
        )
        return cls(images, card, labels, skipped)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def batch(self, indices: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The images with these numbers, in this order."""
        return torch.from_numpy(np.ascontiguousarray(self.images[indices.numpy()]))


def _fingerprint(images: np.ndarray, levels: int) -> str:
    digest = hashlib.sha256(f"{images.shape} {levels}".encode())
    for first in range(0, len(images), 4096):
        digest.update(np.ascontiguousarray(images[first : first + 4096]).data)
    return digest.hexdigest()
