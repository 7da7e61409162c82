"""The part of Fashion-MNIST that comes with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softtrunc.data import inspect, open_dataset, prepare

ORIGINAL = Path("/usr/share/datasets/fashion-mnist")
FINGERPRINTS = {
    "train": "de11c1679013ccbf367db76641b39ce8da31a1dc8aa3dd328f85fc6e23d67882",
    "test": "5070d5315e9b9e3a8f416feed1e985f85739ddc52fb039e88d165b5d866eeadc",
}


@pytest.mark.parametrize(("split", "count"), [("train", 12_000), ("test", 2_000)])
def test_counts_and_fingerprints_never_change(split, count):
    data = open_dataset("fashion16", split)
    assert data.images.shape == (count, 1, 16, 16)
    assert data.images.dtype == np.uint8
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [count // 10] * 10
    assert (data.card.name, data.card.levels) == ("fashion16", 256)
    assert data.card.fingerprint == FINGERPRINTS[split]
    data.verify()


def test_it_is_told_whose_they_are():
    assert "MIT" in open_dataset("fashion16", "test").card.source
    assert inspect("fashion16").kind == "fashion16"


def test_there_is_no_other_split():
    with pytest.raises(ValueError, match="val"):
        open_dataset("fashion16", "val")


def test_every_held_out_image_is_one_of_the_original(tmp_path):
    """The others were once found alike; their fingerprint is fixed above."""
    if not ORIGINAL.is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    prepare(ORIGINAL, tmp_path / "whole", image_size=16, channels=1, splits=["test"])
    whole, part = open_dataset(tmp_path / "whole", "test"), open_dataset("fashion16", "test")
    row_of = {image.tobytes(): row for row, image in enumerate(whole.images)}
    rows = [row_of[image.tobytes()] for image in part.images]
    assert np.array_equal(whole.labels[rows], part.labels)
