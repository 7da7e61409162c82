"""NumPy and IDX files in their true formats, and hostile imitations."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softtrunc.data import open_dataset, prepare, read_idx
from softtrunc.data.splits import choose_names

FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def choose_rows(count: int, split: str) -> list[int]:
    """Rows of an array without splits: by the hash of their numbers, as files by their names."""
    return [int(row) for row in choose_names([str(row) for row in range(count)], split)]


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    """The format as its authors describe it: magic, sides as big-endian 32-bit, then bytes."""
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw", "nhw1"])
def test_every_layout_becomes_nchw(tmp_path, name, layout):
    path = tmp_path / name
    colour = noise(60, 3, 5, 4)
    grey = noise(60, 1, 5, 4)
    stored, expected = {
        "nhw": (grey[:, 0], grey),
        "nhw1": (grey[:, 0, :, :, None], grey),
        "nhwc": (colour.transpose(0, 2, 3, 1), colour),
        "nchw": (colour, colour),
    }[layout]
    np.save(path, stored) if name == "a.npy" else np.savez_compressed(path, stored)
    for split in ("train", "test"):
        data = open_dataset(str(path), split)
        assert np.array_equal(data.images, expected[choose_rows(60, split)])
        assert data.labels is None


def test_an_npy_stays_on_disk_where_all_of_it_is_asked_for(tmp_path):
    stored = noise(60, 5, 4, 3)
    np.save(tmp_path / "a.npy", stored)
    images = open_dataset(tmp_path / "a.npy", "all").images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert np.array_equal(images, stored.transpose(0, 3, 1, 2))


def test_arrays_named_after_splits_are_the_splits(tmp_path):
    train, test = noise(7, 4, 4), noise(3, 4, 4, seed=1)
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=train, y_train=np.arange(7), x_test=test, y_test=np.arange(3)[:, None])
    data = open_dataset(path, "train")
    assert np.array_equal(data.images[:, 0], train)
    assert data.labels.tolist() == list(range(7))
    data = open_dataset(path, "test")
    assert np.array_equal(data.images[:, 0], test)
    assert data.labels.tolist() == [0, 1, 2]


def test_training_images_alone_are_not_tested_on(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=noise(50, 4, 4))
    assert len(open_dataset(tmp_path / "a.npz", "train")) == 50
    with pytest.raises(FileNotFoundError, match="no test split, only train"):
        open_dataset(tmp_path / "a.npz", "test")


def test_labels_follow_their_images(tmp_path):
    images = noise(50, 4, 4)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(50))
    for split in ("train", "test"):
        data = open_dataset(tmp_path / "a.npz", split)
        assert np.array_equal(data.images[:, 0], images[data.labels])


def test_arrays_are_resized_as_files_are(tmp_path):
    images = noise(40, 8, 12, 3)
    np.save(tmp_path / "a.npy", images)
    data = open_dataset(tmp_path / "a.npy", "test", image_size=4, channels=1)
    rows = choose_rows(40, "test")
    for row, found in zip(rows, data.images, strict=True):
        crop = Image.fromarray(images[row][:, 2:10]).convert("L")
        expected = crop.resize((4, 4), Image.Resampling.BICUBIC)
        assert np.array_equal(found[0], np.asarray(expected))
    assert open_dataset(tmp_path / "a.npy", "test", image_size=(8, 12)).images.shape[1:] == (
        3,
        8,
        12,
    )


class Bomb:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return (os.mkdir, (os.environ["TRACE_OF_UNPICKLING"],))


def test_pickles_are_refused_and_never_run(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    monkeypatch.setenv("TRACE_OF_UNPICKLING", str(trace))
    evil = np.empty(2, dtype=object)
    evil[:] = [Bomb(), Bomb()]
    np.save(tmp_path / "a.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x_train=evil)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for name, message in [("a.npy", "pickled"), ("a.npz", "pickled"), ("b.npy", "not a NumPy")]:
        with pytest.raises(ValueError, match=message):
            open_dataset(str(tmp_path / name), "train")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((4, 8, 8), np.float32),
            r"float32 values.*images are to be uint8 \(multiply values in \[0, 1\] by 255",
        ),
        (np.zeros((4, 8, 8), np.uint16), "uint16 images"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"shape \(4, 8, 8, 4\)"),
    ],
)
def test_other_types_and_shapes_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=message):
            open_dataset(tmp_path / name, "train")


def lying_npy() -> bytes:
    """A header that promises a terabyte, in a file of a few bytes."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"1234"


def test_files_cut_short_or_edited_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", noise(40, 8, 8))
    np.savez_compressed(tmp_path / "a.npz", images=noise(40, 8, 8))
    for name in ("a.npy", "a.npz"):
        content = (tmp_path / name).read_bytes()
        for cut in (0, 40, len(content) - 50):
            (tmp_path / f"cut-{name}").write_bytes(content[:cut])
            with pytest.raises(ValueError, match=r"cut short|not a"):
                open_dataset(tmp_path / f"cut-{name}", "train")
    (tmp_path / "lie.npy").write_bytes(lying_npy())
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("images.npy", lying_npy())
    for name in ("lie.npy", "lie.npz"):
        with pytest.raises(ValueError, match="1,000,000,000,128 bytes"):
            open_dataset(tmp_path / name, "train")


def test_arrays_without_telling_names_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", one=noise(4, 8, 8), two=noise(4, 8, 8))
    with pytest.raises(ValueError, match=r"one, two: no telling .* x_train and x_test"):
        open_dataset(tmp_path / "a.npz", "train")
    np.savez(tmp_path / "b.npz", images=noise(4, 8, 8), labels=np.arange(5))
    with pytest.raises(ValueError, match="4 images in images, 5 in labels"):
        open_dataset(tmp_path / "b.npz", "train")
    with pytest.raises(FileNotFoundError, match="no such data"):
        open_dataset(tmp_path / "absent.npy", "train")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_is_read_as_written(tmp_path, suffix):
    pack = gzip.compress if suffix else bytes
    for name, seed, count in (("train", 0, 9), ("t10k", 1, 4)):
        images, labels = noise(count, 7, 5, seed=seed), noise(count, seed=seed + 9) % 10
        (tmp_path / f"{name}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
        data = open_dataset(str(tmp_path), "train" if name == "train" else "test")
        assert np.array_equal(data.images[:, 0], images)
        assert data.labels.tolist() == labels.tolist()
    one = open_dataset(tmp_path / f"t10k-images-idx3-ubyte{suffix}", "test")
    assert one.card.fingerprint == open_dataset(tmp_path, "test").card.fingerprint
    assert open_dataset(tmp_path, "test", image_size=3, channels=3).images.shape == (4, 3, 3, 3)


GOOD_IDX = idx(noise(9, 7, 5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "not an IDX file"),
        ("a", b"\x89PNG....", "not an IDX file"),
        ("a", idx(np.zeros((2, 3), ">f4"), 0x0D), "IDX of float32"),
        ("a", GOOD_IDX[:10], "cut short within its header"),
        ("a", GOOD_IDX[:-1], "only 314"),
        ("a", GOOD_IDX + b"\0", "there are more"),
        ("a", bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"123", "more than the file can hold"),
        ("a.gz", gzip.compress(GOOD_IDX[:-1], mtime=0), "only 314"),
        ("a.gz", gzip.compress(GOOD_IDX, mtime=0)[:-30], "broken gzip"),
        ("a.gz", GOOD_IDX, "broken gzip"),
        (
            "a.gz",
            gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12, mtime=0),
            "more than the file can hold",
        ),
    ],
)
def test_broken_idx_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / name)


def test_wrong_idx_folders_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD_IDX)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        open_dataset(tmp_path, "test")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(noise(8)))
    with pytest.raises(ValueError, match="9 images but labels"):
        open_dataset(tmp_path, "train")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(noise(9, 7)))
    with pytest.raises(ValueError, match="2 dimensions"):
        open_dataset(tmp_path, "train")
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(GOOD_IDX)
    with pytest.raises(ValueError, match="several data sets"):
        open_dataset(tmp_path, "train")


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no {FASHION} (Debian: dataset-fashion-mnist)")
def test_fashion_mnist_is_read_whole():
    train, test = (open_dataset(str(FASHION), split) for split in ("train", "test"))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.card.fingerprint.startswith("1424d9f242d4692dadd7a826ea8a2b32")
    assert test.card.fingerprint.startswith("709473df969752843750b2321f0b493a")


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no {FASHION} (Debian: dataset-fashion-mnist)")
def test_fashion_mnist_is_prepared_whole(tmp_path):
    cards = prepare(FASHION, tmp_path / "out", preset="fashion-mnist")
    assert {split: (card.name, card.count) for split, card in cards.items()} == {
        "train": ("fashion-mnist", 60_000),
        "test": ("fashion-mnist", 10_000),
    }
    train = open_dataset(tmp_path / "out", "train", preset="fashion-mnist")
    assert train.card.fingerprint.startswith("1424d9f242d4692dadd7a826ea8a2b32")
    assert np.bincount(train.labels).tolist() == [6000] * 10
