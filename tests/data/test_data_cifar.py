"""CIFAR and the batches of the downsampled ImageNet, in each form in which they are released."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from true_formats import noise, pack, python2_batch, rows, write_cifar10, write_cifar10_binary

from softtrunc.data import open_dataset, prepare
from softtrunc.data.detect import open_source

IMAGES = noise(24, 3, 32, 32)
LABELS = [i % 10 for i in range(24)]


def check_cifar10(source: Path) -> None:
    assert open_source(source).kind == "cifar10"
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 24))):
        data = open_dataset(source, split)
        assert np.array_equal(data.images, IMAGES[part])
        assert data.labels.tolist() == LABELS[part]
        assert data.card.name == "cifar10"


def test_the_tests_write_what_python_2_wrote():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core is an old name
        found = pickle.loads(python2_batch(rows(IMAGES), labels=LABELS), encoding="bytes")
    assert np.array_equal(found[b"data"], rows(IMAGES))
    assert found[b"labels"] == LABELS
    assert found[b"filenames"][3] == b"image_3.png"


@pytest.mark.parametrize("write", [write_cifar10, write_cifar10_binary])
@pytest.mark.parametrize("form", ["folder", "above", "tar.gz", "in a folder", "zip", "misnamed"])
def test_cifar10_is_read_as_written(tmp_path, write, form):
    folder = tmp_path / "root" / "cifar-10-batches"
    write(folder, IMAGES, LABELS)
    packed = tmp_path / "packed"
    packed.mkdir()
    check_cifar10(
        {
            "folder": lambda: folder,
            "above": lambda: folder.parent,
            "tar.gz": lambda: pack(folder, packed / "cifar-10.tar.gz"),
            "in a folder": lambda: pack(folder, packed / "cifar-10.tar.gz").parent,
            "zip": lambda: pack(folder, packed / "cifar-10.zip"),
            "misnamed": lambda: pack(folder, packed / "a.tar.gz").rename(packed / "a.jpg"),
        }[form]()
    )


def test_cifar10_has_one_fingerprint_in_every_form(tmp_path):
    write_cifar10(tmp_path / "py", IMAGES, LABELS)
    write_cifar10_binary(tmp_path / "bin", IMAGES, LABELS)
    prepare(tmp_path / "py", tmp_path / "out")
    found = {
        open_dataset(tmp_path / name, "train").card.fingerprint for name in ("py", "bin", "out")
    }
    assert len(found) == 1
    assert open_dataset(tmp_path / "out", "train").labels.tolist() == LABELS[:20]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_batches_pickled_again_by_python_3_are_read_too(tmp_path, protocol):
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rows(IMAGES[:4]), "labels": LABELS[:4]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    assert np.array_equal(open_dataset(tmp_path, "test").images, IMAGES[:4])


def test_cifar100_has_fine_labels(tmp_path):
    binary, pickled = tmp_path / "cifar-100-binary", tmp_path / "cifar-100-python"
    binary.mkdir()
    pickled.mkdir()
    fine = [99 - i for i in range(24)]
    for name, part in (("train", slice(0, 16)), ("test", slice(16, 24))):
        batch = python2_batch(
            rows(IMAGES[part]), coarse_labels=LABELS[part], fine_labels=fine[part]
        )
        (pickled / name).write_bytes(batch)
        coarse = np.array([LABELS[part], fine[part]], np.uint8).T
        (binary / f"{name}.bin").write_bytes(
            np.concatenate([coarse, rows(IMAGES[part])], axis=1).tobytes()
        )
    (pickled / "meta").write_bytes(pickle.dumps({}, protocol=2))
    for source in (binary, pickled, pack(pickled, tmp_path / "cifar-100-python.tar.gz")):
        assert open_source(source).kind == "cifar100"
        data = open_dataset(source, "test")
        assert np.array_equal(data.images, IMAGES[16:])
        assert data.labels.tolist() == fine[16:]


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """The newer downsampled ImageNet: two batches to train on, and one more."""
    folder = tmp_path / "Imagenet32"
    folder.mkdir()
    return folder


def write_imagenet(folder: Path, kind: str) -> None:
    for name, part in (
        ("train_data_batch_1", slice(0, 10)),
        # Ten comes after two, not after one.
        ("train_data_batch_2", slice(10, 12)),
        ("train_data_batch_10", slice(12, 20)),
        ("val_data", slice(20, 24)),
    ):
        labels = np.array(LABELS[part]) + 1
        mean = np.zeros(3072)
        if kind == "npz":
            np.savez(folder / f"{name}.npz", data=rows(IMAGES[part]), labels=labels, mean=mean)
        else:
            batch = {"data": rows(IMAGES[part]), "labels": labels.tolist(), "mean": mean}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=4))


@pytest.mark.parametrize("kind", ["npz", "pickled"])
@pytest.mark.parametrize("form", ["folder", "zips"])
def test_imagenet_batches_are_read_in_order(imagenet, tmp_path, kind, form):
    write_imagenet(imagenet, kind)
    source = imagenet
    if form == "zips":
        # As downloaded: an archive of the training batches, and one of the other.
        source = tmp_path / "zips"
        source.mkdir()
        for name, pattern in (("Imagenet32_train", "train*"), ("Imagenet32_val", "val*")):
            part = tmp_path / name
            part.mkdir()
            for file in imagenet.glob(pattern):
                file.rename(part / file.name)
            pack(part, source / f"{name}.zip")
    assert open_source(source).kind == "imagenet"
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 24))):
        data = open_dataset(source, split)
        assert np.array_equal(data.images, IMAGES[part])
        assert data.labels.tolist() == LABELS[part]
    prepare(source, tmp_path / "out")
    assert np.array_equal(open_dataset(tmp_path / "out", "train").images, IMAGES[:20])
    assert open_dataset(tmp_path / "out", "train").labels.tolist() == LABELS[:20]


@pytest.mark.parametrize("form", ["folders", "tars"])
def test_the_older_imagenet_is_two_folders_of_png(tmp_path, form):
    from PIL import Image

    root = tmp_path / "root"
    for name, part in (("train_32x32", range(20)), ("valid_32x32", range(20, 24))):
        (root / name).mkdir(parents=True)
        for i in part:
            Image.fromarray(IMAGES[i].transpose(1, 2, 0)).save(root / name / f"{i:07d}.png")
        if form == "tars":
            pack(root / name, root / f"{name}.tar.gz")
            for file in (root / name).iterdir():
                file.unlink()
            (root / name).rmdir()
    assert np.array_equal(open_dataset(root, "train").images, IMAGES[:20])
    assert np.array_equal(open_dataset(root, "test").images, IMAGES[20:])
