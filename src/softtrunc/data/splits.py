"""Which images are for training and which are held out, the same on every machine and day."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

# The share that is held out where the data do not come split.
HELD_OUT = 0.1

_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}

# The downsampled ImageNet comes as train_32x32 and valid_32x32.
_SIZE = re.compile(r"_\d+x\d+$")


# All images, whatever split their folders stand for.
EVERY = "all"


def check_split(split: str, source: object, *more: str) -> None:
    """Refuse anything but "train" and "test", and what else is allowed.

    Raises:
        ValueError: for another word.
    """
    allowed = ("train", "test", *more)
    if split not in allowed:
        words = " or ".join(f'"{word}"' for word in allowed)
        raise ValueError(f"{source}: split {split!r} is unknown: write {words}")


def name_order(name: str) -> tuple[str, str]:
    """The key by which names are sorted: the same for all ways to write an accented letter.

    macOS keeps letters and accents apart in names (NFD), other systems together (NFC).
    """
    return unicodedata.normalize("NFC", name), name


def split_of_folder(folder: str) -> str | None:
    """The split that a folder's name stands for, if any: "valid" and "valid_32x32" are "test"."""
    return _FOLDERS.get(_without_size(folder))


def _without_size(folder: str) -> str:
    return _SIZE.sub("", folder.lower())


# From so many images on one is held out at least.
_SOME = 10


def _place(key: str) -> int:
    """Where a name lies among 2^64 places, by its SHA-256."""
    composed, _ = name_order(key)
    digest = hashlib.sha256(composed.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def _held_out(names: Sequence[str], share: float) -> set[str]:
    """Each decided by its own name: adding images moves no other image to the other side.

    Where that holds nothing out of ten images or more, the nearest to it is held out, which may
    change with the next image.
    """
    held = {name for name in names if _place(name) < share * 2.0**64}
    if not held and share > 0.0 and len(names) >= _SOME:
        held = {min(names, key=lambda name: (_place(name), name))}
    return held


def choose_names(names: Sequence[str], split: str, held_out: float = HELD_OUT) -> list[str]:
    """The names that belong to a split, in their order.

    Where the first folder of some names is a test folder (`test`, `testing`, else `val`,
    `valid`, `validation`), those are the test images; the training images are those in `train`
    or `training`, or all that are in no folder with a split's name. Otherwise the share
    `held_out`, chosen by SHA-256 of the names, is the test split: of ten names or more, one at
    least.
    """
    folders = [_without_size(name.split("/")[0]) if "/" in name else "" for name in names]
    train = [n for n, f in zip(names, folders, strict=True) if _FOLDERS.get(f) == "train"]
    held = {f for f in folders if _FOLDERS.get(f) == "test"}
    if held:
        test_folders = held & {"test", "testing"} or held
        if split == "test":
            return [n for n, f in zip(names, folders, strict=True) if f in test_folders]
        return train or [n for n, f in zip(names, folders, strict=True) if f not in _FOLDERS]
    rest = train or names
    held_names = _held_out(rest, held_out)
    return [n for n in rest if (n in held_names) == (split == "test")]
