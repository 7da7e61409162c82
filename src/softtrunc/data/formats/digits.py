"""The handwritten digits that scikit-learn carries: 1,797 images of 8x8, 17 grey levels."""

from __future__ import annotations

import numpy as np

from softtrunc.data.dataset import ImageDataset
from softtrunc.data.source import ArrayImages, Source
from softtrunc.data.splits import check_split

_LOCATION = "scikit-learn"
_LEVELS = 17

_TEST_IMAGES = 360


def load_digits_split(split: str) -> ImageDataset:
    """1,437 train or 360 test images (uint8 (N, 1, 8, 8), values 0 ... 16) with their labels.

    The split is drawn once and for all (random_state 0), stratified by digit, and each part keeps
    the order of scikit-learn's array; the cards' fingerprints are fixed by a test.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test
    part, as embedded in scikit-learn.

    Raises:
        ValueError: if there is no such split.
    """
    check_split(split, "digits")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    indices = np.arange(len(digits.images))
    train, test = train_test_split(
        indices, test_size=_TEST_IMAGES, random_state=0, stratify=digits.target
    )
    chosen = np.sort(train if split == "train" else test)
    return ImageDataset.create(
        digits.images[chosen].astype(np.uint8)[:, None],
        name="digits",
        split=split,
        source=_LOCATION,
        levels=_LEVELS,
        labels=digits.target[chosen].astype(np.int64),
    )


def digits_source() -> Source:
    """The digits, which are as they are to be."""
    return Source(
        name="digits",
        kind="digits",
        location=_LOCATION,
        splits=("train", "test"),
        open_split=lambda split: ArrayImages.finished(load_digits_split(split), _LOCATION),
        levels=_LEVELS,
    )
