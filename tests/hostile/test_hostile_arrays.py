"""Arrays that lie, are cut short, hold too much, or are no images."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from harness import Outcome, Proof, at_length, part, seeded, times

from softtrunc.data import open_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


def npy(array: np.ndarray = IMAGES) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(packed: bool = True, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)
    return stream.getvalue()


def same(path: str, images: np.ndarray = IMAGES) -> None:
    """The array's images, pixel for pixel, whichever axis is the colours'."""
    found = open_dataset(path, "all").images
    assert found.size == images.size
    assert np.array_equal(np.sort(found.reshape(-1)), np.sort(images.reshape(-1)))


def test_flipped_bits_of_a_header(hostile: Proof):
    draw, plain = seeded(0), npy()
    for _ in range(times(15)):
        bit = draw.randrange(128 * 8)
        content = bytearray(plain)
        content[bit // 8] ^= 1 << bit % 8
        Path("a.npy").write_bytes(content)
        # A flip in the padding, or from C to Fortran order, leaves images of as many pixels.
        hostile.attempt(f"bit {bit}", "data", "inspect", "a.npy", right=lambda _: same("a.npy"))


@pytest.mark.parametrize("packed", [True, False])
def test_flipped_bits_of_an_npz(hostile: Proof, packed):
    draw, plain = seeded(1), npz(packed, x_train=IMAGES, y_train=np.arange(24))
    for number in range(times(5)):
        ends = [draw.randrange(200), len(plain) - 1 - draw.randrange(300)]
        at = draw.randrange(len(plain)) if number % 2 else draw.choice(ends)
        content = bytearray(plain)
        content[at] ^= 1 << draw.randrange(8)
        Path("a.npz").write_bytes(content)

        def right(_: Outcome) -> None:
            same("a.npz")

        hostile.attempt(f"byte {at}", "data", "inspect", "a.npz", right=right)


def header(text: str) -> bytes:
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def test_headers_that_lie(hostile: Proof):
    shapes = [
        "(10000000000, 8, 8, 3)", "(24, 8, 8, 10000000000)", "(-24, 8, 8, -3)", "(24, 8, 8)", "()",
        "(0, 8, 8, 3)", "(24, 0, 8, 3)", "[24, 8, 8, 3]", "(24, 8.0, 8, 3)", "(True, 8, 8, 3)",
        "(24, 8, 8, 3, 1)", "'x'", "None", "(1e400,)", "(" * 50, f"({'1' * 5000},)",
        "((1,), 2, 3)", "(24,) * 10**9", "__import__('os')",
    ]  # fmt: skip
    types = ["'|u1'", "'|O'", "'<f4'", "'|V192'", "'|S3'", "[('a', '|u1', (3,))]", "'<M8[s]'", "1"]
    texts = [f"{{'descr': '|u1', 'fortran_order': False, 'shape': {s}}}" for s in shapes]
    texts += [
        f"{{'descr': {t}, 'fortran_order': False, 'shape': (24, 8, 8, 3)}}" for t in types[1:]
    ]
    texts += ["{}", "[]", "\0" * 60, "{'descr': '|u1'}", "{1: 2}", "", "#" * 100]
    for text in part(texts, 12):
        Path("a.npy").write_bytes(header(text[:117]) + IMAGES.tobytes())
        hostile.attempt(text[:50], "data", "inspect", "a.npy")
        with zipfile.ZipFile("a.npz", "w") as archive:
            archive.writestr("images.npy", header(text[:117]) + IMAGES.tobytes())
        hostile.attempt(f"npz of {text[:50]}", "data", "inspect", "a.npz")


def test_arrays_that_are_no_images(hostile: Proof):
    of = np.random.default_rng(1)
    cases = {
        "floats": {"images": of.random((4, 8, 8, 3))},
        "0-d labels": {"x_train": IMAGES, "y_train": np.int64(3)},
        "labels of texts": {"x_train": IMAGES, "y_train": np.array(["cat"] * 24)},
        "labels of floats": {"x_train": IMAGES, "y_train": np.full(24, np.nan)},
        "labels too few": {"x_train": IMAGES, "y_train": np.arange(5)},
        "0-d images": {"images": np.uint8(3)},
        "no image": {"images": IMAGES[:0]},
        "statistics": {"mu": np.zeros(8), "sigma": np.eye(8)},
        "objects": {"images": np.array([{}], dtype=object)},
        "nothing": {},
        "two of unknown names": {"a": IMAGES, "b": IMAGES},
    }
    for name, arrays in part(cases.items(), 6):
        Path("a.npz").write_bytes(npz(**arrays))
        for verb in (["inspect", "a.npz"], ["prepare", "a.npz", "--out", "out"]):
            hostile.attempt(f"{name}: {verb[0]}", "data", *verb)


def test_zeros_that_unpack_to_more_than_memory(hostile: Proof):
    big = np.lib.format.header_data_from_array_1_0(IMAGES) | {"shape": (100_000, 64, 64, 3)}
    with (
        zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, big)
        for _ in range(120 if at_length() else 12):  # a tenth of what is promised is there, or less
            member.write(bytes(1 << 20))
    hostile.attempt("npz", "data", "inspect", "a.npz")
    with gzip.open("train-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", 400_000, 28, 28))
        for _ in range(299 if at_length() else 29):
            stream.write(bytes(1 << 20))
    hostile.attempt("idx", "data", "inspect", "train-images-idx3-ubyte.gz")
    Path("train-images-idx3-ubyte.gz").unlink()
    with gzip.open("train-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1))
    hostile.attempt("idx of nothing", "data", "inspect", "train-images-idx3-ubyte.gz")


def test_the_memory_of_a_large_image(hostile: Proof):
    from PIL import Image

    Path("large").mkdir()
    width, height = (10_000, 8_000) if at_length() else (4_000, 3_000)
    for i in range(2):
        Image.new("RGB", (width, height), (i, 5, 7)).save(f"large/{i}.png")
    # What Pillow holds of one (4 bytes a pixel) and NumPy (3), and a little more.
    bound = 7 * width * height + (64 << 20)
    hostile.attempt(
        f"{width} x {height}", "data", "inspect", "large", right=lambda _: None, memory=bound
    )
