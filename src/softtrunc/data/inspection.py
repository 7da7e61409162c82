"""What is in a folder, archive or array of images, before anything is trained on it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped, UInt8

from softtrunc.data.dataset import Skipped
from softtrunc.data.detect import open_source
from softtrunc.data.floats import FloatInspection, inspect_floats
from softtrunc.data.images.collect import Advance, collect, decode_each, nothing_readable
from softtrunc.data.images.decode import Decoded, is_grey
from softtrunc.data.images.fit import Fit, pair
from softtrunc.data.images.pixels import stretch_levels
from softtrunc.data.source import Kind, NoSplitError, Part

# Distances are computed among so many images, or fewer where these fill so many bytes.
_SUBSET = 2048
_SUBSET_BYTES = 256 << 20
_COUNTED = 1 << 20
# Numbers in one product of the distances.
_AT_ONCE = 4 << 20


class SigmaMax(NamedTuple):
    """Largest distance between two of `images` images with values in [0, 1].

    A rule for VE's sigma_max (Song and Ermon 2020, arXiv 2006.09011, technique 1). Of a subset it
    is a lower bound, and it is of images brought to `height` x `width`.
    """

    value: float
    images: int
    height: int
    width: int


@dataclass(frozen=True)
class SizeCount:
    """How many images have a size."""

    width: int
    height: int
    count: int


@dataclass(frozen=True)
class ModeCount:
    """How many images have a mode, in Pillow's words ("L", "RGB", "RGBA", "P", "CMYK", ...)."""

    mode: str
    count: int


# eq=False: arrays give no single answer.
@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` found.

    - `source`, `kind`: what was looked at.
    - `count`, `train`, `test`: readable images, in all and by split.
    - `sizes`, `modes`: as stored, the most frequent first.
    - `lowest`, `highest`, `levels`: range of the 8-bit values, and how many different ones occur.
    - `converted`: how many images are changed how, beside cropping and resizing, to be 8-bit grey
      or RGB.
    - `duplicates`: images that repeat an earlier one pixel for pixel.
    - `sigma_max`: None with fewer than two images.
    - `unreadable`: files that will be left out, by name.
    - `samples`: some images uint8 (N, C, H, W), evenly spaced, values 0 ... 255.
    - `on_grid`: as of a card; always.
    """

    on_grid: ClassVar[bool] = True

    source: str
    kind: Kind
    count: int
    train: int
    test: int
    sizes: tuple[SizeCount, ...]
    modes: tuple[ModeCount, ...]
    converted: Mapping[str, int]
    lowest: int
    highest: int
    levels: int
    duplicates: int
    sigma_max: SigmaMax | None
    unreadable: tuple[Skipped, ...]
    samples: UInt8[np.ndarray, "n c h w"]


class _Tally:
    """What is counted while images go by; nothing of an image is kept but 16 bytes."""

    def __init__(self) -> None:
        self.by_split: Counter[str] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.converted: Counter[str] = Counter()
        self.used = np.zeros(256, dtype=bool)
        self.digests: set[bytes] = set()
        self.unreadable: set[Skipped] = set()

    def add(self, split: str, image: _Looked) -> None:
        self.by_split[split] += 1
        self.sizes[image.size] += 1
        self.modes[image.mode] += 1
        if image.converted:
            self.converted[image.converted] += 1
        self.used |= image.used
        self.digests.add(image.digest)


class _Looked(NamedTuple):
    """What is wanted of one image; `used`: which of the 256 values occur."""

    size: tuple[int, int]
    mode: str
    converted: str
    digest: bytes
    used: np.ndarray


def _look(image: Decoded) -> _Looked:
    digest = hashlib.sha256(repr(image.pixels.shape).encode())
    digest.update(np.ascontiguousarray(image.pixels).data)
    used, flat = np.zeros(256, dtype=bool), image.pixels.reshape(-1)
    # Bit by bit: to count, NumPy makes 8 bytes of each.
    for first in range(0, flat.size, _COUNTED):
        used |= np.bincount(flat[first : first + _COUNTED], minlength=256) > 0
    return _Looked(image.size, image.mode, image.converted, digest.digest()[:16], used)


def largest_distance(images: Shaped[np.ndarray, "n c h w"], span: float = 255.0) -> float:
    """Largest Euclidean distance between two images with values scaled from a span to [0, 1].

    Takes n^2 numbers of memory.
    """
    flat = images.reshape(len(images), -1)
    products = np.zeros((len(images), len(images)))
    some = max(1, _AT_ONCE // len(images))
    for first in range(0, flat.shape[1], some):
        x = flat[:, first : first + some] / np.float64(span)
        # Distances do not change with the origin, and near it cancel fewer digits.
        x -= x.mean(axis=0)
        products += x @ x.T
    square = products.diagonal()
    distances = square[:, None] + square[None, :] - 2.0 * products
    return float(np.sqrt(max(distances.max(), 0.0)))


def estimate_sigma_max(images: Shaped[np.ndarray, "n c h w"], span: float = 255.0) -> SigmaMax:
    """The largest distance among some images, evenly spaced: two at least.

    Args:
        images: at the size at which a model sees them.
        span: the length of the range that their values may take: of 256 levels 255.
    """
    n, channels, height, width = images.shape
    some = images[_spread(n, _subset_size(channels, (height, width)))]
    return SigmaMax(largest_distance(some, span), len(some), height, width)


def _subset_size(channels: int, size: tuple[int, int]) -> int:
    return max(2, min(_SUBSET, _SUBSET_BYTES // (8 * channels * math.prod(size))))


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` row numbers, evenly spaced."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]


def inspect(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    samples: int = 64,
    progress: Advance | None = None,
) -> Inspection | FloatInspection:
    """Look through a data set of any kind that `open_dataset` reads.

    Args:
        source: as in `open_dataset`.
        image_size: side, or (height, width), at which sigma_max is estimated; None: the most
            frequent size.
        samples: how many images to show.
        progress: as in `open_dataset`.

    Returns:
        What was found; of floats, which are no images, something else.

    Raises:
        FileNotFoundError: if there are no such data.
        ValueError: if none of it can be read.
    """
    size, opened = pair(image_size), open_source(source)
    parts: dict[str, Part] = {}
    for split in opened.splits:
        with suppress(NoSplitError):  # a set with one split only is no mistake here
            parts[split] = opened.part(split)
    if found := inspect_floats(source, opened, parts, samples):
        return found
    total, done = sum(len(part.names) for part in parts.values()), 0
    tally = _Tally()
    for split, part in parts.items():
        tally.unreadable.update(part.files.skipped)
        encoded = part.files.read(part.names)
        for _, result in decode_each(encoded, _look, fit=None, channels=None):
            done += 1
            if isinstance(result, Skipped):
                tally.unreadable.add(result)
            else:
                tally.add(split, result)
            if progress is not None:
                progress(done, total)
    unreadable = sorted(tally.unreadable)
    if not tally.sizes:
        raise nothing_readable(opened.location, unreadable)
    if size is None:
        (width, height), _ = tally.sizes.most_common(1)[0]
        size = height, width
    while 16 * 3 * math.prod(size) > _SUBSET_BYTES:  # of large images an estimate at half the size
        size = max(1, size[0] // 2), max(1, size[1] // 2)
    subset = _subset(parts, Fit(size), 1 if all(map(is_grey, tally.modes)) else 3)
    count, values = tally.by_split.total(), np.flatnonzero(tally.used)
    shown = torch.from_numpy(subset[_spread(len(subset), samples)])
    sigma_max = None
    if len(subset) > 1:
        sigma_max = SigmaMax(largest_distance(subset, opened.levels - 1), len(subset), *size)
    return Inspection(
        source=str(source),
        kind=opened.kind,
        count=count,
        train=tally.by_split["train"],
        test=tally.by_split["test"],
        sizes=tuple(SizeCount(w, h, n) for (w, h), n in tally.sizes.most_common()),
        modes=tuple(ModeCount(mode, n) for mode, n in tally.modes.most_common()),
        converted=dict(tally.converted.most_common()),
        lowest=int(values[0]),
        highest=int(values[-1]),
        levels=len(values),
        duplicates=count - len(tally.digests),
        sigma_max=sigma_max,
        unreadable=tuple(unreadable),
        samples=stretch_levels(shown, opened.levels).numpy(),
    )


def _subset(parts: Mapping[str, Part], fit: Fit, channels: int) -> UInt8[np.ndarray, "n c h w"]:
    """Evenly spaced images of every split, at one size."""
    total = sum(len(part.names) for part in parts.values())
    wanted = _subset_size(channels, fit.size)
    found = []
    for part in parts.values():
        share = max(2, wanted * len(part.names) // total)
        names = [part.names[i] for i in _spread(len(part.names), share)]
        with suppress(ValueError):  # a small share may hold nothing but broken files
            found.append(collect(part.files, names, fit=fit, channels=channels).images)
    return np.concatenate(found) if found else np.zeros((0, channels, *fit.size), np.uint8)
