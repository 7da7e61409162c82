"""Prepared folders, and what `inspect` says of data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softtrunc.data import inspect, load_digits_split, open_dataset, open_prepared, prepare


def noise(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Thirty images; every fifth is broken, the first few are grey."""
    root = tmp_path / "photos"
    for split, count in (("train", 24), ("test", 6)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(noise(i))
            path = root / split / f"{i:02d}.png"
            (image.convert("L") if i < 3 else image).save(path)
            if i % 5 == 4:
                path.write_bytes(b"broken")
    return root


@pytest.mark.parametrize("size", [None, 4, (5, 7)])
def test_prepared_data_are_the_data(folder, tmp_path, size):
    cards = prepare(str(folder), tmp_path / "out", image_size=size)
    for split in ("train", "test"):
        direct = open_dataset(str(folder), split, image_size=size)
        data = open_dataset(str(tmp_path / "out"), split)
        assert isinstance(data.images, np.memmap)
        assert np.array_equal(data.images, direct.images)
        assert data.card == direct.card == cards[split]
        assert data.skipped == direct.skipped
        assert len(data.skipped) > 0
        data.verify()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "test.json",
        "test.npy",
        "train.json",
        "train.npy",
    ]
    stored = (tmp_path / "out" / "test.npy").stat().st_size
    assert stored == data.images.offset + data.images.nbytes
    # Anything that reads .npy can read it.
    assert np.load(tmp_path / "out" / "train.npy").shape == (20, 3, *data.images.shape[2:])


def test_labels_and_levels_are_kept(tmp_path):
    prepare("digits", tmp_path / "digits")
    for split in ("train", "test"):
        data, direct = open_prepared(tmp_path / "digits", split), load_digits_split(split)
        assert data.card == direct.card
        assert np.array_equal(data.labels, direct.labels)


def test_nothing_appears_when_anything_fails(folder, tmp_path):
    for broken in (folder / "test").iterdir():
        broken.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no readable image"):
        prepare(str(folder), tmp_path / "out", splits=("test",))
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_a_folder_in_use_is_left_alone(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    prepare(str(folder), out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ValueError, match=r"exists: choose another"):
        prepare("digits", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_broken_prepared_data_are_refused(tmp_path):
    out = tmp_path / "digits"
    prepare("digits", out, splits=("test",))
    with pytest.raises(FileNotFoundError, match="no prepared train split"):
        open_prepared(out, "train")
    card = json.loads((out / "test.json").read_text())
    pixels = bytearray((out / "test.npy").read_bytes())
    pixels[-3] ^= 1
    (out / "test.npy").write_bytes(pixels)
    with pytest.raises(ValueError, match=r"edited after it was prepared|have changed"):
        open_prepared(out, "test")
    (out / "test.npy").write_bytes(pixels[:-10])
    with pytest.raises(ValueError, match="broken or cut short"):
        open_prepared(out, "test")
    np.save(out / "test.npy", np.zeros((359, 1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"\(359, 1, 8, 8\), its card says"):
        open_prepared(out, "test")
    (out / "test.npy").unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        open_prepared(out, "test")
    del card["card"]["levels"]
    for text in (json.dumps(card), "[]", "{", json.dumps({"format": 2})):
        (out / "test.json").write_text(text)
        with pytest.raises(ValueError, match="broken"):
            open_prepared(out, "test")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Half a million pixels: more than are looked at when data are opened."""
    out = tmp_path_factory.mktemp("large")
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 72, 72), dtype=np.uint8)
    np.savez(out / "a.npz", x_train=images, y_train=np.arange(40))
    prepare(out / "a.npz", out / "p")
    return out / "p"


def copy_with_an_edit(large: Path, out: Path, *, place: int, keep_time: bool) -> Path:
    shutil.copytree(large, out)  # with its times
    before = (out / "train.npy").stat()
    with (out / "train.npy").open("r+b") as stream:
        stream.seek(place, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    if keep_time:
        os.utime(out / "train.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    return out


def test_one_pixel_edited_is_noticed_at_the_next_opening(large, tmp_path):
    assert open_prepared(large, "train").unread
    for number in range(5):
        out = copy_with_an_edit(
            large, tmp_path / str(number), place=-5000 - 6000 * number, keep_time=False
        )
        with pytest.raises(ValueError, match=r"have changed|edited after"):
            open_prepared(out, "train")


def test_an_edit_that_hides_its_time_is_noticed_where_blocks_are_looked_at(large, tmp_path):
    out = copy_with_an_edit(large, tmp_path / "seen", place=-1, keep_time=True)
    with pytest.raises(ValueError, match="was edited after it was prepared"):
        open_prepared(out, "train")
    out = copy_with_an_edit(large, tmp_path / "unseen", place=-6000, keep_time=True)
    data = open_prepared(out, "train")  # 64 blocks are not all
    with pytest.raises(ValueError, match="have changed"):
        data.verify()
    with pytest.raises(ValueError, match="have changed"):
        open_prepared(out, "train", verify=True)


def test_a_copy_is_read_through_once_and_then_trusted(large, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(large, out)
    os.utime(out / "train.npy")
    assert not open_prepared(out, "train").unread
    assert open_prepared(out, "train").unread


def test_edited_labels_and_levels_are_noticed(large, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(large, out)
    labels = np.load(out / "train-labels.npy")
    np.save(out / "train-labels.npy", labels[::-1].copy())
    with pytest.raises(ValueError, match=r"labels\.npy does not match"):
        open_prepared(out, "train")
    np.save(out / "train-labels.npy", labels)
    text = (out / "train.json").read_text()
    (out / "train.json").write_text(text.replace('"levels": 256', '"levels": 255'))
    with pytest.raises(ValueError, match="was edited after it was prepared"):
        open_prepared(out, "train")


def test_data_prepared_before_there_were_samples_are_read(large, tmp_path):
    out = tmp_path / "old"
    shutil.copytree(large, out)
    card = json.loads((out / "train.json").read_text())
    del card["sample"], card["labels_sha256"]
    (out / "train.json").write_text(json.dumps(card))
    assert len(open_prepared(out, "train")) == 40


def test_inspect_tells_what_is_there(folder):
    Image.fromarray(noise(7)).save(folder / "train" / "again.png")
    Image.fromarray(noise(50, height=9)).convert("RGBA").save(folder / "train" / "tall.png")
    found = inspect(folder)
    assert (found.kind, found.count, found.train, found.test) == ("folder", 27, 22, 5)
    assert [(s.width, s.height, s.count) for s in found.sizes] == [(5, 6, 26), (5, 9, 1)]
    assert {m.mode: m.count for m in found.modes} == {"RGB": 20, "L": 6, "RGBA": 1}
    # Images 0 to 5 but 4 lie in both splits; image 7 was saved twice.
    assert found.duplicates == 6
    assert len(found.unreadable) == 5
    assert found.unreadable[0].name == "test/04.png"
    # With so many noisy pixels every value occurs.
    assert (found.lowest, found.highest, found.levels) == (0, 255, 256)


@pytest.mark.parametrize("kind", ["folder", "npy"])
def test_sigma_max_is_the_largest_distance(tmp_path, kind):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    images[3], images[11] = 0, 255
    if kind == "npy":
        np.save(tmp_path / "a.npy", images)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    found = inspect(tmp_path / "a.npy" if kind == "npy" else tmp_path)
    # Black and white differ by 1 in each of 90 dimensions.
    assert found.sigma_max is not None
    assert found.sigma_max.value == pytest.approx(90**0.5, rel=1e-12)
    assert (found.sigma_max.images, found.sigma_max.height, found.sigma_max.width) == (20, 6, 5)
    x = images.reshape(20, -1) / 255.0
    rest = np.delete(np.arange(20), [3, 11])
    direct = max(np.linalg.norm(x[i] - x[j]) for i in rest for j in rest)
    for i in (3, 11):
        images[i] = images[0]
        Image.fromarray(images[0]).save(tmp_path / f"{i:02d}.png")
    np.save(tmp_path / "a.npy", images) if kind == "npy" else None
    found = inspect(tmp_path / "a.npy" if kind == "npy" else tmp_path)
    assert found.sigma_max.value == pytest.approx(direct, rel=1e-12)
    assert found.duplicates == 2


def test_equal_bytes_of_another_shape_are_no_duplicate(tmp_path):
    for name, shape in (("a", (6, 5)), ("b", (5, 6)), ("c", (5, 6))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.png")
    assert inspect(tmp_path).duplicates == 1


def test_inspect_of_the_digits():
    found = inspect("digits")
    assert (found.count, found.train, found.test) == (1797, 1437, 360)
    assert (found.lowest, found.highest, found.levels) == (0, 16, 17)
    assert found.duplicates == 0
    assert found.sigma_max.images == 1797
    x = np.concatenate([load_digits_split(s).images for s in ("train", "test")]).reshape(1797, -1)
    far = max(np.linalg.norm(x[i] / 16.0 - x / 16.0, axis=1).max() for i in range(1797))
    assert found.sigma_max.value == pytest.approx(far, rel=1e-9)


def test_inspect_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data"):
        inspect(tmp_path / "absent")
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"no readable image under .* a\.png: not an image"):
        inspect(tmp_path)
