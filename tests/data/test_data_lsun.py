"""LSUN's LMDB folders."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from true_formats import encode, noise

pytest.importorskip("lmdb")
from true_formats import write_lmdb

from softtrunc.data import inspect, open_dataset, prepare
from softtrunc.data.detect import open_source

IMAGES = noise(6, 30, 40, 3)


def key(i: int) -> bytes:
    return hashlib.sha1(bytes([i])).hexdigest().encode()


@pytest.fixture
def root(tmp_path):
    """WebP as LSUN has it, here without loss so that pixels are exact; one value is broken."""
    content = {key(i): encode(IMAGES[i], "WEBP", lossless=True) for i in range(4)}
    write_lmdb(tmp_path / "lsun" / "bedroom_train_lmdb", {**content, key(9): b"broken"})
    write_lmdb(
        tmp_path / "lsun" / "bedroom_val_lmdb", {key(i): encode(IMAGES[i]) for i in range(4, 6)}
    )
    return tmp_path / "lsun"


def expected(numbers) -> np.ndarray:
    return IMAGES[sorted(numbers, key=key)].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("source", ["", "bedroom_train_lmdb", "bedroom_val_lmdb"])
def test_images_are_in_the_order_of_their_keys(root, source):
    assert open_source(root / source).kind == "lmdb"
    train = open_dataset(root / source, "train")
    assert np.array_equal(train.images, expected(range(4)))
    assert [s.name for s in train.skipped] == [key(9).decode()]
    assert train.card.name == "lsun-bedroom"
    assert np.array_equal(open_dataset(root / source, "test").images, expected([4, 5]))
    assert inspect(root / source).count == 6


def test_a_folder_of_another_name_is_divided(root):
    (root / "bedroom_train_lmdb").rename(root / "mine")
    cards = prepare(root / "mine", root / "out")
    assert sum(card.count for card in cards.values()) == 4


def test_the_protocol_crops_a_square_and_is_bicubic(tmp_path):
    image = noise(1, 300, 401, 3)
    write_lmdb(tmp_path / "l" / "church_train_lmdb", {b"a": encode(image[0])})
    write_lmdb(tmp_path / "l" / "church_val_lmdb", {b"b": encode(image[0, :256, :256])})
    prepare(tmp_path / "l", tmp_path / "out", preset="lsun-church256", allow_count=True)
    found = open_dataset(tmp_path / "out", "train").images
    crop = torch.from_numpy(image.transpose(0, 3, 1, 2)[:, :, :, 50:350]).double()
    exact = torch.nn.functional.interpolate(crop, (256, 256), mode="bicubic", antialias=True)
    assert np.abs(found - exact.clamp(0, 255).numpy()).max() <= 0.5 + 1e-3
    # What has the size already is left as it is.
    same = open_dataset(tmp_path / "out", "test").images
    assert np.array_equal(same[0].transpose(1, 2, 0), image[0, :256, :256])
