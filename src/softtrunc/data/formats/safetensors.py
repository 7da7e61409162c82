"""Named tensors of a .safetensors file, mapped into memory."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from softtrunc.feedback.json import parse_json

# The types that arrays of images, floats or labels have, by their name in the format.
_TYPES = {
    **{"U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?"},
    **{"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"},
}


class Safetensors:
    """The tensors of a file, whose header was checked; none is read before it is asked for.

    Raises:
        ValueError: if it is no such file, broken or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np"):  # names, sizes and places are what the file has
                pass
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = parse_json(stream.read(length))
        except (SafetensorError, OSError, ValueError, struct.error) as error:
            raise ValueError(f"{path}: not a .safetensors that can be read: {error}") from error
        header.pop("__metadata__", None)
        self._begin = 8 + length
        self._entries = header

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors' shapes by name."""
        return {key: tuple(entry["shape"]) for key, entry in self._entries.items()}

    def read(self, key: str) -> np.ndarray:
        """One tensor, memory-mapped; bfloat16, which NumPy does not know, as float32 in memory.

        Raises:
            ValueError: if it is of a type that has no array.
        """
        entry = self._entries[key]
        kind = _TYPES.get(entry["dtype"])
        if kind is None:
            raise ValueError(f"{self.path}: {key}: {entry['dtype']} values: save them as F32")
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        if start == stop:
            return np.zeros(shape, kind)
        mapped: np.ndarray = np.memmap(self.path, kind, "r", self._begin + start, shape)
        mapped = np.require(mapped, requirements="A")  # a copy where a header has an odd length
        if entry["dtype"] != "BF16":
            return mapped
        # The upper half of a float32's bits.
        widened: np.ndarray = (mapped.astype(np.uint32) << 16).view(np.float32)
        return widened
