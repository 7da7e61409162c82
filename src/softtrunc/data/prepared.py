"""Prepared data: per split one memory-mapped uint8 array and a JSON card."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.collect import Allocate
from softtrunc.data.dataset import DataCard, ImageDataset, Skipped
from softtrunc.data.splits import check_split

__all__ = ["is_prepared", "open_prepared", "write_prepared"]

_FORMAT = 1


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds at least one prepared split."""
    return any((folder / f"{split}.json").is_file() for split in ("train", "test"))


class _ArrayFile:
    """A .npy of uint8 images that grows to what is asked for and shrinks to what came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: np.memmap | None = None

    def allocate(self, shape: tuple[int, int, int, int]) -> np.ndarray:
        # Asked a second time, the first array is still read from: it lives on without a name.
        self._path.unlink(missing_ok=True)
        self._map = np.lib.format.open_memmap(self._path, "w+", dtype=np.uint8, shape=shape)
        return self._map

    def keep(self, images: np.ndarray) -> None:
        """Make the file hold exactly these images, in part or whole already in it or not."""
        if self._map is None or not np.may_share_memory(images, self._map):
            for first, rows in _in_pieces(images, self.allocate(images.shape)):
                first[:] = rows
        assert self._map is not None  # allocated above at the latest
        self._map.flush()
        offset, row = self._map.offset, self._map[0].nbytes
        # NumPy pads headers so that the number of rows may change in place.
        with self._path.open("r+b") as stream:
            np.lib.format.write_array_header_1_0(
                stream,
                {"descr": "|u1", "fortran_order": False, "shape": images.shape},
            )
            if stream.tell() != offset:
                raise RuntimeError(f"{self._path}: header moved from {offset} to {stream.tell()}")
            stream.truncate(offset + len(images) * row)
            os.fsync(stream.fileno())


def _in_pieces(
    source: np.ndarray, target: np.ndarray, rows: int = 1024
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(target[i : i + rows], source[i : i + rows]) for i in range(0, len(source), rows)]


def write_prepared(
    out: Path,
    splits: Sequence[str],
    read: Callable[[str, Allocate], ImageDataset],
) -> dict[str, DataCard]:
    """Write splits into a new folder that appears whole or not at all.

    Args:
        out: the folder to make; it may exist if it is empty.
        splits: which ones.
        read: gives a split's data; it may write the pixels straight into what its second
            argument allocates, so they need not fit in memory.

    Returns:
        The cards by split.

    Raises:
        ValueError: if `out` exists and is not an empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: exists: choose another folder, or delete it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    cards = {}
    try:
        for split in splits:
            file = _ArrayFile(partial / f"{split}.npy")
            data = read(split, file.allocate)
            file.keep(data.images)
            if data.labels is not None:
                np.save(partial / f"{split}-labels.npy", data.labels, allow_pickle=False)
            content = {
                "format": _FORMAT,
                "card": dataclasses.asdict(data.card),
                "labels": data.labels is not None,
                "skipped": [list(s) for s in data.skipped],
            }
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (partial / f"{split}.json").write_text(text, encoding="utf-8", errors="replace")
            cards[split] = data.card
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cards


def _read_card(path: Path) -> tuple[DataCard, Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"not a card of format {_FORMAT}")
        return DataCard.from_dict(content["card"]), content
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: broken: {error}: prepare the data again") from error


def open_prepared(folder: Path, split: str, *, verify: bool = False) -> ImageDataset:
    """Open a split that `prepare` wrote. Pixels stay on disk, mapped into memory.

    Args:
        folder: the prepared folder.
        split: "train" or "test".
        verify: read every pixel and compare with the fingerprint.

    Raises:
        FileNotFoundError: if that split is not there.
        ValueError: if card and array do not agree, or with `verify` the fingerprint does not.
    """
    check_split(split, folder)
    path = folder / f"{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no prepared {split} split (no {path.name})")
    card, content = _read_card(path)
    shape = (card.count, card.channels, card.height, card.width)
    images = _map(folder / f"{split}.npy")
    if images.dtype != np.uint8 or images.shape != shape:
        raise ValueError(
            f"{folder}: {split}.npy is {images.dtype} {images.shape}, its card says uint8 {shape}: "
            "prepare the data again"
        )
    labels = np.asarray(_map(folder / f"{split}-labels.npy")) if content.get("labels") else None
    if labels is not None and (labels.dtype != np.int64 or labels.shape != shape[:1]):
        raise ValueError(f"{folder}: {split}-labels.npy does not match the images")
    skipped = tuple(Skipped(str(name), str(why)) for name, why in content.get("skipped", ()))
    data = ImageDataset(images, card, labels, skipped)
    if verify:
        data.verify()
    return data


def _map(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: missing: prepare the data again") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: broken or cut short: {error}: prepare it again") from error
    return array
