"""A photographer's folder: HEIC, a single file, and few images."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from true_formats import encode, noise

from softtrunc.data import inspect, open_dataset
from softtrunc.data.images import decode
from softtrunc.data.splits import HELD_OUT, choose_names

HEIC = "HEIC: `pip install 'softtrunc[heif]'` to read it, or convert it to JPEG or PNG"


def test_of_ten_images_or_more_one_at_least_is_held_out():
    # 22 names of which the hash of none lies in the first tenth.
    few = [f"{i}.png" for i in range(2000)]
    low = set(choose_names(few, "test"))
    names = [name for name in few if name not in low][:22]
    (held,) = choose_names(names, "test")
    assert choose_names(names, "train") == [name for name in names if name != held]
    # The nearest to the bound, so that more images leave it where it is unless one is nearer.
    assert held in choose_names(few, "test", held_out=0.5)
    assert choose_names(names[:9], "test") == []
    assert choose_names(names, "test", held_out=0.0) == []
    assert len(choose_names(few, "test")) > 2000 * HELD_OUT / 2


@pytest.fixture
def without_heif(monkeypatch):
    decode._formats.cache_clear()
    monkeypatch.setattr(decode, "_reads_heif", lambda: False)
    yield
    decode._formats.cache_clear()


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("packed", [False, True])
def test_heic_is_named_with_what_to_do(tmp_path, packed):
    place = tmp_path / "photos"
    place.mkdir()
    for i, image in enumerate(noise(3, 8, 8, 3)):
        (place / f"{i}.png").write_bytes(encode(image))
    for name in ("IMG_1.HEIC", "b.heif", ".hidden.heic"):
        (place / name).write_bytes(b"\0\0\0\x18ftypheic")
    if packed:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in place.iterdir():
                archive.write(path, path.name)
        place = tmp_path / "photos.zip"
    found = open_dataset(place, "train", held_out=0.0)
    assert len(found) == 3
    assert sorted(found.skipped) == [("IMG_1.HEIC", HEIC), ("b.heif", HEIC)]


@pytest.mark.usefixtures("without_heif")
def test_heic_alone_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for source in (tmp_path, tmp_path / "a.heic"):
        with pytest.raises(ValueError, match=r"HEIC: `pip install 'softtrunc\[heif\]'`"):
            open_dataset(source, "train")


def test_heic_is_read_where_its_package_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()  # for what is saved below
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(smooth).convert("RGB").save(content, "HEIF", quality=95)
    (tmp_path / "a.heic").write_bytes(content.getvalue())
    found = open_dataset(tmp_path / "a.heic", "train")
    assert np.abs(found.images[0].astype(int) - smooth).mean() < 3
    assert inspect(tmp_path).modes[0].mode == "RGB"


def test_one_file_is_a_data_set_of_one_image(tmp_path):
    (image,) = noise(1, 8, 6, 3)
    for name in ("0.png", "1.png", "2.png", "3.png"):  # a tenth of the names would be held out
        (tmp_path / name).write_bytes(encode(image))
        found = inspect(tmp_path / name)
        assert (found.count, found.train, found.test, found.sigma_max) == (1, 1, 0, None)
        assert (found.sizes[0].width, found.sizes[0].height) == (6, 8)
    data = open_dataset(tmp_path / "2.png", "train")
    assert np.array_equal(data.images[0], image.transpose(2, 0, 1))
    assert data.splits == ("train",)
    with pytest.raises(FileNotFoundError, match="none of its 1 images falls into the test split"):
        open_dataset(tmp_path / "2.png", "test")
