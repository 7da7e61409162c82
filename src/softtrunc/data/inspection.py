"""What is in a folder, archive or array of images, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from softtrunc.data.arrays import conform
from softtrunc.data.collect import Progress, collect, decode_each
from softtrunc.data.dataset import ImageDataset, Skipped
from softtrunc.data.decode import Decoded, pair
from softtrunc.data.files import ImageFiles, open_files
from softtrunc.data.open import Kind, kind_of, open_dataset
from softtrunc.data.splits import choose_names

__all__ = ["Inspection", "SigmaMax", "inspect", "largest_distance"]

# Distances are computed among so many images, or fewer where these fill so many bytes.
_SUBSET = 2048
_SUBSET_BYTES = 256 << 20


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


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    - `source`, `kind`: what was looked at.
    - `count`, `train`, `test`: readable images, in all and by split.
    - `sizes`, `modes`: as stored, the most frequent first.
    - `lowest`, `highest`, `levels`: range of the 8-bit values, and how many different ones occur.
    - `duplicates`: images that repeat an earlier one pixel for pixel.
    - `sigma_max`: None with fewer than two images.
    - `unreadable`: files that will be left out, by name.
    """

    source: str
    kind: Kind
    count: int
    train: int
    test: int
    sizes: tuple[SizeCount, ...]
    modes: tuple[ModeCount, ...]
    lowest: int
    highest: int
    levels: int
    duplicates: int
    sigma_max: SigmaMax | None
    unreadable: tuple[Skipped, ...]


class _Record(NamedTuple):
    size: tuple[int, int]
    mode: str
    digest: bytes
    used: bytes  # one bit per value that occurs


def _record(pixels: np.ndarray, size: tuple[int, int], mode: str) -> _Record:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    used = np.bincount(pixels.reshape(-1), minlength=256) > 0
    return _Record(size, mode, digest.digest(), np.packbits(used).tobytes())


def _record_decoded(decoded: Decoded) -> _Record:
    return _record(decoded.pixels, decoded.size, decoded.mode)


def largest_distance(images: UInt8[np.ndarray, "n c h w"], levels: int = 256) -> float:
    """Largest Euclidean distance between two images with values scaled to [0, 1].

    Takes n^2 numbers of memory.
    """
    x = images.reshape(len(images), -1).astype(np.float64)
    x /= levels - 1
    # Distances do not change with the origin, and near it cancel fewer digits.
    x -= x.mean(axis=0)
    square = np.einsum("nd,nd->n", x, x)
    distances = square[:, None] + square[None, :] - 2.0 * (x @ x.T)
    return float(np.sqrt(max(distances.max(), 0.0)))


def _subset_size(shape: tuple[int, ...]) -> int:
    return max(2, min(_SUBSET, _SUBSET_BYTES // (8 * int(np.prod(shape)))))


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` row numbers, evenly spaced."""
    return (
        sorted({i * count // wanted for i in range(wanted)}) if count > wanted else [*range(count)]
    )


def _summary(
    source: str,
    kind: Kind,
    records: Iterable[_Record],
    train: int,
    test: int,
    sigma_max: SigmaMax | None,
    unreadable: Iterable[Skipped],
) -> Inspection:
    records = list(records)
    sizes = Counter(r.size for r in records).most_common()
    modes = Counter(r.mode for r in records).most_common()
    used = np.zeros(256, dtype=bool)
    for record in records:
        used |= np.unpackbits(np.frombuffer(record.used, dtype=np.uint8)).astype(bool)
    values = np.flatnonzero(used)
    return Inspection(
        source=source,
        kind=kind,
        count=len(records),
        train=train,
        test=test,
        sizes=tuple(SizeCount(w, h, n) for (w, h), n in sizes),
        modes=tuple(ModeCount(mode, n) for mode, n in modes),
        lowest=int(values[0]),
        highest=int(values[-1]),
        levels=len(values),
        duplicates=len(records) - len({r.digest for r in records}),
        sigma_max=sigma_max,
        unreadable=tuple(unreadable),
    )


def _inspect_files(
    files: ImageFiles, kind: Kind, size: tuple[int, int] | None, progress: Progress | None
) -> Inspection:
    records: dict[str, _Record] = {}
    unreadable = list(files.skipped)
    results = decode_each(files.read(files.names), _record_decoded, size=None, channels=None)
    for done, (name, result) in enumerate(results, start=1):
        if isinstance(result, Skipped):
            unreadable.append(result)
        else:
            records[name] = result
        if progress is not None:
            progress(done, len(files.names))
    if not records:
        reason = f"; the first, {unreadable[0].name}: {unreadable[0].reason}" if unreadable else ""
        raise ValueError(f"no readable image under {files.location}{reason}")
    names = sorted(records)
    if size is None:
        (width, height), _ = Counter(r.size for r in records.values()).most_common(1)[0]
        size = (height, width)
    grey = all(r.mode in ("1", "L", "LA", "La") for r in records.values())
    sigma_max = None
    if len(names) > 1:
        rows = _spread(len(names), _subset_size((1 if grey else 3, *size)))
        images = collect(files, [names[i] for i in rows], size=size, channels=None).images
        sigma_max = SigmaMax(largest_distance(images), len(images), *size)
    return _summary(
        str(files.location),
        kind,
        records.values(),
        len(set(choose_names(files.names, "train")) & records.keys()),
        len(set(choose_names(files.names, "test")) & records.keys()),
        sigma_max,
        sorted(unreadable),
    )


def _inspect_arrays(
    source: str, kind: Kind, size: tuple[int, int] | None, progress: Progress | None
) -> Inspection:
    splits: dict[str, ImageDataset] = {}
    for split in ("train", "test"):
        # A set with one split only is no mistake here.
        try:
            splits[split] = open_dataset(source, split)
        except FileNotFoundError:
            continue
    if not splits:
        raise ValueError(f"{source}: neither a train nor a test split")
    total = sum(len(data) for data in splits.values())
    records: list[_Record] = []
    subset: list[np.ndarray] = []
    for data in splits.values():
        card = data.card
        share = max(2, _subset_size(data.images.shape[1:]) * len(data) // total)
        subset.append(np.stack([data.images[i] for i in _spread(len(data), share)]))
        for image in data.images:
            mode = "L" if card.channels == 1 else "RGB"
            records.append(_record(image.transpose(1, 2, 0), (card.width, card.height), mode))
            if progress is not None:
                progress(len(records), total)
    sigma_max = None
    levels = next(iter(splits.values())).card.levels
    if total > 1:
        images = np.concatenate([conform(part, size, None) for part in subset])
        height, width = images.shape[2:]
        sigma_max = SigmaMax(largest_distance(images, levels), len(images), height, width)
    return _summary(
        source,
        kind,
        records,
        len(splits.get("train", ())),
        len(splits.get("test", ())),
        sigma_max,
        sorted(s for data in splits.values() for s in data.skipped),
    )


def inspect(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look through a data set of any kind that `open_dataset` reads.

    Args:
        source: as in `open_dataset`.
        image_size: side, or (height, width), at which sigma_max is estimated; None: the most
            frequent size.
        progress: called with (done, total).

    Raises:
        FileNotFoundError: if there are no such data.
        ValueError: if none of it can be read.
    """
    size, kind = pair(image_size), kind_of(source)
    if kind in ("folder", "archive"):
        return _inspect_files(open_files(Path(source)), kind, size, progress)
    return _inspect_arrays(str(source), kind, size, progress)
