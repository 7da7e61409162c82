"""CelebA: the official split, and the crop of the protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from true_formats import noise, pack

from softtrunc.data import inspect, open_dataset, prepare
from softtrunc.data.detect import open_source

COUNT = 12
IMAGES = noise(COUNT, 218, 178, 3)
SPLIT = [0, 0, 1, 2, 0, 0, 1, 2, 0, 2, 0, 0]


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{i + 1:06d}.png")
    lines = [f"{i + 1:06d}.png {split}" for i, split in enumerate(SPLIT)]
    (folder.parent / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return folder.parent


def expected(number: int) -> np.ndarray:
    chosen = [i for i, split in enumerate(SPLIT) if split == number]
    return IMAGES[chosen].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("form", ["root", "images", "zip", "zip itself", "official", "kaggle"])
def test_the_partition_file_decides(root, tmp_path, form):
    source = images = root / "img_align_celeba"
    partition = root / "list_eval_partition.txt"
    if form == "root":
        source = root
    elif form.startswith("zip"):
        source = pack(images, root / "img_align_celeba.zip")
        images.rename(tmp_path / "elsewhere")
        source = root if form == "zip" else source
    elif form == "official":
        for name in ("Img", "Eval"):
            (root / name).mkdir()
        pack(images, root / "Img" / "img_align_celeba.zip")
        images.rename(tmp_path / "elsewhere")
        partition.rename(root / "Eval" / partition.name)
        source = root
    elif form == "kaggle":
        (root / "img").mkdir()
        images.rename(root / "img" / "img_align_celeba")
        (root / "img").rename(images)
        text = partition.read_text().replace(" ", ",")
        partition.unlink()
        (root / "list_eval_partition.csv").write_text(f"image_id,partition\n{text}")
        source = root
    assert open_source(source).kind == "celeba"
    assert np.array_equal(open_dataset(source, "train").images, expected(0))
    assert np.array_equal(open_dataset(source, "test").images, expected(2))
    found = inspect(source)
    assert (found.count, found.train, found.test) == (12, 7, 3)


def test_the_protocol_crops_140_and_filters_by_a_triangle_in_float(root, tmp_path):
    prepare(root, tmp_path / "out", preset="celeba64", allow_count=True)
    found = open_dataset(tmp_path / "out", "train")
    assert found.images.shape == (7, 3, 64, 64)
    crop = torch.from_numpy(expected(0)[:, :, 39:179, 19:159]).double()
    exact = torch.nn.functional.interpolate(crop, (64, 64), mode="bilinear", antialias=True).numpy()
    # Rounded once: nowhere further than half a level from another implementation in float64.
    assert np.abs(found.images - exact).max() <= 0.5 + 1e-4
    assert found.card.preprocessing == (
        "centre crop 140x140, antialiased bilinear to 64x64 in float32, rounded to 8 bits"
    )
    # Pillow's own 8-bit passes round twice, and differ.
    twice = np.stack(
        [
            np.asarray(
                Image.fromarray(i[39:179, 19:159]).resize((64, 64), Image.Resampling.BILINEAR)
            )
            for i in IMAGES[[0]]
        ]
    ).transpose(0, 3, 1, 2)
    assert not np.array_equal(twice, found.images[:1])


def test_missing_and_unlisted_images_are_named(root):
    (root / "img_align_celeba" / "000001.png").unlink()
    Image.fromarray(IMAGES[0]).save(root / "img_align_celeba" / "999999.png")
    data = open_dataset(root, "train")
    assert np.array_equal(data.images, expected(0)[1:])
    assert {s.name: s.reason for s in data.skipped} == {
        "000001.png": "in list_eval_partition.txt, but there is no such file",
        "999999.png": "not in list_eval_partition.txt",
    }
