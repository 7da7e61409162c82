"""The digits, their card and what every data set does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from softtrunc.data import DataCard, ImageDataset, load_digits_split, open_dataset

# The split is part of every published figure: it must not move with a version of scikit-learn.
FINGERPRINTS = {
    "train": "bfe3e7395638f883095c00a04b8dc3624cf606782481f38608949f4960384b51",
    "test": "465f669ee0dec7a626a18173b74a7390dab27a11d3bb0e946fd9e39e9bfecb4f",
}


def as_bytes(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("test", 360)])
def test_counts_and_fingerprints_never_change(split, count):
    data = load_digits_split(split)
    assert len(data) == count == data.card.count
    assert data.images.shape == (count, 1, 8, 8)
    assert data.images.dtype == np.uint8
    assert (data.images.min(), data.images.max(), data.card.levels) == (0, 16, 17)
    assert data.card.fingerprint == FINGERPRINTS[split]
    data.verify()


def test_splits_make_up_the_whole_with_its_labels():
    whole = load_digits()
    label_of = {
        image.astype(np.uint8).tobytes(): label
        for image, label in zip(whole.images, whole.target, strict=True)
    }
    parts = [load_digits_split(split) for split in ("train", "test")]
    pixels = [key for part in parts for key in as_bytes(part.images)]
    assert sorted(pixels) == sorted(as_bytes(whole.images.astype(np.uint8)))
    for part in parts:
        assert part.labels is not None
        assert [label_of[key] for key in as_bytes(part.images)] == part.labels.tolist()


def test_splits_have_the_digits_in_equal_proportion():
    whole = np.bincount(load_digits().target)
    test = np.bincount(load_digits_split("test").labels)
    assert np.abs(test - whole * 360 / 1797).max() < 1.0


def test_batch_gives_the_images_asked_for_in_order():
    data = load_digits_split("test")
    batch = data.batch(torch.tensor([5, 0, 5]))
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch.numpy(), data.images[[5, 0, 5]])


def test_a_card_survives_being_written():
    card = load_digits_split("test").card
    assert DataCard.from_dict(dataclasses.asdict(card)) == card
    broken = dataclasses.asdict(card)
    broken["count"] = "360"
    with pytest.raises(ValueError, match="count"):
        DataCard.from_dict(broken)
    del broken["count"]
    with pytest.raises(ValueError, match="count"):
        DataCard.from_dict(broken)


def make(images: np.ndarray, **rest) -> ImageDataset:
    return ImageDataset.create(images, name="x", split="train", source="here", **rest)


def test_a_fingerprint_tells_pixels_shapes_and_levels_apart():
    images = np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4)
    changed = images.copy()
    changed[3, 0, 3, 3] += 1
    variants = [
        make(images),
        make(changed),
        make(images[::-1]),
        make(images.reshape(4, 1, 2, 8)),
        make(images, levels=128),
    ]
    assert len({v.card.fingerprint for v in variants}) == len(variants)
    # Where and how pixels lie in memory does not matter.
    strided = np.asfortranarray(images)
    assert make(strided).card.fingerprint == variants[0].card.fingerprint


def test_a_fingerprint_does_not_depend_on_the_pieces_it_is_read_in(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (37, 3, 5, 4), dtype=np.uint8)
    whole = make(images).card.fingerprint
    monkeypatch.setattr("softtrunc.data.dataset._SCAN_BYTES", 100)
    assert make(images).card.fingerprint == whole


def test_changed_pixels_are_noticed():
    data = load_digits_split("test")
    data.images[17, 0, 3, 3] ^= 1
    with pytest.raises(ValueError, match="have changed"):
        data.verify()


@pytest.mark.parametrize(
    ("images", "rest", "message"),
    [
        (np.zeros((2, 1, 4, 4)), {}, "uint8"),
        (np.zeros((2, 4, 4), np.uint8), {}, "shape"),
        (np.zeros((2, 2, 4, 4), np.uint8), {}, "1 or 3"),
        (np.zeros((0, 1, 4, 4), np.uint8), {}, "no image"),
        (np.full((2, 1, 4, 4), 17, np.uint8), {"levels": 17}, "largest value is 17"),
        (np.zeros((2, 1, 4, 4), np.uint8), {"levels": 1}, "2 to 256"),
        (np.zeros((2, 1, 4, 4), np.uint8), {"labels": np.zeros(3, int)}, "labels"),
    ],
)
def test_images_that_are_none_are_refused(images, rest, message):
    with pytest.raises(ValueError, match=message):
        make(images, **rest)


def test_open_dataset_knows_digits_and_their_shape():
    assert open_dataset("digits", "test", image_size=8, channels=1).card.count == 360
    with pytest.raises(ValueError, match="1 x 8 x 8"):
        open_dataset("digits", "test", image_size=16)
    with pytest.raises(ValueError, match='"train" or "test"'):
        open_dataset("digits", "validation")
    with pytest.raises(
        FileNotFoundError, match='write "digits", "fashion16", hf://OWNER/NAME, or a path'
    ):
        open_dataset("digit", "test")
