"""Archives, folders and tables of images that are damaged, hostile or careless."""

from __future__ import annotations

import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from harness import Outcome, Proof, at_length, part, seeded, times
from PIL import Image

from softtrunc.data import open_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


FILES = {f"{'train' if i < 14 else 'test'}/{i:02d}.png": encode(im) for i, im in enumerate(IMAGES)}
PIXELS = {image.tobytes() for image in IMAGES.transpose(0, 3, 1, 2)}


def write_zip(files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, packing
            archive.writestr(info, content)
    return stream.getvalue()


def write_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def only_true_pixels(path: str) -> None:
    """No image that is read is another than one that was written, and none is in both splits."""
    seen: dict[str, set[bytes]] = {}
    for split in ("train", "test"):
        try:
            images = open_dataset(path, split).images
        except FileNotFoundError:  # all of a split may be gone with the damage
            continue
        seen[split] = {image.tobytes() for image in images}
        assert seen[split] <= PIXELS
    assert seen
    assert not set.intersection(*seen.values()) or len(seen) == 1


@pytest.mark.parametrize("kind", ["zip", "stored.zip", "tar", "tar.gz", "tar.xz"])
def test_flipped_bits(hostile: Proof, kind):
    write = {
        "zip": lambda: write_zip(FILES),
        "stored.zip": lambda: write_zip(FILES, zipfile.ZIP_STORED),
        "tar": lambda: write_tar(FILES),
        "tar.gz": lambda: write_tar(FILES, "w:gz"),
        "tar.xz": lambda: write_tar(FILES, "w:xz"),
    }
    draw, plain, name = seeded(kind), write[kind](), f"a.{kind}"
    for number in range(times(3)):
        damaged = bytearray(plain)
        at = draw.randrange(len(plain)) if number % 2 else len(plain) - 1 - draw.randrange(600)
        damaged[at] ^= 1 << draw.randrange(8)
        if number % 8 == 7:
            del damaged[at:]
        Path(name).write_bytes(damaged)

        # A tar has no checksum of what is in it: a damaged PNG is told by its own.
        hostile.attempt(
            f"byte {at}", "data", "inspect", name, right=lambda _: only_true_pixels(name)
        )


def test_names_that_lead_out_and_other_members(hostile: Proof):
    evil = {
        "../../evil.png": FILES["train/00.png"],
        "/etc/evil.png": FILES["train/01.png"],
        "..\\..\\evil.png": FILES["train/02.png"],
        "a/../../evil.png": FILES["train/03.png"],
        "\u202egnp.png": FILES["train/04.png"],
        "line\nbreak.png": FILES["train/05.png"],
        "n" * 200 + ".png": FILES["train/06.png"],
        "\x1b[31mred.png": FILES["train/07.png"],
    }
    for kind, content in (("zip", write_zip(evil)), ("tar", write_tar(evil))):
        Path(f"a.{kind}").write_bytes(content)

        def right(outcome: Outcome, kind: str = kind) -> None:
            found = open_dataset(f"a.{kind}", "all")
            assert len(found) == 4
            assert all("leads out" in skipped.reason for skipped in found.skipped)
            assert outcome.out.count("leads out") == 4

        hostile.attempt(kind, "data", "inspect", f"a.{kind}", right=right)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, type_ in (("l.png", tarfile.SYMTYPE), ("f.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, "/etc/hostname"
            archive.addfile(info)
    Path("a.tar").write_bytes(stream.getvalue())
    hostile.attempt("links and pipes alone", "data", "inspect", "a.tar")


def test_archives_that_are_none(hostile: Proof):
    zeros = bytes((80 if at_length() else 8) << 20)
    cases = {
        "empty": b"",
        "half a zip": write_zip(FILES)[:900],
        "no images": write_zip({"a.txt": b"x"}),
        "nothing in it": write_zip({}),
        "zip of zeros": write_zip({"a.png": zeros}),
        "tar of zeros": write_tar({"a.png": zeros}, "w:xz"),
        "pages called png": write_zip({"a.png": b"<html>", "b.png": b"<html>"}),
        "a zip in a zip": write_zip({"a.zip": write_zip(FILES)}),
        "text": b"hello " * 500,
        "batch of zeros": write_tar({"cifar/data_batch_1": zeros, "cifar/test_batch": b""}, "w:gz"),
    }
    for name, content in part(cases.items(), 5):
        path = "a.tar" if "tar" in name else "a.zip"
        Path(path).write_bytes(content)
        for verb in (["inspect", path], ["prepare", path, "--out", "out"]):
            hostile.attempt(f"{name}: {verb[0]}", "data", *verb)


def test_folders_with_all_kinds_of_files(hostile: Proof):
    place = hostile.folder / "p"
    place.mkdir()
    for number in range(6):
        (place / f"{number}.png").write_bytes(FILES[f"train/{number:02d}.png"])
    (place / "loop.png").symlink_to("loop.png")
    (place / "nowhere.png").symlink_to("absent")
    (place / "device.png").symlink_to("/dev/zero")
    os.mkfifo(place / "pipe.png")
    os.mkfifo(place / "pipe")
    (place / "folder.png").mkdir()
    (place / "empty.png").write_bytes(b"")
    (place / "cut.png").write_bytes(FILES["train/00.png"][:60])
    (place / "noise.jpg").write_bytes(random.Random(0).randbytes(900))
    (place / "bare").write_bytes(FILES["train/07.png"])
    deep = b"P6\n2 2\n65535\n" + bytes(24)
    (place / "deep.ppm").write_bytes(deep)
    (place / "up").symlink_to("..")
    (hostile.folder / os.fsdecode(b"p/n\xff.png")).write_bytes(FILES["train/08.png"])

    def right(outcome: Outcome) -> None:
        assert len(open_dataset("p", "all")) == 7
        left_out = ("loop", "nowhere", "device", "pipe", "empty", "cut", "noise", "bare", "deep")
        assert all(f"unreadable: {name}" in outcome.out for name in left_out)

    hostile.attempt("inspect", "data", "inspect", "p", right=right)


def test_one_large_image(hostile: Proof):
    Path("p").mkdir()
    side = 8900 if at_length() else 3000
    Image.new("1", (side, side)).save("p/a.png")
    Path("p/b.png").write_bytes(FILES["train/00.png"])
    # A few bytes of every pixel, and what decoders bring along; counting each was 35 a pixel.
    memory = 8 * side**2 + (160 << 20)
    hostile.attempt(f"{side}^2", "data", "inspect", "p", right=lambda _: None, memory=memory)


def test_tables(hostile: Proof):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    good = [{"bytes": content, "path": name} for name, content in FILES.items()]
    stream = io.BytesIO()
    parquet.write_table(pa.table({"image": pa.array(good, kind), "label": range(20)}), stream)
    plain, draw = stream.getvalue(), seeded(7)
    for number in range(times(4)):
        damaged = bytearray(plain)
        at = draw.randrange(len(plain)) if number % 2 else len(plain) - 1 - draw.randrange(900)
        damaged[at] ^= 1 << draw.randrange(8)
        Path("t.parquet").write_bytes(damaged)
        hostile.attempt(f"byte {at}", "data", "inspect", "t.parquet", right=lambda _: None)
    large, side = io.BytesIO(), 2000 if at_length() else 700
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(large, "BMP")
    rows = pa.array([{"bytes": large.getvalue(), "path": "a"}] * 60, kind)
    parquet.write_table(
        pa.table({"image": rows}),
        "t.parquet",
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
    )
    assert Path("t.parquet").stat().st_size < 3000
    hostile.attempt(
        *("a kB of one image", "data", "inspect", "t.parquet"),
        right=lambda _: None,
    )
    many = pa.table({"image": pa.array([None], kind).take(pa.array(np.zeros(3_000_000, np.int8)))})
    parquet.write_table(many, "t.parquet")
    assert Path("t.parquet").stat().st_size < 100_000
    hostile.attempt("a million rows of nothing", "data", "inspect", "t.parquet")


@pytest.mark.parametrize("name", ["a.zip", "a.npz", "a"])
def test_no_flipped_bit_of_a_directory_is_an_error_of_the_packer(tmp_path, name):
    """Of unknown versions, names that are no UTF-8, places before the start."""
    stream = io.BytesIO()
    if name == "a.npz":
        np.savez_compressed(stream, images=IMAGES, labels=np.arange(20))
    else:
        stream = io.BytesIO(write_zip({"é.png": FILES["train/00.png"], "b.png": encode(IMAGES[1])}))
    plain, path, refused = stream.getvalue(), tmp_path / name, 0
    for at in range(plain.index(b"PK\x01\x02"), len(plain)):
        damaged = bytearray(plain)
        damaged[at] ^= 0x80
        path.write_bytes(damaged)
        try:
            open_dataset(str(path), "all")
        except (ValueError, FileNotFoundError):
            refused += 1
    assert refused
