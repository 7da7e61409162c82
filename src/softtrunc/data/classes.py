"""What classes are called: the names that data sets give them, and folders that are classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from softtrunc.data.splits import name_order, split_of_folder

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FASHION = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle-boot",
)  # fmt: skip

# Numbers beyond are not of classes.
_MOST = 100_000


def counted(count: int) -> tuple[str, ...]:
    """Names for so many classes that have none: their numbers."""
    return tuple(map(str, range(count)))


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """The numbers of the classes of labels, as names; empty where these are not of classes."""
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    return counted(high + 1) if low >= 0 and high < _MOST else ()


def class_folders(names: Sequence[str]) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
    """Classes by folder: `cat/1.png` and `train/dog/2.png` are of the classes cat and dog.

    Folders of splits and folders that all images share are passed over. There are no classes where
    an image lies in no folder of its own kind, or where most folders hold but one image.

    Args:
        names: POSIX names of images.

    Returns:
        A number for each name, and the names of the classes in the order of the numbers; None and
        nothing if the folders are no classes.
    """
    folders = []
    for name in names:
        parts = unicodedata.normalize("NFC", name).split("/")[:-1]
        folders.append(parts[1:] if parts and split_of_folder(parts[0]) else parts)
    depth = 0
    while folders and all(len(parts) > depth for parts in folders):
        found = {parts[depth] for parts in folders}
        if 2 * len(found) > len(names):
            break
        if len(found) > 1:
            classes = sorted(found, key=name_order)
            number = {name: i for i, name in enumerate(classes)}
            labels = np.array([number[parts[depth]] for parts in folders], dtype=np.int64)
            return labels, tuple(classes)
        depth += 1
    return None, ()
