"""Hostile, broken and mistaken data: each is refused in words of its own, and nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from true_formats import (
    encode,
    noise,
    python2_batch,
    rows,
    write_cifar10,
    write_cifar10_binary,
    write_lmdb,
    write_stl10,
)

from softtrunc.data import inspect, open_dataset, prepare

IMAGES = noise(24, 3, 32, 32)
LABELS = [i % 10 for i in range(24)]
GOOD = encode(noise(6, 5, 3))


class Trap:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return (os.mkdir, (os.environ["TRACE_OF_UNPICKLING"],))


class ThroughNumpy:
    """A call that only asks for names of NumPy's."""

    def __reduce__(self):
        return (np.fromfile, ("/etc/hostname",))


SIZE = {"size": 0}  # of a database before it is cut

# What each function writes, it writes into an empty folder; it returns what is opened.


def cifar(batch: object) -> Callable[[Path], Path]:
    """CIFAR-10 with another first batch: bytes, or what is to be pickled."""

    def write(folder: Path) -> Path:
        write_cifar10(folder / "c", IMAGES, LABELS)
        content = batch if isinstance(batch, bytes) else pickle.dumps(batch, protocol=2)
        (folder / "c" / "data_batch_1").write_bytes(content)
        return folder / "c"

    return write


def cifar_binary(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_cifar10_binary(folder / "c", IMAGES, LABELS)
        file = folder / "c" / "data_batch_2.bin"
        file.write_bytes(change(file.read_bytes()))
        return folder / "c"

    return write


def cifar_without_a_batch(folder: Path) -> Path:
    write_cifar10(folder / "c", IMAGES, LABELS)
    (folder / "c" / "data_batch_3").unlink()
    return folder / "c"


def cifar_twice(folder: Path) -> Path:
    write_cifar10(folder / "c" / "py", IMAGES, LABELS)
    write_cifar10_binary(folder / "c" / "bin", IMAGES, LABELS)
    return folder / "c"


def imagenet(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "i").mkdir()
        np.savez(folder / "i" / "train_data_batch_1.npz", **arrays)
        return folder / "i"

    return write


def imagenet_both_ways(folder: Path) -> Path:
    imagenet(data=rows(IMAGES), labels=np.array(LABELS) + 1)(folder)
    (folder / "i" / "train_data_batch_1").write_bytes(b"")
    return folder / "i"


def stl10(**changes: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        images = {"train": noise(1, 3, 96, 96), "unlabeled": noise(2, 3, 96, 96)}
        write_stl10(folder / "s", {**images, "test": noise(2, 3, 96, 96)}, {"test": [1, 2]})
        for name, content in changes.items():
            file = folder / "s" / f"{name}.bin"
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
        return folder / "s"

    return write


def celeba(partition: str, *more: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name in ("img_align_celeba/000001.png", *more):
            path = folder / "celeba" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(GOOD)
        (folder / "celeba" / "list_eval_partition.txt").write_text(partition)
        return folder / "celeba"

    return write


def lmdb_cut(folder: Path) -> Path:
    pytest.importorskip("lmdb")
    write_lmdb(folder / "x_train_lmdb", {bytes([i]): bytes(3000) for i in range(40)})
    SIZE["size"] = (folder / "x_train_lmdb" / "data.mdb").stat().st_size
    os.truncate(folder / "x_train_lmdb" / "data.mdb", 16384)
    return folder / "x_train_lmdb"


def lmdb_garbage(folder: Path) -> Path:
    pytest.importorskip("lmdb")
    (folder / "x_train_lmdb").mkdir()
    (folder / "x_train_lmdb" / "data.mdb").write_bytes(b"garbage" * 5000)
    return folder / "x_train_lmdb"


def idx(labels: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "m").mkdir()
        images = noise(3, 4, 4)
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 3, 4, 4)
        (folder / "m" / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = bytes([0, 0, 8, 1]) + struct.pack(">I", labels)
        (folder / "m" / "train-labels-idx1-ubyte").write_bytes(header + bytes(labels))
        return folder / "m"

    return write


def zip_bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(64 << 20))
    return folder / "bomb.zip"


def npz_with_objects(folder: Path) -> Path:
    np.savez(folder / "a.npz", x_train=np.array([Trap()], dtype=object))
    return folder / "a.npz"


def empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


def no_data_set(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(b"\1" * 1000)
    return folder / "a.bin"


def batch(**values: object) -> dict[str, object]:
    return {"data": rows(IMAGES[:4]), "labels": LABELS[:4], **values}


class Case(NamedTuple):
    """`message` stands for the whole of it; {path} is what was opened."""

    write: Callable[[Path], Path]
    message: str
    split: str = "train"


ASKS = (
    "{path}: data_batch_1: a pickle that asks for %s, which no batch of images needs and which "
    "could run code: refused; fetch the data from their authors"
)

REFUSED = {
    "pickle with a call": Case(cifar({"data": Trap()}), ASKS % "posix.mkdir"),
    "pickle with numpy's fromfile": Case(cifar({"data": ThroughNumpy()}), ASKS % "numpy.fromfile"),
    "pickle that evaluates": Case(cifar(b"cbuiltins\neval\n(V1+1\ntR."), ASKS % "builtins.eval"),
    "pickle with a global by extension": Case(
        cifar(b"\x80\x02\x82\x01."),
        "{path}: data_batch_1: not a pickled batch, or cut short: unregistered extension code 1",
    ),
    "pickle with objects in an array": Case(
        cifar(batch(data=np.array([None], dtype=object))),
        "{path}: data_batch_1: not a pickled batch, or broken: an array of type 'O8'",
    ),
    "pickle that claims memory": Case(
        # An exabyte of bytes, of which one is there.
        cifar(b"\x80\x05\x96\0\0\0\0\0\0\0\x0f."),
        "{path}: data_batch_1: not a pickled batch, or cut short: it ends too early",
    ),
    "pickle whose array is too short": Case(
        cifar(python2_batch(rows(IMAGES[:4])).replace(b"J\x00\x0c\x00\x00", b"J\x00\x0d\x00\x00")),
        "{path}: data_batch_1: not a pickled batch, or broken: an array of shape (4, 3328) with "
        "12,288 bytes: cut short or edited",
    ),
    "pickle cut short": Case(
        cifar(python2_batch(rows(IMAGES[:4]), labels=LABELS[:4])[:-5000]),
        "{path}: data_batch_1: not a pickled batch, or cut short: it ends too early",
    ),
    "pickle of a list": Case(
        cifar([1, 2]), "{path}: data_batch_1: a pickled list, not a batch of images"
    ),
    "text for a pickle": Case(
        cifar(b"<html>404</html>"),
        "{path}: data_batch_1: not a pickled batch, or cut short: no such opcode",
    ),
    "batch without images": Case(
        cifar({"labels": []}),
        "{path}: data_batch_1: no array named data in it: not a batch of images",
    ),
    "batch of another shape": Case(
        cifar(batch(data=noise(4, 3071))),
        "{path}: data_batch_1: data is uint8 (4, 3071), not uint8 (N, 3 x side x side)",
    ),
    "batch of another size": Case(
        cifar(batch(data=noise(4, 3 * 64))), "{path}: data_batch_1: images of 8x8, not 32x32"
    ),
    "batch of floats": Case(
        cifar(batch(data=np.zeros((4, 3072), np.float32))),
        "{path}: data_batch_1: data is float32 (4, 3072), not uint8 (N, 3 x side x side)",
    ),
    "one label too few": Case(
        cifar(batch(labels=LABELS[:3])), "{path}: data_batch_1: 3 labels for 4 images"
    ),
    "a label of no class": Case(
        cifar(batch(labels=[0, 1, 10, 2])), "{path}: data_batch_1: label 10 is outside 0 ... 9"
    ),
    "labels that are no numbers": Case(
        cifar(batch(labels=["cat"] * 4)), "{path}: data_batch_1: no list of labels in it"
    ),
    "a batch that is missing": Case(
        cifar_without_a_batch, "{path}: data_batch_3 is missing: fetch it again"
    ),
    "two data sets in one folder": Case(
        cifar_twice,
        "{path}: several data sets (data_batch_1, data_batch_1.bin): give the folder or archive "
        "of one",
    ),
    "binary batch cut short": Case(
        cifar_binary(lambda content: content[:-1]),
        "{path}: data_batch_2.bin: 12,291 bytes are not a whole number of images of 3,073 bytes: "
        "cut short; fetch it again",
    ),
    "binary batch moved by a byte": Case(
        cifar_binary(lambda content: b"\xff" + content[:-1]),
        "{path}: data_batch_2.bin: label 255 is outside 0 ... 9",
    ),
    "imagenet labels from 0": Case(
        imagenet(data=rows(IMAGES), labels=np.array(LABELS)),
        "{path}: train_data_batch_1.npz: label 0 is outside 1 ... 1000",
    ),
    "imagenet without images": Case(
        imagenet(labels=np.array(LABELS)),
        "{path}: train_data_batch_1.npz: no array named data in it: not a batch of images",
    ),
    "imagenet twice": Case(
        imagenet_both_ways, "{path}: batches both as .npz and pickled: keep one kind"
    ),
    "stl10 cut short": Case(
        stl10(unlabeled_X=bytes(2 * 27648 - 1)),
        "{path}: unlabeled_X.bin: 55,295 bytes are not a whole number of images of 27,648 bytes: "
        "cut short; fetch it again",
    ),
    "stl10 without the unlabelled": Case(
        stl10(unlabeled_X=None), "{path}: unlabeled_X.bin is missing: fetch it again"
    ),
    "stl10 with a label too many": Case(
        stl10(test_y=b"\1\2\3"), "{path}: test_y.bin: 3 labels for 2 images", "test"
    ),
    "stl10 with a label of no class": Case(
        stl10(test_y=b"\1\x0b"), "{path}: test_y.bin: label 11 is outside 1 ... 10", "test"
    ),
    "celeba with a broken line": Case(
        celeba("000001.png 0\n000002.png train\n"),
        "{path}/list_eval_partition.txt: line 2: '000002.png train' is not a name and 0 (train), 1 "
        "(validation) or 2 (test)",
    ),
    "celeba with an image in two splits": Case(
        celeba("000001.png 0\n000001.png 2\n"),
        "{path}/list_eval_partition.txt: line 2: 000001.png is there twice",
    ),
    "celeba with the list of others": Case(
        celeba("../../etc/hostname 0\n"),
        "{path}/list_eval_partition.txt: names none of the 1 images under {path}",
    ),
    "celeba with two images of one name": Case(
        celeba("000001.png 0\n", "img_align_celeba/a/000001.png"),
        "{path}: 000001.png and a/000001.png have one name in list_eval_partition.txt: give the "
        "folder that holds img_align_celeba alone",
    ),
    "lmdb cut short": Case(
        lmdb_cut, "{path}: data.mdb has 16,384 of {size:,} bytes: cut short; fetch it again"
    ),
    "lmdb of garbage": Case(
        lmdb_garbage,
        "{path}: not a readable LMDB: {path}: MDB_INVALID: File is not an LMDB file",
    ),
    "idx with labels of others": Case(idx(4), "{path}: 3 images but labels of shape (4,)"),
    "zip bomb": Case(
        zip_bomb,
        "{path}: unpacks to 67,108,864 bytes, over 1,000 times its size: refused as a "
        "decompression bomb",
    ),
    "npz with objects": Case(
        npz_with_objects,
        "{path}: x_train.npy: holds pickled Python objects, which can run code when read: refused; "
        "save a plain uint8 array",
    ),
    "an empty folder": Case(
        empty_folder, "no readable image under {path}: put PNG, JPEG, WebP, ... files there"
    ),
    "a file that is no data set": Case(
        no_data_set,
        '{path}: not a kind of file that is read, or broken: write "digits", "fashion16", '
        "hf://OWNER/NAME, or a path: images in a folder, zip or tar, .npy, .npz, "
        ".safetensors, IDX, Parquet, "
        "prepared data, or a data set as released (docs/data.md)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_and_nothing_runs(name, tmp_path, monkeypatch):
    case, trace = REFUSED[name], tmp_path / "trace"
    monkeypatch.setenv("TRACE_OF_UNPICKLING", str(trace))
    path = case.write(tmp_path)
    for attempt in (
        lambda: open_dataset(path, case.split),
        lambda: prepare(path, tmp_path / "out", splits=[case.split]),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            attempt()
        assert str(refusal.value) == case.message.format(path=path, **SIZE)
    assert not trace.exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_a_pickle_that_only_looks_like_a_batch_is_no_trap_for_the_memory(tmp_path):
    # The unpickler in C would make room for two thousand million objects here.
    content = b"\x80\x02K\x01r\xff\xff\xff\x7f."
    with pytest.raises(ValueError, match="a pickled int, not a batch"):
        open_dataset(cifar(content)(tmp_path), "train")


def png_claiming(width: int, height: int) -> bytes:
    data = encode(noise(6, 5))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def encode_image(
    image: Image.Image, kind: str = "PNG", alpha: int | None = None, **options: object
) -> bytes:
    if alpha is not None:
        image.putalpha(alpha)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# What is wrong with one file costs that file alone.
LEFT_OUT = {
    "empty.png": (b"", "not an image in a format that is read"),
    "page.jpg": (b"<html>404</html>", "not an image in a format that is read"),
    "program.png": (b"\x7fELF" + bytes(60), "not an image in a format that is read"),
    "script.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not an image in a format that is read",
    ),
    "bomb.png": (
        png_claiming(9000, 9000),
        "9000x9000 pixels are more than 80,000,000: refused as a decompression bomb",
    ),
    "deep.png": (
        encode(np.arange(30, dtype=np.uint16).reshape(6, 5)),
        "mode I;16 with more than 8 bits a channel: convert it to 8 bits first",
    ),
    "float.tiff": (
        encode(np.ones((6, 5), np.float32), "TIFF"),
        "mode F with more than 8 bits a channel: convert it to 8 bits first",
    ),
    "lab.tiff": (
        encode_image(Image.merge("LAB", [Image.fromarray(noise(6, 5))] * 3), "TIFF"),
        "mode LAB has no plain conversion to RGB: convert it first",
    ),
}

# What is unambiguous is converted, and counted.
CONVERTED = {
    "palette.png": (
        lambda image: encode_image(image.quantize(4)),
        "palette looked up",
    ),
    "alpha.png": (
        lambda image: encode_image(image.convert("RGB"), alpha=128),
        "transparency laid on white",
    ),
    "moving.png": (
        lambda image: encode_image(image, save_all=True, append_images=[Image.new("RGB", (5, 6))]),
        "first frame of several",
    ),
    "upright.png": (lambda image: encode_image(image, exif=turned()), "turned upright (EXIF)"),
    "cmyk.tiff": (
        lambda image: encode_image(image.convert("CMYK"), "TIFF"),
        "CMYK to RGB without colour profiles",
    ),
}


@pytest.fixture
def mixed(tmp_path) -> Path:
    folder = tmp_path / "mixed" / "train"
    folder.mkdir(parents=True)
    for name, (content, _) in LEFT_OUT.items():
        (folder / name).write_bytes(content)
    for name, (make, _) in CONVERTED.items():
        (folder / name).write_bytes(make(Image.fromarray(noise(6, 5, 3))))
    (folder / "good.png").write_bytes(GOOD)
    return folder.parent


def pack_with_traps(folder: Path, path: Path) -> Path:
    """As an archive, with members that lead out of it."""
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "train", "train")
        info = tarfile.TarInfo("../../escaped.png")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))
        link = tarfile.TarInfo("train/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    return path


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_one_bad_file_costs_that_file_alone(mixed, tmp_path, form):
    source, expected = mixed, {f"train/{name}": why for name, (_, why) in LEFT_OUT.items()}
    if form == "tar":
        source = pack_with_traps(mixed, tmp_path / "a.tar")
        expected["../../escaped.png"] = "its name leads out of the archive: refused"
        expected["train/link.png"] = "a link or device, not a file"
    prepare(source, tmp_path / "out", splits=["train"], image_size=4)
    data = open_dataset(tmp_path / "out", "train")
    # The splits of a folder that holds train/ alone are drawn: see which files came where.
    there = {s.name: s.reason for s in data.skipped}
    assert there.items() <= expected.items()
    found = inspect(source)
    assert {s.name: s.reason for s in found.unreadable} == expected
    assert found.converted == {why: 1 for _, why in CONVERTED.values()}
    assert found.count == len(CONVERTED) + 1
    assert not list(tmp_path.parent.glob("escaped.png"))
