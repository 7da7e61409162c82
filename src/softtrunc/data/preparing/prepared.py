"""Prepared data: per split one memory-mapped uint8 array and a JSON card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.dataset import DataCard, ImageDataset, Skipped, label_fingerprint
from softtrunc.data.source import ArrayImages, Source
from softtrunc.data.splits import check_split
from softtrunc.feedback.files import whole_file, write_bytes
from softtrunc.feedback.json import read_json
from softtrunc.feedback.text import one_line

_FORMAT = 1

# How many blocks of so many bytes are looked at whenever prepared data are opened.
_BLOCKS = 64
_BLOCK = 4096


def prepared_source(folder: Path) -> Source | None:
    """A folder that holds at least one prepared split, if it is one."""
    splits = [split for split in ("train", "test") if (folder / f"{split}.json").is_file()]
    if not splits:
        return None

    card = _read_card(folder / f"{splits[0]}.json")[0]
    return Source(
        name=card.name,
        kind="prepared",
        location=str(folder),
        splits=splits,
        open_split=lambda split: ArrayImages.finished(open_prepared(folder, split), str(folder)),
        levels=card.levels,
        advice="no prepared SPLIT split (no SPLIT.json)",
    )


def write_split(folder: Path, data: ImageDataset, extra: Mapping[str, Any]) -> None:
    """Write labels and card beside `SPLIT.npy`, which is there; `extra` goes beside the card."""
    split = data.card.split
    if data.labels is not None:
        with whole_file(folder / f"{split}-labels.npy") as partial, partial.open("wb") as stream:
            np.save(stream, data.labels, allow_pickle=False)
    content = {
        "format": _FORMAT,
        "card": dataclasses.asdict(data.card),
        "sample": _sample(data.images, data.card),
        "labels": data.labels is not None,
        "labels_sha256": None if data.labels is None else data.card.label_fingerprint,
        "converted": dict(sorted(data.converted.items())),
        **extra,
        "skipped": [list(s) for s in data.skipped],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(folder / f"{split}.json", text.encode("utf-8", errors="replace"))


def _sample(images: np.ndarray, card: DataCard) -> str:
    """SHA-256 over what the card says and blocks evenly spaced over all pixels: read in no time."""
    digest = hashlib.sha256(f"{images.shape} {card.levels} {card.fingerprint}".encode())
    flat = images.reshape(-1)
    for start in np.linspace(0, max(0, flat.size - _BLOCK), _BLOCKS).astype(np.int64):
        digest.update(np.ascontiguousarray(flat[start : start + _BLOCK]).data)
    return digest.hexdigest()


def _read_card(path: Path) -> tuple[DataCard, Mapping[str, Any]]:
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"not a card of format {_FORMAT}")
        return DataCard.from_dict(content["card"]), content
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        reason = one_line(error, 100)
        raise ValueError(f"{path}: broken: {reason}: prepare the data again") from error


def open_prepared(folder: Path, split: str, *, verify: bool = False) -> ImageDataset:
    """Open a split that `prepare` wrote. Pixels stay on disk, mapped into memory.

    Blocks of the pixels are compared with the card. Every pixel is where the array was written
    after its card: by an edit or by a copy. A copy's card is then touched, to be trusted next time.

    Args:
        folder: the prepared folder.
        split: "train" or "test".
        verify: read every pixel and compare with the fingerprint.

    Raises:
        FileNotFoundError: if that split is not there.
        ValueError: if card and array do not agree: the data were edited, or cut short.
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
    if labels is not None and (
        labels.dtype != np.int64
        or labels.shape != shape[:1]
        or content.get("labels_sha256") not in (None, label_fingerprint(labels))
    ):
        raise ValueError(f"{folder}: {split}-labels.npy does not match the images")
    newer = (folder / f"{split}.npy").stat().st_mtime_ns > path.stat().st_mtime_ns
    skipped, converted = _told(content, path)
    data = ImageDataset(images, card, labels, skipped, converted, unread=not (verify or newer))
    if content.get("sample") not in (None, _sample(images, card)):
        raise ValueError(
            f"{folder}: {split}.npy is not what its card describes: one of them was edited after "
            "it was prepared: prepare the data again"
        )
    if verify or newer:
        data.verify()
        with suppress(OSError):  # where nothing may be written, the next time takes as long
            os.utime(path)
    return data


def _told(content: Mapping[str, Any], path: Path) -> tuple[tuple[Skipped, ...], dict[str, int]]:
    """What was left out and what was changed, as the card tells."""
    try:
        skipped = tuple(Skipped(str(name), str(why)) for name, why in content.get("skipped", ()))
        converted = {str(k): int(count) for k, count in content.get("converted", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: broken: {error}: prepare the data again") from error
    return skipped, converted


def _map(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: missing: prepare the data again") from None
    # Its header is a Python literal: one gone wrong ends in nearly any error of its parser.
    except Exception as error:
        reason = one_line(error, 100)
        raise ValueError(f"{path}: broken or cut short: {reason}: prepare it again") from error
    return array
