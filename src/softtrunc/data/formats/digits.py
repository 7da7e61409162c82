"""The handwritten digits that scikit-learn carries: 1,797 images of 8x8, 17 grey levels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from softtrunc.data.dataset import ImageDataset
from softtrunc.data.source import ArrayImages, Source
from softtrunc.data.splits import check_split

_LOCATION = "scikit-learn"
_LEVELS = 17

# One bit an image, 1 in the test part. scikit-learn drew it once, stratified by digit
# (train_test_split, random_state 0); written down it moves with no version.
_IN_TEST = (
    "000004883524104000064100934205001a00080100240028062c12001000940a009019120420f8a0028110a000"
    "080a8820441524494240a00a0000004004d80000818020004805c400104008a0100005404800301000020ec409"
    "000224840083a8013c20a6980a0000000b08400804a0184802024041c1008004404684376a8102160044800040"
    "42a0a4180a5000840b8561c608108008004c80c02004068e00010882008100380803c008190000100e01008410"
    "a0210033282904c044c080680e0102830082008822a6402c24042108a860809081a00c02820242120138a41500"
)


def load_digits_split(split: str) -> ImageDataset:
    """1,437 train or 360 test images (uint8 (N, 1, 8, 8), values 0 ... 16) with their labels.

    The split is drawn once and for all, stratified by digit, and each part keeps the order of
    scikit-learn's array; the cards' fingerprints are fixed by a test.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test
    part, as embedded in scikit-learn.

    Raises:
        ValueError: if there is no such split.
    """
    check_split(split, "digits")
    table = _digits()
    in_test = np.unpackbits(np.frombuffer(bytes.fromhex(_IN_TEST), np.uint8), count=len(table))
    chosen = table[in_test == (split == "test")]
    return ImageDataset.create(
        chosen[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8),
        name="digits",
        split=split,
        source=_LOCATION,
        levels=_LEVELS,
        labels=chosen[:, -1].astype(np.int64),
    )


def _digits() -> Float64[np.ndarray, "1797 65"]:
    """A row an image: its pixels, row by row, and its label.

    Read from scikit-learn's file where it is, as importing scikit-learn takes longer than most
    commands on such small images.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


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
