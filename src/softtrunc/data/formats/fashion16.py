"""Fashion-MNIST at 16x16, the part of it that comes with the package."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np

from softtrunc.data.classes import FASHION
from softtrunc.data.dataset import ImageDataset
from softtrunc.data.source import ArrayImages, Source
from softtrunc.data.splits import check_split

_LOCATION = "softtrunc (Fashion-MNIST, Zalando SE, MIT licence)"


def load_fashion16_split(split: str) -> ImageDataset:
    """12,000 train or 2,000 test images (uint8 (N, 1, 16, 16)) with their labels.

    They are 1,200 of each class of Fashion-MNIST's training images and 200 of each class of its
    test images, drawn once and for all, in the order of the original, and reduced from 28x28 as
    `softtrunc data prepare PATH --size 16` does it. A test fixes the cards' fingerprints.

    Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747), copyright 2017 Zalando SE, MIT licence
    (the text lies beside the file).

    Raises:
        ValueError: if there is no such split.
    """
    check_split(split, "fashion16")
    content = files("softtrunc.data.formats").joinpath("fashion16.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays[split][:, None], arrays[f"{split}_labels"].astype(np.int64)
    return ImageDataset.create(
        images, name="fashion16", split=split, source=_LOCATION, labels=labels, classes=FASHION
    )


def fashion16_source() -> Source:
    """The images, which are as they are to be."""

    return Source(
        name="fashion16",
        kind="fashion16",
        location=_LOCATION,
        splits=("train", "test"),
        open_split=lambda split: ArrayImages.finished(load_fashion16_split(split), _LOCATION),
    )
