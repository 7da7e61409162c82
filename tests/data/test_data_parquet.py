"""Parquet files, as a repository of the Hugging Face Hub holds them."""

from __future__ import annotations

import numpy as np
import pytest
from true_formats import encode, noise

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from softtrunc.data import open_dataset, prepare  # noqa: E402
from softtrunc.data.detect import open_source  # noqa: E402

IMAGES = noise(30, 8, 8, 3)


def write(path, chosen, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encode(IMAGES[i]), "path": None} for i in chosen]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(images, kind), **columns})
    parquet.write_table(table, path, row_group_size=4)


def nchw(chosen) -> np.ndarray:
    return IMAGES[list(chosen)].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("below", ["", "data"])
def test_files_of_a_split_follow_each_other(tmp_path, below):
    place = tmp_path / "repository" / below
    write(place / "train-00001-of-00002.parquet", range(9, 20), label=list(range(9, 20)))
    write(place / "train-00000-of-00002.parquet", range(9), label=list(range(9)))
    write(place / "validation-00000-of-00001.parquet", range(20, 30), label=list(range(10)))
    source = tmp_path / "repository"
    assert open_source(source).kind == "parquet"
    train, test = (open_dataset(source, split) for split in ("train", "test"))
    assert np.array_equal(train.images, nchw(range(20)))
    assert train.labels.tolist() == list(range(20))
    assert np.array_equal(test.images, nchw(range(20, 30)))
    prepare(source, tmp_path / "out")
    assert open_dataset(tmp_path / "out", "test").card.fingerprint == test.card.fingerprint


def test_a_test_split_is_preferred_to_one_for_validation(tmp_path):
    for name, chosen in (
        ("train", range(10)),
        ("validation", range(10, 20)),
        ("test", range(20, 30)),
    ):
        write(tmp_path / "r" / f"{name}-00000-of-00001.parquet", chosen)
    assert np.array_equal(open_dataset(tmp_path / "r", "train").images, nchw(range(10)))
    assert np.array_equal(open_dataset(tmp_path / "r", "test").images, nchw(range(20, 30)))


def test_labels_follow_the_images_of_a_file_that_is_divided(tmp_path):
    write(tmp_path / "all.parquet", range(30), label=list(range(30)))
    for split in ("train", "test"):
        data = open_dataset(tmp_path / "all.parquet", split)
        assert np.array_equal(data.images, nchw(data.labels))
    whole = open_dataset(tmp_path / "all.parquet", "train", held_out=0.0)
    assert whole.labels.tolist() == list(range(30))


def test_one_file_is_divided(tmp_path):
    write(tmp_path / "all.parquet", range(30))
    cards = prepare(tmp_path / "all.parquet", tmp_path / "out")
    assert sum(card.count for card in cards.values()) == 30


def test_broken_files_are_refused(tmp_path):
    write(tmp_path / "a.parquet", range(30))
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a readable Parquet file"):
        open_dataset(tmp_path / "cut.parquet", "train")
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="no column of images among text: string"):
        open_dataset(tmp_path / "text.parquet", "train")
