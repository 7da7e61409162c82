"""Folders, zips and tars of images: exact pixels, splits, and files that are not what they seem."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softtrunc.data import open_dataset
from softtrunc.data.detect import open_source
from softtrunc.data.formats.files import open_archive
from softtrunc.data.images.decode import decode
from softtrunc.data.splits import choose_names


def noise(seed: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty colour images in two class folders, lossless, and files that are no images."""
    root = tmp_path / "photos"
    for i in range(40):
        suffix = ("png", "bmp", "tiff", "PNG")[i % 4]
        save(root / f"{'ab'[i % 2]}" / f"{i:02d}.{suffix}", noise(i))
    (root / "README.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes(b"not an image")
    (root / ".cache").mkdir()
    (root / ".cache" / "x.png").write_bytes(b"not an image")
    return root


def pack_zip(folder: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def pack_tar(folder: Path, path: Path, top: str = "./") -> Path:
    with tarfile.open(path, "w:" + (path.suffix[1:] if path.suffix != ".tar" else "")) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.add(file, top + file.relative_to(folder).as_posix(), recursive=False)
    return path


def test_pixels_are_exact_and_in_the_order_of_names(folder):
    train = open_dataset(folder, "train")
    test = open_dataset(folder, "test")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.glob("[ab]/*"))
    expected = {n: noise(int(Path(n).stem)).transpose(2, 0, 1) for n in names}
    for data, split in ((train, "train"), (test, "test")):
        chosen = choose_names(names, split)
        assert len(data) == len(chosen) > 0
        assert np.array_equal(data.images, np.stack([expected[n] for n in chosen]))
        assert data.skipped == ()
        assert data.card.levels == 256
    assert len(train) + len(test) == 40


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_archive_is_the_same_data_as_its_folder(folder, tmp_path, split):
    fingerprint = open_dataset(folder, split).card.fingerprint
    archives = [
        pack_zip(folder, tmp_path / "a.zip"),
        pack_zip(folder, tmp_path / "b.zip", top="photos/"),
        pack_tar(folder, tmp_path / "a.tar"),
        pack_tar(folder, tmp_path / "b.tar", top="photos/"),
        pack_tar(folder, tmp_path / "c.tar.gz"),
        pack_tar(folder, tmp_path / "d.tar.xz"),
        pack_tar(folder, tmp_path / "e.tar.bz2"),
    ]
    for archive in archives:
        assert open_dataset(str(archive), split).card.fingerprint == fingerprint


def test_adding_images_moves_none_to_the_other_split():
    names = [f"{i}.png" for i in range(2000)]
    held = set(choose_names(names, "test"))
    assert held <= set(choose_names([*names, *(f"new/{n}" for n in names)], "test"))
    # 2,000 independent draws of 10 %: outside +-6 standard errors once in 5e8.
    assert abs(len(held) - 200) < 6 * (2000 * 0.1 * 0.9) ** 0.5
    rows = [{int(row) for row in choose_names(numbers(n), "test")} for n in (500, 1000)]
    assert rows[0] == {r for r in rows[1] if r < 500}
    assert {int(row) for row in choose_names(numbers(500), "train")} == set(range(500)) - rows[0]


def numbers(count: int) -> list[str]:
    """What the images of an array are called."""
    return [str(row) for row in range(count)]


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train/a", "test/b"], ["train/a"], ["test/b"]),
        (["Training/a", "val/b"], ["Training/a"], ["val/b"]),
        (["train/a", "val/b", "test/c"], ["train/a"], ["test/c"]),
        (["a", "x/b", "test/c"], ["a", "x/b"], ["test/c"]),
        (["a", "val/b", "test/c"], ["a"], ["test/c"]),
        (["test.png", "train.png"], ["test.png", "train.png"], []),
    ],
)
def test_folders_named_after_splits_are_the_splits(names, train, test):
    assert choose_names(names, "train", held_out=0.0) == train
    assert choose_names(names, "test", held_out=0.0) == test


def test_a_train_folder_alone_is_divided(tmp_path):
    for i in range(30):
        save(tmp_path / "train" / f"{i}.png", noise(i))
    counts = [len(open_dataset(tmp_path, split)) for split in ("train", "test")]
    assert sum(counts) == 30
    assert min(counts) > 0


def test_colour_of_one_image_makes_all_of_them_colour(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", noise(i, channels=1 if i < 2 else 3))
    data = open_dataset(tmp_path, "train", held_out=0.0)
    assert data.images.shape == (3, 3, 6, 5)
    assert np.array_equal(data.images[0], np.repeat(noise(0, channels=1)[None], 3, axis=0))
    assert np.array_equal(data.images[2], noise(2).transpose(2, 0, 1))
    grey = open_dataset(tmp_path, "train", held_out=0.0, channels=1)
    assert grey.images.shape == (3, 1, 6, 5)
    assert np.array_equal(grey.images[0, 0], noise(0, channels=1))


def test_resizing_is_a_centre_crop_and_pillows_bicubic(tmp_path):
    pixels = noise(0, height=40, width=100)
    save(tmp_path / "wide.png", pixels)
    data = open_dataset(tmp_path, "train", image_size=(16, 20), held_out=0.0)
    # The aspect of 20 x 16 within 100 x 40 is 50 x 40, in the middle.
    crop = Image.fromarray(pixels[:, 25:75])
    expected = np.asarray(crop.resize((20, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(data.images[0].transpose(1, 2, 0), expected)
    assert "bicubic" in data.card.preprocessing
    # A checkerboard finer than the result must come out grey: antialiased.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "board" / "x.png", board)
    small = open_dataset(tmp_path / "board", "train", image_size=8, held_out=0.0).images
    assert np.abs(small.astype(int) - 127).max() <= 3


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_modes_become_grey_or_rgb():
    rgb = Image.fromarray(noise(0))
    palette = rgb.quantize(16)
    assert np.array_equal(
        decode(encode(palette, "PNG"), None, None).pixels, np.asarray(palette.convert("RGB"))
    )
    bits = Image.fromarray(noise(0, channels=1)).convert("1")
    assert np.array_equal(
        decode(encode(bits, "PNG"), None, None).pixels[..., 0], np.asarray(bits) * np.uint8(255)
    )
    cmyk = decode(encode(rgb.convert("CMYK"), "TIFF"), None, None)
    assert cmyk.mode == "CMYK"
    assert np.array_equal(cmyk.pixels, np.asarray(rgb.convert("CMYK").convert("RGB")))
    luma = decode(encode(rgb, "PNG"), None, 1).pixels
    assert np.array_equal(luma[..., 0], np.asarray(rgb.convert("L")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    alpha = np.zeros((6, 5), np.uint8)
    alpha[:3] = 255
    image = Image.fromarray(noise(0)).convert("L").convert("RGB")
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        plain = Image.fromarray(np.where(alpha > 0, 7, 3).astype(np.uint8), "P")
        plain.putpalette([0, 0, 0] * 7 + [10, 10, 10] * 249)
        pixels = decode(encode(plain, "PNG", transparency=3), None, None).pixels
        assert (pixels[:3] == 10).all()
    else:
        pixels = decode(encode(image.convert(mode), "PNG"), None, None).pixels
        assert pixels.shape[2] == {"RGBA": 3, "LA": 1}[mode]
        assert np.array_equal(pixels[:3, :, 0], np.asarray(image.convert("L"))[:3])
    assert (pixels[3:] == 255).all()


def test_photographs_stand_upright():
    pixels = noise(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise to be seen
    data = encode(Image.fromarray(pixels), "PNG", exif=exif)
    assert np.array_equal(decode(data, None, None).pixels, np.rot90(pixels, -1))


def png_16_bit_rgb() -> bytes:
    """Pillow reads such a file and drops half of its bits, but cannot write it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(12)) * 2)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = encode(Image.fromarray(noise(0, channels=1)), "PNG")
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


GOOD = encode(Image.fromarray(noise(0)), "PNG")
BROKEN = {
    "empty.png": (b"", "not an image"),
    "text.jpg": (b"hello", "not an image"),
    "cut.png": (GOOD[:60], "truncated|broken|cut|incomplete"),
    "deep-grey.png": (
        encode(Image.fromarray(np.arange(4, dtype=np.uint16).reshape(2, 2)), "PNG"),
        "8 bits",
    ),
    "deep-colour.png": (png_16_bit_rgb(), "8 bits"),
    "float.tiff": (encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "8 bits"),
    "huge.png": (png_claiming(9000, 9000), "bomb"),
    "vast.png": (png_claiming(60000, 60000), "bomb"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an"),
}


@pytest.fixture
def mixed(tmp_path) -> Path:
    root = tmp_path / "mixed"
    root.mkdir()
    for name, (content, _) in BROKEN.items():
        (root / name).write_bytes(content)
    for i in range(5):
        save(root / f"good{i}.png", noise(i))
    return root


def check_mixed(data) -> None:
    assert np.array_equal(data.images, np.stack([noise(i).transpose(2, 0, 1) for i in range(5)]))
    assert [s.name for s in data.skipped] == sorted(BROKEN)
    for name, reason in data.skipped:
        assert re.search(BROKEN[name][1], reason), (name, reason)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_named_and_end_nothing(mixed, tmp_path):
    options = {"held_out": 0.0}
    check_mixed(open_dataset(mixed, "train", **options))
    check_mixed(open_dataset(pack_zip(mixed, tmp_path / "m.zip"), "train", **options))
    check_mixed(open_dataset(pack_tar(mixed, tmp_path / "m.tar.gz"), "train", **options))


def test_files_that_cannot_be_opened_are_named(folder):
    (folder / "a" / "gone.png").symlink_to("nowhere.png")
    (folder / "a" / "fake.png").mkdir()
    data = open_dataset(folder, "train", held_out=0.0)
    assert len(data) == 40
    assert [s.name for s in data.skipped] == ["a/gone.png"]


def test_a_folder_without_a_readable_image_is_refused(mixed, tmp_path):
    for good in mixed.glob("good*"):
        good.unlink()
    for name in ("huge.png", "vast.png"):
        (mixed / name).unlink()
    with pytest.raises(ValueError, match=r"no readable image under .*; the first, cut\.png: "):
        open_dataset(mixed, "train", held_out=0.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no readable image under .*empty"):
        open_dataset(tmp_path / "empty", "train")
    with pytest.raises(FileNotFoundError, match="no such data"):
        open_dataset(tmp_path / "absent", "train")


def test_mixed_sizes_need_a_size(tmp_path):
    save(tmp_path / "a.png", noise(0))
    save(tmp_path / "b.png", noise(1, height=7))
    with pytest.raises(ValueError, match=r"a.png is 5x6, b.png is 5x7 .*image_size=64"):
        open_dataset(tmp_path, "train", held_out=0.0)
    assert open_dataset(tmp_path, "train", held_out=0.0, image_size=4).images.shape == (2, 3, 4, 4)


def test_arguments_out_of_range_are_refused(folder):
    for options, message in [
        ({"channels": 4}, "channels=4"),
        ({"image_size": 0}, "image_size=0"),
        ({"held_out": 1.0}, "held_out=1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_dataset(folder, "train", **options)
    with pytest.raises(ValueError, match='"train" or "test"'):
        open_dataset(folder, "valid")
    with pytest.raises(ValueError, match=r"none of its 40 images .* test/"):
        open_dataset(folder, "test", held_out=0.0)


def test_progress_counts_every_file(folder):
    calls: list[tuple[int, int]] = []
    open_dataset(folder, "train", held_out=0.0, progress=lambda *call: calls.append(call))
    assert calls == [(i, 40) for i in range(1, 41)]


def test_bombs_in_archives_are_refused(tmp_path):
    zeros = bytes(64 << 20)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", zeros)
    with zipfile.ZipFile(tmp_path / "nested.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(bomb, "bomb.zip")
        archive.writestr("a.png", GOOD)
    # Deflate reaches 1,030 to 1.
    with pytest.raises(ValueError, match="refused as a decompression bomb"):
        open_dataset(bomb, "train")
    assert len(open_dataset(tmp_path / "nested.zip", "train", held_out=0.0)) == 1
    with tarfile.open(tmp_path / "bomb.tar.xz", "w:xz") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = len(zeros)
        archive.addfile(info, io.BytesIO(zeros))
    with pytest.raises(ValueError, match="refused as a decompression bomb"):
        open_dataset(tmp_path / "bomb.tar.xz", "train")


def test_names_that_lead_out_of_an_archive_write_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "evil.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../escaped.png", "/absolute.png"):
            info = tarfile.TarInfo(name)
            info.size = len(GOOD)
            archive.addfile(info, io.BytesIO(GOOD))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        info = tarfile.TarInfo("good.png")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))
    data = open_dataset(path, "train", held_out=0.0)
    assert len(data) == 1
    assert {s.name: s.reason for s in data.skipped} == {
        "../escaped.png": "its name leads out of the archive: refused",
        "/absolute.png": "its name leads out of the archive: refused",
        "link.png": "a link or device, not a file",
    }
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["evil.tar", "in"]


def test_a_name_that_occurs_twice_counts_once(tmp_path):
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(GOOD)
            archive.addfile(info, io.BytesIO(GOOD))
    calls: list[tuple[int, int]] = []
    data = open_dataset(path, "train", held_out=0.0, progress=lambda *call: calls.append(call))
    assert len(data) == 1
    assert calls == [(1, 1)]


def test_broken_members_are_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.png", GOOD)
        archive.writestr("good.png", GOOD)
    content = bytearray(path.read_bytes())
    content[80] ^= 0xFF  # within the first member's pixels
    path.write_bytes(content)
    data = open_dataset(path, "train", held_out=0.0)
    assert len(data) == 1
    assert data.skipped[0].name == "bad.png"
    assert "CRC" in data.skipped[0].reason


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_archives_cut_short_are_refused(folder, tmp_path, kind):
    whole = tmp_path / f"a.{kind}"
    pack_zip(folder, whole) if kind == "zip" else pack_tar(folder, whole)
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{kind}"
    for share in (0.3, 0.9):
        cut.write_bytes(content[: int(share * len(content))])
        # A file that is cut inside a header is no archive at all.
        with pytest.raises(ValueError, match=r"cut short|broken|not a readable"):
            open_dataset(str(cut), "train", image_size=4)
    with pytest.raises(FileNotFoundError, match="no such"):
        open_dataset(tmp_path / f"absent.{kind}", "train")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"not a kind of file .*\.npy, \.npz"):
        open_dataset(str(tmp_path / "notes.txt"), "train")


def test_cifar10_as_jpeg_is_found_whole_and_its_test_split_read(shared):
    files = open_archive(shared / "data" / "cifar10-jpeg.tar.xz")
    assert len(choose_names(files.names, "train")) == 50_000
    test = choose_names(files.names, "test")
    assert len(test) == 10_000
    some = [decode(each.content, None, None) for each in files.read(test[:20])]
    assert [each.pixels.shape for each in some] == [(32, 32, 3)] * 20


def test_what_was_skipped_leaves_no_gaps(folder):
    for i in range(0, 40, 3):
        next(folder.rglob(f"{i:02d}.*")).write_bytes(b"broken")
    data = open_dataset(folder, "train", held_out=0.0)
    good = [i for i in range(40) if i % 3]
    order = sorted(good, key=lambda i: ("ab"[i % 2], i))
    assert np.array_equal(data.images, np.stack([noise(i).transpose(2, 0, 1) for i in order]))
    assert len(data.skipped) == 14


def test_an_archive_beside_images_is_left_alone_and_alone_it_is_read(folder, tmp_path):
    alone = tmp_path / "download"
    alone.mkdir()
    pack_zip(folder, alone / "photos.zip")
    (alone / "README").write_text("fetched today")
    expected = open_dataset(folder, "train").card.fingerprint
    assert open_dataset(str(alone), "train").card.fingerprint == expected
    pack_zip(folder, folder / "backup.zip")
    assert open_dataset(str(folder), "train").card.fingerprint == expected
    assert open_source(folder).kind == "folder"
