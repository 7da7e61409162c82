"""Samples that arrive in pieces, from several processes, and become one folder or file.

Pieces lie in a hidden folder beside the place, each written under another name and renamed, so
that whatever ends the work leaves whole pieces only. The place itself appears when everything is
there, with a `.json` of the same name that says what it holds.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from softtrunc.data.pictures import to_pillow
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import naming_lost_writes, sync, whole_file, write_text
from softtrunc.feedback.json import read_json
from softtrunc.runs.folder import differing

Protocol = Mapping[str, Any]
"""What decides the images: the checkpoint, the sampler, the seed."""

_PIECE = re.compile(r"([0-9]{8,15})-([0-9]{8,15})-nfe([0-9]{1,15})")
_OTHER_FILES = (".png", ".npy", ".safetensors", ".jpg", ".jpeg", ".gif", ".tar")
_OF_FLOATS = (".npy", ".safetensors")
# A fixed date, so that the same images make the same archive.
_DATE = (1980, 1, 1, 0, 0, 0)


class _Piece(NamedTuple):
    """The images `span` in one file, and the network evaluations they took."""

    span: range
    nfe: int
    path: Path


def missing(parts: Sequence[range], done: Iterable[range]) -> list[range]:
    """What of `parts` is not in `done`, part by part."""
    ready = np.zeros(max((part.stop for part in parts), default=0), dtype=bool)
    for span in done:
        ready[span.start : span.stop] = True
    gaps = []
    for part in parts:
        # Where a run of missing numbers begins and ends.
        edges = np.diff(ready[part.start : part.stop].astype(np.int8), prepend=1, append=1)
        starts, stops = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)
        gaps += [
            range(part.start + int(a), part.start + int(b))
            for a, b in zip(starts, stops, strict=True)
        ]
    return gaps


@dataclass(frozen=True)
class Destination:
    """The place for images: a folder of PNGs, a `.zip` of PNGs or an `.npz`; or for floats.

    The `.npz` holds `images`, uint8 (N, H, W, C). PNGs are named by `first_number` plus their
    place. With `floats` samples are no images, and become float32 (N, C, H, W) in a `.npy`, or as
    `samples` in a `.safetensors`.

    Raises:
        UserError: if the name is that of another kind of file.
    """

    out: Path
    first_number: int = 0
    floats: bool = False

    def __post_init__(self) -> None:
        if not self.out.name:
            raise UserError(f"--out {self.out}: write the name of a new folder, a .zip or an .npz")
        if self.floats and self.out.suffix.lower() not in _OF_FLOATS:
            raise UserError(
                f"--out {self.out}: the samples are floats, no images: write a file that ends in "
                f"{' or '.join(_OF_FLOATS)}"
            )
        if not self.floats and self.out.suffix.lower() in _OTHER_FILES:
            raise UserError(
                f"--out {self.out}: write a folder, or a file that ends in .zip or .npz"
            )

    @property
    def kind(self) -> Literal["folder", "zip", "npz", "npy", "safetensors"]:
        """What the name says."""
        suffix = self.out.suffix.lower()
        if self.floats:
            return "npy" if suffix == ".npy" else "safetensors"
        return "npz" if suffix == ".npz" else "zip" if suffix == ".zip" else "folder"

    @property
    def unfinished(self) -> Path:
        """The folder of pieces."""
        return self.out.with_name(f".{self.out.name}.partial")

    @property
    def protocol_file(self) -> Path:
        """What the finished images are."""
        return self.out.with_name(f"{self.out.name}.json")

    def is_finished(self, protocol: Protocol, count: int) -> bool:
        """Whether these very images are there already.

        Raises:
            UserError: if the place, or the folder of pieces, holds anything else.
        """
        where = f"--out {self.out}"
        with user_errors(where):
            if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
                # Where no image was drawn, by a kill or a failure, nothing was begun.
                other = _difference(self.unfinished / "protocol.json", protocol)
                if self.pieces() and other:
                    raise UserError(
                        f"{where}: other samples were begun there ({other}): repeat that command "
                        f"to go on with them, choose another place, or delete {self.unfinished}"
                    )
                return False
        other = _difference(self.protocol_file, {**protocol, "count": count}, ("nfe", "versions"))
        if other:
            raise UserError(f"{where}: exists already ({other}): choose another place or delete it")
        return True

    def begin(self, protocol: Protocol) -> None:
        """Make room for pieces.

        Raises:
            UserError: if that is not possible.
        """
        with user_errors(f"--out {self.out}"):
            self.unfinished.mkdir(parents=True, exist_ok=True)
            write_text(self.unfinished / "protocol.json", _json(protocol))

    def pieces(self) -> list[_Piece]:
        """What has been drawn so far, in order."""
        found = []
        for path in self.unfinished.glob("*-nfe*.*"):
            if numbers := _PIECE.fullmatch(path.stem):
                start, stop, nfe = map(int, numbers.groups())
                found.append(_Piece(range(start, stop), nfe, path))
        return sorted(found, key=lambda piece: (piece.span.start, piece.span.stop))

    def add(self, first: int, images: Shaped[Tensor, "n c h w"], nfe: int) -> None:
        """Keep consecutive images with values 0 ... 255, or floats.

        Safe to call from several processes.
        """
        name = f"{first:08d}-{first + len(images):08d}-nfe{nfe}"
        pngs = self.kind in ("folder", "zip")
        piece = self.unfinished / f"{name}.{'zip' if pngs else 'npy'}"
        with whole_file(piece) as partial, partial.open("wb") as file:
            if self.floats:
                np.save(file, images.contiguous().numpy())
            elif self.kind == "npz":
                np.save(file, images.permute(0, 2, 3, 1).contiguous().numpy())
            else:
                with zipfile.ZipFile(file, "w") as archive:
                    for i, image in enumerate(images, start=first):
                        png = io.BytesIO()
                        to_pillow(image).save(png, format="PNG")
                        _store(archive, self._png_name(i), png.getvalue())

    def _png_name(self, i: int) -> str:
        return f"{self.first_number + i:06d}.png"

    def finish(self, count: int, protocol: Protocol, versions: Mapping[str, str]) -> None:
        """Put the first `count` images together, piece by piece, and clear the pieces away."""
        pieces = self.pieces()
        whole = self.unfinished / "whole"
        if whole.is_dir():
            shutil.rmtree(whole)
        with naming_lost_writes(self.out):
            self._join(whole, pieces, count)
        nfe = max((piece.nfe for piece in pieces), default=0)
        done = {**protocol, "count": count, "nfe": nfe, "versions": dict(versions)}
        write_text(self.protocol_file, _json(done))
        sync(whole)
        whole.replace(self.out)
        shutil.rmtree(self.unfinished)

    def _join(self, whole: Path, pieces: Sequence[_Piece], count: int) -> None:
        if self.kind not in ("folder", "zip"):
            _join_arrays(whole, pieces, count, self.kind)
        elif self.kind == "zip":
            with zipfile.ZipFile(whole, "w") as archive:
                for i, content in _pngs(pieces, count):
                    _store(archive, self._png_name(i), content)
        else:
            whole.mkdir()
            for i, content in _pngs(pieces, count):
                (whole / self._png_name(i)).write_bytes(content)


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A PNG is compressed already."""
    archive.writestr(zipfile.ZipInfo(name, _DATE), content)


def _shares(pieces: Sequence[_Piece], count: int) -> Iterator[tuple[_Piece, range]]:
    """Which images to take from which piece, so that each of `count` comes once, in order."""
    at = 0
    for piece in pieces:
        stop = min(piece.span.stop, count)
        if piece.span.start <= at < stop:
            yield piece, range(at, stop)
            at = stop
    if at < count:
        raise RuntimeError(f"images {at} to {count - 1} are missing")


def _pngs(pieces: Sequence[_Piece], count: int) -> Iterator[tuple[int, bytes]]:
    for piece, share in _shares(pieces, count):
        try:
            with zipfile.ZipFile(piece.path) as archive:
                names = archive.namelist()
                pictures = [archive.read(names[i - piece.span.start]) for i in share]
        except (OSError, zipfile.BadZipFile, LookupError, EOFError) as error:
            raise _damaged(piece) from error
        yield from zip(share, pictures, strict=True)


def _array(piece: _Piece, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The images of a piece; `shape`: what each must be of."""
    try:
        array: np.ndarray = np.load(piece.path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(piece) from error
    if array.ndim != 4 or array.shape != (len(piece.span), *(shape or array.shape[1:])):
        raise _damaged(piece)
    return array


def _damaged(piece: _Piece) -> UserError:
    return UserError(f"{piece.path}: damaged: delete it, and the same command draws it again")


def _join_arrays(path: Path, pieces: Sequence[_Piece], count: int, kind: str) -> None:
    """One array, written part by part."""
    first = _array(pieces[0])
    shape = (count, *first.shape[1:])
    with ExitStack() as stack:
        if kind == "npz":
            archive = stack.enter_context(zipfile.ZipFile(path, "w"))
            info = zipfile.ZipInfo("images.npy", _DATE)
            file = stack.enter_context(archive.open(info, "w", force_zip64=True))
        else:
            file = stack.enter_context(path.open("wb"))
        if kind == "safetensors":
            end = math.prod(shape) * first.itemsize
            entry = {"dtype": "F32", "shape": shape, "data_offsets": (0, end)}
            header = json.dumps({"samples": entry}).encode()
            header += b" " * (-len(header) % 8)  # the format aligns what follows
            file.write(struct.pack("<Q", len(header)) + header)
        else:
            said = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, said)
        for piece, share in _shares(pieces, count):
            array, begin = _array(piece, first.shape[1:]), piece.span.start
            file.write(array[share.start - begin : share.stop - begin].tobytes())


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _difference(path: Path, expected: Mapping[str, Any], ignored: Sequence[str] = ()) -> str:
    """In what the protocol in a file differs from the expected one; "" for nothing."""
    try:
        content = read_json(path)
        found = {key: value for key, value in content.items() if key not in ignored}
    except (OSError, ValueError, AttributeError):
        return "nothing says what"
    for key, (was, now) in differing(found, json.loads(_json(expected))).items():
        return f"{key} was {was}, is {now}"
    return ""
