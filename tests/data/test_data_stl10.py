"""STL-10, whose planes lie column by column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from true_formats import noise, pack, write_stl10

from softtrunc.data import inspect, open_dataset, prepare
from softtrunc.data.detect import open_source

IMAGES = {
    "train": noise(5, 3, 96, 96),
    "unlabeled": noise(7, 3, 96, 96, seed=1),
    "test": noise(4, 3, 96, 96, seed=2),
}
LABELS = {"train": [1, 2, 3, 4, 5], "test": [10, 1, 9, 2]}


@pytest.fixture
def folder(tmp_path):
    write_stl10(tmp_path / "stl10_binary", IMAGES, LABELS)
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("airplane\n")
    return tmp_path / "stl10_binary"


@pytest.mark.parametrize("form", ["folder", "above", "tar.gz"])
def test_train_is_the_labelled_and_the_unlabelled(folder, tmp_path, form):
    source = {
        "folder": lambda: folder,
        "above": lambda: folder.parent,
        "tar.gz": lambda: pack(folder, tmp_path / "stl10_binary.tar.gz"),
    }[form]()
    assert open_source(source).kind == "stl10"
    train, test = (open_dataset(source, split) for split in ("train", "test"))
    assert np.array_equal(train.images, np.concatenate([IMAGES["train"], IMAGES["unlabeled"]]))
    assert train.labels is None
    assert np.array_equal(test.images, IMAGES["test"])
    assert test.labels.tolist() == [9, 0, 8, 1]


def test_the_format_is_that_of_its_authors(folder):
    """Their reader: a matrix of 3 x 96 x 96 for each image, its last two axes exchanged."""
    content = np.frombuffer((folder / "test_X.bin").read_bytes(), np.uint8)
    theirs = content.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # (N, H, W, C)
    assert np.array_equal(theirs.transpose(0, 3, 1, 2), IMAGES["test"])


def test_prepared_at_48_by_the_protocol(folder, tmp_path):
    prepare(folder, tmp_path / "out", preset="stl10", allow_count=True)
    found = open_dataset(tmp_path / "out", "test")
    assert found.card.name == "stl10-partial"
    # PyTorch's antialiased filter is another implementation of the same triangle.
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(IMAGES["test"]).double(), (48, 48), mode="bilinear", antialias=True
    ).numpy()
    assert np.abs(found.images - exact).max() <= 0.5 + 1e-4


def test_inspect_counts_every_image(folder):
    found = inspect(folder)
    assert (found.kind, found.train, found.test) == ("stl10", 12, 4)
