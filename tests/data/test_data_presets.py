"""The protocols of known data sets, and what they do to pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from true_formats import noise

from softtrunc.data import PRESETS, open_dataset, prepare
from softtrunc.data.images.fit import Fit

# Published counts; a figure on other counts is another figure.
COUNTS = {
    "mnist": (60_000, 10_000, 28),
    "fashion-mnist": (60_000, 10_000, 28),
    "cifar10": (50_000, 10_000, 32),
    "cifar100": (50_000, 10_000, 32),
    "imagenet32": (1_281_149, 49_999, 32),
    "imagenet64": (1_281_149, 49_999, 64),
    "imagenet32-npz": (1_281_167, 50_000, 32),
    "imagenet64-npz": (1_281_167, 50_000, 64),
    "celeba64": (162_770, 19_962, 64),
    "stl10": (105_000, 8_000, 48),
    "lsun-bedroom256": (3_033_042, 300, 256),
    "lsun-church256": (126_227, 300, 256),
    "celebahq256": (30_000, None, 256),
    "ffhq256": (70_000, None, 256),
}


def test_counts_and_sizes_are_those_of_the_protocols():
    assert {
        name: (preset.train, preset.test, preset.fit.size[0]) for name, preset in PRESETS.items()
    } == COUNTS
    assert all(p.fit.size[0] == p.fit.size[1] and p.fit.strict for p in PRESETS.values())


@pytest.mark.parametrize("name", ["celebahq256", "ffhq256"])
def test_faces_of_1024_are_means_of_4_by_4(name):
    image = noise(1024, 1024, 3)
    found = PRESETS[name].fit(Image.fromarray(image))
    means = image.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3), dtype=np.float64)
    assert np.abs(found - means).max() <= 0.5 + 1e-4
    small = image[:256, :256]
    assert np.array_equal(PRESETS[name].fit(Image.fromarray(small)), small)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(96, 96), (61, 97), (130, 64)])
def test_filters_agree_with_another_implementation(kind, shape):
    image = noise(*shape, 3)
    found = Fit((24, 24), filter=kind, strict=True)(Image.fromarray(image))
    side, (top, left) = min(shape), ((s - min(shape)) // 2 for s in shape)
    crop = torch.from_numpy(image[top : top + side, left : left + side]).permute(2, 0, 1)[None]
    exact = torch.nn.functional.interpolate(
        crop.double(), (24, 24), mode=kind, antialias=True
    ).clamp(0, 255)
    assert np.abs(found - exact[0].permute(1, 2, 0).numpy()).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("fit", "size", "message"),
    [
        (
            Fit((32, 32), filter=None, strict=True),
            (32, 31),
            "is 32x31 (width x height); the protocol takes 32x32 as it is",
        ),
        (
            Fit((64, 64), crop=140, filter="bilinear", strict=True),
            (178, 139),
            "is 178x139 (width x height), smaller than the protocol's crop of 140x140",
        ),
        (
            Fit((256, 256), filter="box", strict=True),
            (128, 300),
            "is 128x300 (width x height), smaller than the protocol's 256x256",
        ),
    ],
)
def test_images_that_cannot_be_of_the_data_set_are_refused(fit, size, message):
    with pytest.raises(ValueError) as refusal:
        fit(Image.new("RGB", size))
    assert str(refusal.value) == message


def test_images_of_another_size_are_left_out_and_counted(tmp_path):
    for i in range(6):
        path = tmp_path / "p" / ("train" if i < 4 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(32 if i else 31, 32, 3, seed=i)).save(path)
    prepare(tmp_path / "p", tmp_path / "out", preset="cifar10", allow_count=True)
    data = open_dataset(tmp_path / "out", "train")
    assert len(data) == 3
    assert data.skipped == (
        (
            "train/0.png",
            "is 32x31 (width x height); the protocol takes 32x32 as it is",
        ),
    )
