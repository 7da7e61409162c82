"""Floats that are no images: read as they are, within a range that is told, in no other order."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from softtrunc.data import (
    DataCard,
    FloatInspection,
    ImageDataset,
    from_model,
    in_pictures,
    inspect,
    open_dataset,
    prepare,
    to_model,
)
from softtrunc.data.floats import suggested_range
from softtrunc.data.splits import choose_names

RANGE = (-6.0, 6.0)


def floats(*shape: int, seed: int = 0, kind=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


def rows(count: int, split: str) -> list[int]:
    return [int(row) for row in choose_names([str(row) for row in range(count)], split)]


def save(path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, latents=array)
    else:
        save_file({"latents": torch.from_numpy(array)}, path)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors"])
def test_every_format_gives_the_same_rows_as_images_would_have(tmp_path, name, kind):
    stored = floats(60, 5, 8, 6, kind=kind)
    save(tmp_path / name, stored)
    for split in ("train", "test"):
        data = open_dataset(tmp_path / name, split, value_range=RANGE)
        assert data.images.dtype == kind
        assert np.array_equal(data.images, stored[rows(60, split)])
        assert data.splits == ("train", "test")
        card = data.card
        assert (card.channels, card.height, card.width, card.levels) == (5, 8, 6, 0)
        assert card.value_range == RANGE
        assert not card.on_grid


def test_bfloat16_is_read_as_the_numbers_that_it_holds(tmp_path):
    stored = torch.from_numpy(floats(20, 3, 4, 4)).bfloat16()
    save_file({"x_train": stored}, tmp_path / "a.safetensors")
    data = open_dataset(tmp_path / "a.safetensors", "train", value_range=RANGE)
    assert data.images.dtype == np.float32
    assert np.array_equal(data.images, stored.float().numpy())


def test_splits_of_their_own_stay_on_disk_with_their_labels(tmp_path):
    stored, labels = floats(12, 2, 4, 4), torch.arange(12) % 3
    tensors = {
        "y_train": labels,
        "x_test": torch.from_numpy(stored[:3].copy()),
        "y_test": labels[:3].clone(),
    }
    save_file(tensors | {"x_train": torch.from_numpy(stored)}, tmp_path / "a.safetensors")
    data = open_dataset(tmp_path / "a.safetensors", "train", value_range=RANGE)
    assert isinstance(data.images, np.memmap)
    assert np.array_equal(data.images, stored)
    assert data.labels.tolist() == labels.tolist()
    assert data.card.classes == ("0", "1", "2")
    assert len(open_dataset(tmp_path / "a.safetensors", "test", value_range=RANGE)) == 3


def test_images_in_safetensors_are_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
    save_file({"images": torch.from_numpy(pixels)}, tmp_path / "a.safetensors")
    data = open_dataset(tmp_path / "a.safetensors", "train")
    assert np.array_equal(data.images, pixels[rows(20, "train")])
    assert data.card.on_grid
    with pytest.raises(ValueError, match=r"uint8 images.*no data.value_range: leave it out"):
        open_dataset(tmp_path / "a.safetensors", "train", value_range=RANGE)


def outside(shape: tuple[int, ...], value: float) -> np.ndarray:
    array = floats(*shape)
    array.flat[-1] = value
    return array


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (floats(20, 4, 8, 8).clip(-3, 3), {"value_range": None},
         r"from -3 to 3: images are to be uint8.*--set data.value_range=\[-3,3\]$"),
        (outside((20, 4, 8, 8), 7.5), {},
         r"to 7.5, outside of data.value_range=\[-6,6\]: write one.*e.g. \[-7.5,7.5\]"),
        (outside((20, 4, 8, 8), np.nan), {}, "1 values are nan or infinite"),
        (outside((20, 4, 8, 8), np.inf), {}, "1 values are nan or infinite"),
        (floats(20, 8, 8, 4), {}, r"look like \(N, H, W, C\).*transpose\(0, 3, 1, 2\)"),
        (floats(20, 8, 8), {}, r"float32 values of shape \(20, 8, 8\).*\(N, C, H, W\)"),
        (floats(20, 64), {}, r"shape \(20, 64\).*\(N, C, H, W\)"),
        (floats(20, 4, 8, 8, kind=np.float64), {}, "float64 values.*to be float32 or float16"),
        (np.zeros((20, 4, 8, 8), np.int32), {}, "int32 images"),
        (floats(20, 4, 8, 8), {"image_size": 16}, "4 x 8 x 8, which are not resized"),
        (floats(20, 4, 8, 8), {"channels": 3}, "4 x 8 x 8, which are not resized"),
        (floats(20, 4, 8, 8), {"preset": "cifar10"}, "preset cifar10 is of images"),
        (floats(20, 4, 8, 8), {"preset": "cifar10", "value_range": None}, "cifar10 is of images"),
    ],
)  # fmt: skip
def test_what_would_mean_something_else_is_refused_in_a_line(tmp_path, array, options, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message) as refusal:
        open_dataset(tmp_path / "a.npy", "train", **{"value_range": RANGE} | options)
    assert "\n" not in str(refusal.value)


def test_a_value_of_the_other_split_is_looked_at_before_hours_are_spent(tmp_path):
    save_file(
        {"x_train": torch.zeros(4, 2, 4, 4), "x_test": torch.full((4, 2, 4, 4), 9.0)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ValueError, match="from 0 to 9, outside"):
        open_dataset(tmp_path / "a.safetensors", "train", value_range=RANGE)


def test_channels_last_may_be_meant(tmp_path):
    np.save(tmp_path / "a.npy", floats(20, 8, 8, 4))
    data = open_dataset(tmp_path / "a.npy", "train", value_range=RANGE, channels=8)
    assert (data.card.channels, data.card.width) == (8, 4)


def test_a_broken_safetensors_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"latents": torch.zeros(20, 4, 8, 8)}, path)
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:30], b"", b"\xff" * 100, whole.replace(b"F32", b"F99")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a .safetensors that can be read"):
            open_dataset(path, "train", value_range=RANGE)


def test_preparing_is_not_needed(tmp_path):
    np.save(tmp_path / "a.npy", floats(20, 4, 8, 8))
    with pytest.raises(ValueError, match="floating-point data need no preparing"):
        prepare(tmp_path / "a.npy", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy"]


@pytest.mark.parametrize("low", [-4.0, 0.0])
@pytest.mark.parametrize("high", [1e-3, 0.999, 1.0, 4.301, 9.99, 99.6, 12345.0])
def test_the_range_that_is_suggested_holds_all_values(low, high):
    least, most = suggested_range(low * high, high)
    assert least <= low * high < high <= most <= 4.5 * high
    assert float(f"{most:g}") == most


def test_what_is_in_an_array_of_floats(tmp_path):
    stored = floats(200, 3, 4, 4) * np.array([1, 2, 3], np.float32)[:, None, None] + 1.0
    stored[0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", x=stored, y=np.arange(200) % 7)
    found = inspect(tmp_path / "a.npz")
    assert isinstance(found, FloatInspection)
    assert (found.count, found.shape, found.dtype) == (200, (3, 4, 4), "float32")
    assert found.train + found.test == 200
    assert (found.lowest, found.highest) == (np.nanmin(stored), np.nanmax(stored))
    assert (found.broken, found.classes) == (1, 7)
    assert found.mean == pytest.approx(np.nanmean(stored, (0, 2, 3)).tolist(), rel=1e-4)
    assert found.std == pytest.approx(np.nanstd(stored, (0, 2, 3)).tolist(), rel=1e-4)
    assert found.value_range[0] <= found.lowest
    assert found.samples.shape == (64, 1, 4, 14)


def card_of(values: np.ndarray, value_range=RANGE) -> DataCard:
    what = {"name": "a", "split": "train", "source": "here"}
    return ImageDataset.of_floats(values, value_range=value_range, **what).card


def test_a_card_says_the_data_and_survives_json():
    values = floats(8, 2, 4, 4)
    card = card_of(values)
    assert DataCard.from_dict(json.loads(json.dumps(dataclasses.asdict(card)))) == card
    changed = values.copy()
    changed[3, 1, 2, 2] += 1e-3
    assert card_of(changed).fingerprint != card.fingerprint
    assert card_of(values, (-7.0, 7.0)).fingerprint == card.fingerprint
    for wrong in ([1.0], [2.0, 1.0], [0.0, "1"], [0.0, float("nan")], "ab"):
        with pytest.raises(ValueError, match="value_range"):
            DataCard.from_dict(dataclasses.asdict(card) | {"value_range": wrong})
    with pytest.raises(ValueError, match="levels"):
        DataCard.from_dict(dataclasses.asdict(card) | {"value_range": None})


def test_values_that_changed_on_disk_are_noticed():
    values = floats(8, 2, 4, 4)
    data = ImageDataset.of_floats(values, name="a", split="train", source="b", value_range=RANGE)
    data.verify()
    values[0, 0, 0, 0] += 1.0
    with pytest.raises(ValueError, match="the images have changed"):
        data.verify()


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_the_way_to_a_model_is_linear_from_end_to_end_and_back(value_range):
    values = floats(8, 3, 4, 4).clip(-3, 5)
    card = card_of(values, (-3.0, 5.0))
    ends = torch.tensor([-3.0, 1.0, 5.0]).reshape(3, 1, 1, 1)
    low, high = value_range
    assert to_model(ends, card, value_range).flatten().tolist() == [low, (low + high) / 2, high]
    x = to_model(torch.from_numpy(values), card, value_range)
    assert torch.allclose(from_model(x, card, value_range), torch.from_numpy(values), atol=1e-6)
    beyond = from_model(torch.full((1, 1, 1, 1), 2 * high - low), card, value_range)
    assert beyond.item() == pytest.approx(13.0)  # a range further: nothing is clipped
    with pytest.raises(ValueError, match="floats have no levels"):
        to_model(torch.from_numpy(values), card, value_range, noise=torch.zeros(8, 3, 4, 4))


def test_a_picture_shows_the_first_four_channels_side_by_side():
    values = np.zeros((2, 6, 3, 2), np.float32)
    values[:, 1], values[:, 2], values[:, 3] = -6.0, 6.0, 60.0
    shown = in_pictures(torch.from_numpy(values), card_of(values, (-60.0, 60.0)))
    assert shown.shape == (2, 1, 3, 4 * 3 - 1)
    row = shown[0, 0, 0].tolist()
    grey = [round(255 * share) for share in (0.5, 0.45, 0.55, 1.0)]
    assert row == [grey[0]] * 2 + [255] + [grey[1]] * 2 + [255] + [grey[2]] * 2 + [255] + [255] * 2
