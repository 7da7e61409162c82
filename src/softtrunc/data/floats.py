"""Tensors of floats that are no images: an autoencoder's latents, fields, spectrograms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from softtrunc.data.dataset import DataCard, ImageDataset, Skipped, pieces
from softtrunc.data.formats.arrays import IMAGES_ARE_UINT8
from softtrunc.data.protocol import How
from softtrunc.data.ranges import in_pictures
from softtrunc.data.source import ArrayImages, Kind, Part, Source

# Channels whose mean and spread are told.
_TOLD = 8


class _Ends(NamedTuple):
    """The least and the greatest of finite values, and how many are not finite."""

    low: float
    high: float
    broken: int


def _ends(arrays: Iterable[np.ndarray]) -> _Ends:
    low, high, broken = math.inf, -math.inf, 0
    for array in arrays:
        for part in pieces(array):
            known = part[np.isfinite(part)]
            broken += part.size - known.size
            if known.size:
                low, high = min(low, float(known.min())), max(high, float(known.max()))
    return _Ends(low, high, broken)


def suggested_range(low: float, high: float) -> tuple[float, float]:
    """A range to declare: around zero, or from zero on, to two digits, with all values inside."""
    largest = max(abs(low), abs(high)) or 1.0
    digit = 10.0 ** (math.floor(math.log10(largest)) - 1)
    bound = float(f"{math.ceil(largest / digit) * digit:.2g}")
    if bound < largest:  # the two digits fell to the wrong side of a half
        bound = float(f"{(math.ceil(largest / digit) + 1) * digit:.2g}")
    return (-bound if low < 0.0 else 0.0), bound


def open_floats(
    source: Source,
    split: str,
    part: Part,
    files: ArrayImages,
    how: How,
    value_range: tuple[float, float] | None,
    channels: int | None = None,
) -> ImageDataset:
    """One split of an array of floats, as it is.

    The values of all splits are looked at: none may lie outside of the range that is declared.

    Args:
        source: of the array. `split`: which part of it.
        part: the split. `files`: its array.
        how: what images would be brought to; floats are not.
        value_range: low and high between which all values are said to lie.
        channels: how many they are said to have; None: it is not said.

    Raises:
        ValueError: if the range is missing or left, values are not finite, the axes are in the
            order of images, or anything was to be done to the values.
    """
    where, (depth, height, width) = source.location, files.images.shape[1:]
    if how.preset is not None:
        raise ValueError(f"{where}: floating-point data; preset {how.preset.name} is of images")
    size = None if how.fit is None else how.fit.size
    if not {channels, how.channels} <= {None, depth} or size not in (None, (height, width)):
        raise ValueError(
            f"{where}: floating-point data of {depth} x {height} x {width}, which are not resized: "
            "leave out data.image_size and data.channels, or set them to this"
        )
    if width < min(depth, height) and channels is None:
        raise ValueError(
            f"{where}: floats of shape {files.images.shape}: look like (N, H, W, C): "
            f"{IMAGES_ARE_UINT8}; save other data as (N, C, H, W), array.transpose(0, 3, 1, 2), or "
            f"write data.channels={depth} if they are that already"
        )
    every = {id(f): f for f in (source.part(name).files for name in source.splits)}
    ends = _ends(f.images for f in every.values() if isinstance(f, ArrayImages))
    if ends.broken:
        raise ValueError(f"{where}: {ends.broken:,} values are nan or infinite: mend the file")
    said = f"{where}: {files.images.dtype} values from {ends.low:.6g} to {ends.high:.6g}"
    low, high = suggested_range(ends.low, ends.high)
    if value_range is None:
        raise ValueError(
            f"{said}: {IMAGES_ARE_UINT8}; of other data say in which range all values lie: "
            f"--set data.value_range=[{low:g},{high:g}]"
        )
    if not value_range[0] <= ends.low <= ends.high <= value_range[1]:
        raise ValueError(
            f"{said}, outside of data.value_range=[{value_range[0]:g},{value_range[1]:g}]: write "
            f"one in which all lie, e.g. [{low:g},{high:g}], or clip them"
        )
    return ImageDataset.of_floats(
        files.pick(part.names),
        name=source.name,
        split=split,
        source=where,
        value_range=value_range,
        labels=part.labels,
        classes=files.classes,
    )


# eq=False: arrays give no single answer.
@dataclass(frozen=True, eq=False)
class FloatInspection:
    """What `inspect` found in an array of floats.

    - `source`, `kind`: what was looked at.
    - `count`, `train`, `test`: examples, in all and by split.
    - `shape`: (C, H, W) of one. `dtype`: of the values.
    - `lowest`, `highest`: of the finite values. `broken`: how many are nan or infinite.
    - `mean`, `std`: of each of the first eight channels.
    - `value_range`: one that may be declared.
    - `classes`: how many the labels have.
    - `unreadable`: none.
    - `samples`: some examples as pictures, see `softtrunc.data.in_pictures`.
    - `on_grid`: as of a card; never.
    """

    on_grid: ClassVar[bool] = False

    source: str
    kind: Kind
    count: int
    train: int
    test: int
    shape: tuple[int, int, int]
    dtype: str
    lowest: float
    highest: float
    broken: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    classes: int
    unreadable: tuple[Skipped, ...]
    samples: UInt8[np.ndarray, "n 1 h w"]


def inspect_floats(
    source: str | Path, opened: Source, parts: Mapping[str, Part], samples: int
) -> FloatInspection | None:
    """Look through an array of floats; None if it is none.

    Args:
        source: as in `inspect`.
        opened: what it turned out to be.
        parts: its splits.
        samples: how many examples to show.

    Raises:
        ValueError: if no value is finite, or the splits are of several shapes.
    """
    arrays = {
        name: part.files
        for name, part in parts.items()
        if isinstance(part.files, ArrayImages) and part.files.floats
    }
    if not arrays:
        return None
    every = list({id(files): files.images for files in arrays.values()}.values())
    shapes = {(images.shape[1:], str(images.dtype)) for images in every}
    ends = _ends(every)
    if len(arrays) < len(parts) or len(shapes) > 1 or not math.isfinite(ends.low):
        raise ValueError(f"{opened.location}: splits of different kinds or shapes, or no value")
    ((shape, dtype),) = shapes
    mean, std = _by_channel(every)
    value_range = suggested_range(ends.low, ends.high)
    counts = {name: len(part.names) for name, part in parts.items()}
    channels, height, width = shape
    total = sum(counts.values())
    card = DataCard(str(source), "all", "", total, channels, height, width, 0, "none", "")
    card = dataclasses.replace(card, value_range=value_range)
    first, wanted = every[0], min(samples, len(every[0]))
    shown = first[[i * len(first) // wanted for i in range(wanted)]]
    classes = {int(label) for f in arrays.values() for label in np.unique(_labels(f))}
    return FloatInspection(
        source=str(source),
        kind=opened.kind,
        count=total,
        train=counts.get("train", 0),
        test=counts.get("test", 0),
        shape=(channels, height, width),
        dtype=dtype,
        lowest=ends.low,
        highest=ends.high,
        broken=ends.broken,
        mean=mean,
        std=std,
        value_range=value_range,
        classes=len(classes),
        unreadable=(),
        samples=in_pictures(torch.from_numpy(np.array(shown)), card).numpy(),
    )


def _labels(files: ArrayImages) -> np.ndarray:
    return np.zeros(0, dtype=np.int64) if files.labels is None else files.labels


def _by_channel(arrays: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the finite values of each of the first channels."""
    count, total, square = 0.0, 0.0, 0.0
    for array in arrays:
        for part in pieces(array):
            x = part[:, :_TOLD].astype(np.float64)
            known = np.isfinite(x)
            x = np.where(known, x, 0.0)
            count = count + known.sum((0, 2, 3))
            total = total + x.sum((0, 2, 3))
            square = square + (x * x).sum((0, 2, 3))
    count = np.maximum(count, 1.0)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean * mean, 0.0))
    return tuple(mean.tolist()), tuple(std.tolist())
