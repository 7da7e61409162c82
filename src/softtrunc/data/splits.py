"""Which images are for training and which are held out, the same on every machine and day."""

from __future__ import annotations

import hashlib
import re
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


def check_split(split: str, source: object) -> None:
    """Refuse anything but "train" and "test".

    Raises:
        ValueError: for another word.
    """
    if split not in ("train", "test"):
        raise ValueError(f'{source}: split {split!r} is unknown: write "train" or "test"')


def split_of_folder(folder: str) -> str | None:
    """The split that a folder's name stands for, if any: "valid" and "valid_32x32" are "test"."""
    return _FOLDERS.get(_without_size(folder))


def _without_size(folder: str) -> str:
    return _SIZE.sub("", folder.lower())


def _is_held_out(key: str, share: float) -> bool:
    """Decided by the key alone: adding images moves no other image to the other side."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def choose_names(names: Sequence[str], split: str, held_out: float = HELD_OUT) -> list[str]:
    """The names that belong to a split, in their order.

    Where the first folder of some names is a test folder (`test`, `testing`, else `val`,
    `valid`, `validation`), those are the test images; the training images are those in `train`
    or `training`, or all that are in no folder with a split's name. Otherwise the share
    `held_out`, chosen by SHA-256 of the names, is the test split.
    """
    folders = [_without_size(name.split("/")[0]) if "/" in name else "" for name in names]
    train = [n for n, f in zip(names, folders, strict=True) if _FOLDERS.get(f) == "train"]
    held = {f for f in folders if _FOLDERS.get(f) == "test"}
    if held:
        test_folders = held & {"test", "testing"} or held
        if split == "test":
            return [n for n, f in zip(names, folders, strict=True) if f in test_folders]
        return train or [n for n, f in zip(names, folders, strict=True) if f not in _FOLDERS]
    return [n for n in train or names if _is_held_out(n, held_out) == (split == "test")]
