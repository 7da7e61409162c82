"""Labels and the names of classes: from folders, from releases, through preparation."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from softtrunc.data import open_dataset, prepare
from softtrunc.data.classes import class_folders
from softtrunc.data.dataset import DataCard, ImageDataset


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["cat/1.png", "dog/1.png", "cat/2.png", "dog/2.png"], ("cat", "dog"), [0, 1, 0, 1]),
        (
            ["train/b/1.png", "train/a/2.png", "val/b/3.png", "val/a/4.png"],
            ("a", "b"),
            [1, 0, 1, 0],
        ),
        (["cls/cat/1.png", "cls/dog/x/2.png"] * 2, ("cat", "dog"), [0, 1, 0, 1]),
        # The two ways to write an accented letter are one class.
        (["e\u0301/1.png", "\u00e9/2.png", "z/1.png", "z/2.png"], ("z", "\u00e9"), [1, 1, 0, 0]),
        (["cat/1.png", "dog/1.png", "cat/2.png", "3.png"], (), None),
        (["one/1.png", "one/2.png"], (), None),
        (["1/a.png", "2/a.png", "3/a.png"], (), None),
        (["train/1.png", "test/2.png"], (), None),
        ([], (), None),
    ],
)
def test_folders_are_classes(names, classes, labels):
    found, called = class_folders(names)
    assert called == classes
    assert (None if found is None else found.tolist()) == labels


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for shade, name in ((0, "dark"), (200, "light")):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = (shade + rng.integers(0, 50, (8, 8))).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    (tmp_path / "pictures" / "train" / "dark" / "broken.png").write_bytes(b"no image")
    return tmp_path / "pictures"


def test_a_label_stays_with_its_image(folder, tmp_path):
    read = open_dataset(folder, "train")
    prepare(folder, tmp_path / "out")
    kept = open_dataset(tmp_path / "out", "train")
    for data in (read, kept):
        assert data.card.classes == ("dark", "light")
        assert len(data) == 12
        light = data.images.mean((1, 2, 3)) > 100
        assert (data.labels == light).all()
    assert read.card.label_fingerprint == kept.card.label_fingerprint
    assert open_dataset(tmp_path / "out", "test").card.classes == ("dark", "light")


def test_classes_without_names_are_called_by_their_numbers():
    images = np.zeros((4, 1, 2, 2), np.uint8)

    def made(labels, **options) -> DataCard:
        options |= {"name": "n", "split": "train", "source": "here"}
        return ImageDataset.create(images, labels=np.array(labels), **options).card

    assert made([0, 2, 1, 2]).classes == ("0", "1", "2")
    assert made([0, 2, 1, 2]).label_fingerprint != made([2, 0, 1, 2]).label_fingerprint
    assert made([0, -1, 1, 2]).classes == ()
    assert made([0, 1, 1, 0], classes=("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match="labels from 0 to 2 for 2 classes"):
        made([0, 2, 1, 2], classes=("a", "b"))


def test_a_card_of_an_earlier_version_has_no_classes():
    data = ImageDataset.create(
        np.zeros((1, 1, 2, 2), np.uint8), name="n", split="train", source="s"
    )

    values = dataclasses.asdict(data.card)
    older = {k: v for k, v in values.items() if k not in ("classes", "label_fingerprint")}
    assert DataCard.from_dict(older) == data.card
    assert DataCard.from_dict(values | {"classes": ["a"]}).classes == ("a",)
    for wrong in ({"classes": "ab"}, {"classes": [1]}, {"more": 1}, {"label_fingerprint": 3}):
        with pytest.raises(ValueError, match="data card: missing, unknown or wrong"):
            DataCard.from_dict(values | wrong)
