"""Names as other systems write them, and what a name or a file does not tell."""

from __future__ import annotations

import io
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from true_formats import encode, noise

from softtrunc.data import inspect, open_dataset, prepare
from softtrunc.data.images.decode import _refuse_deep

IMAGES = [encode(image) for image in noise(30, 8, 8, 3)]


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in zip(names, IMAGES, strict=False):
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would put slashes
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize("inside", ["", "set\\"])
def test_backslashes_in_a_zip_are_slashes(tmp_path, inside):
    names = [f"train\\{i:02d}.png" for i in range(20)] + [f"test\\{i:02d}.png" for i in range(10)]
    names = [f"{inside}{name}" for name in names]
    slashes = write_zip(tmp_path / "a.zip", [name.replace("\\", "/") for name in names])
    back = write_zip(tmp_path / "b.zip", [*names, f"{inside}train\\"])
    for split, count in (("train", 20), ("test", 10)):
        found = open_dataset(back, split)
        assert len(found) == count
        assert found.card.fingerprint == open_dataset(slashes, split).card.fingerprint


def test_backslashes_that_lead_out_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", ["..\\..\\evil.png", "good.png"])
    found = open_dataset(path, "train", held_out=0.0)
    assert [(s.name, s.reason) for s in found.skipped] == [
        ("..\\..\\evil.png", "its name leads out of the archive: refused")
    ]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_accents_composed_or_not_are_one_name(tmp_path, kind):
    found = {}
    for form in ("NFC", "NFD"):
        # In NFD this sorts before the z, in NFC after it.
        names = [unicodedata.normalize(form, f"n{'éz'[i % 2]}{i:02d}.png") for i in range(30)]
        place = tmp_path / form
        place.mkdir()
        if kind == "folder":
            for name, content in zip(names, IMAGES, strict=True):
                (place / name).write_bytes(content)
        elif kind == "zip":
            place = write_zip(place / "a.zip", names)
        else:
            with tarfile.open(place / "a.tar", "w") as archive:
                for name, content in zip(names, IMAGES, strict=True):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            place = place / "a.tar"
        found[form] = [open_dataset(place, split) for split in ("train", "test")]
    for one, other in zip(found["NFC"], found["NFD"], strict=True):
        assert one.card.fingerprint == other.card.fingerprint


def test_all_images_whatever_their_folders_are_called(tmp_path):
    for name, content in zip(["cat/0", "test/1", "val/2", "train/3"], IMAGES, strict=False):
        path = tmp_path / "s" / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert len(open_dataset(tmp_path / "s", "all")) == 4
    assert len(open_dataset(tmp_path / "s", "train")) == 1
    prepare(tmp_path / "s", tmp_path / "p")
    assert len(open_dataset(tmp_path / "p", "all")) == 2  # what was prepared
    with pytest.raises(ValueError, match='"train" or "test" or "all"'):
        open_dataset(tmp_path / "s", "every")


def test_a_link_to_itself_costs_that_link_alone(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(IMAGES[number])
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = open_dataset(tmp_path, "train", held_out=0.0)
    assert len(found) == 4
    assert found.skipped[0].name == "loop.png"
    assert "symbolic links" in found.skipped[0].reason
    assert inspect(tmp_path).count == 4


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_image_without_an_ending_is_named_beside_others(tmp_path, kind):
    place = tmp_path / "s"
    place.mkdir()
    for name, content in (("a.png", IMAGES[0]), ("b", IMAGES[1]), ("README", b"about these")):
        (place / name).write_bytes(content)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
            for path in sorted(place.iterdir()):
                archive.write(path, path.name)
    elif kind == "tar":
        with tarfile.open(tmp_path / "s.tar", "w") as archive:
            archive.add(place, "s")
    found = open_dataset(tmp_path / ("s" if kind == "folder" else f"s.{kind}"), "all")
    assert len(found) == 1
    why = "an image, but its name has no ending: add one, e.g. .png"
    assert [tuple(s) for s in found.skipped] == [("b", why)]


def deep_ppm(plain: bool = False) -> bytes:
    values = np.arange(48, dtype=">u2") * 1000
    body = " ".join(map(str, values)).encode() if plain else values.tobytes()
    return (b"P3" if plain else b"P6") + b"\n4 4\n65535\n" + body


def deep_jpeg2000() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(stream, "JPEG2000")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.ppm", deep_ppm),
        ("a.ppm", lambda: deep_ppm(plain=True)),
        ("a.jp2", deep_jpeg2000),
    ],
)
def test_more_than_8_bits_are_not_read_as_8(tmp_path, name, write):
    if name == "a.jp2" and not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")
    (tmp_path / name).write_bytes(write())
    (tmp_path / "b.png").write_bytes(IMAGES[0])
    found = open_dataset(tmp_path, "all")
    assert len(found) == 1
    assert found.skipped[0].name == name
    assert "more than 8 bits a channel" in found.skipped[0].reason


def test_avif_of_ten_bits_is_told_by_its_header():
    """Pillow writes none; it would read them as 8 bits."""
    if not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    stream = io.BytesIO()
    Image.fromarray(noise(16, 16, 3)).save(stream, "AVIF")
    content = bytearray(stream.getvalue())
    with Image.open(stream) as image:
        _refuse_deep(image, bytes(content))
        content[content.find(b"av1C") + 6] |= 0x40
        with pytest.raises(ValueError, match="more than 8 bits"):
            _refuse_deep(image, bytes(content))


def test_eight_bits_in_the_same_formats_are_read(tmp_path):
    image = noise(16, 16, 3)
    kinds = {"ppm": "PPM"}
    kinds |= {"jp2": "JPEG2000"} if features.check("jpg_2000") else {}
    kinds |= {"avif": "AVIF"} if features.check("avif") else {}
    for ending, kind in kinds.items():
        Image.fromarray(image).save(tmp_path / f"a.{ending}", kind)
    found = open_dataset(tmp_path, "all")
    assert (len(found), found.skipped) == (len(kinds), ())


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_images_that_are_enlarged_are_counted(tmp_path, kind):
    images = noise(6, 8, 8, 3)
    if kind == "array":
        np.save(tmp_path / "a.npy", images)
        source = tmp_path / "a.npy"
    else:
        source = tmp_path / "s"
        source.mkdir()
        for number, image in enumerate(images):
            (source / f"{number}.png").write_bytes(encode(image))
    words = {"enlarged: smaller than the size asked for": 6}
    assert open_dataset(source, "all", image_size=16).converted == words
    assert open_dataset(source, "all", image_size=(8, 16)).converted == words
    assert open_dataset(source, "all", image_size=4).converted == {}
    prepare(source, tmp_path / "p", image_size=16)
    data = [open_dataset(tmp_path / "p", split) for split in ("train",)]
    assert data[0].converted == {**words, next(iter(words)): len(data[0])}
