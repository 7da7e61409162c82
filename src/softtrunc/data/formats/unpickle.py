"""Pickled batches of images, read without running anything that is in them.

A pickle is a program: it may import any function and call it. The batches of CIFAR and of the
downsampled ImageNet need four names of NumPy's for their arrays; those are played here by classes
that only write down what they are given, and every other name is refused. The interpreter is
Python's own in Python: the one in C takes memory on a pickle's word alone.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

_DTYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64, "f4": np.float32, "f8": np.float64}


class _DType:
    """What stands for `numpy.dtype`: a code such as "u1", and its byte order."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        self.code = text.lstrip("<>|=")
        self.order = ""
        if self.code not in _DTYPES:
            raise pickle.UnpicklingError(f"an array of type {text!r}")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if str(state[1]).strip("b'") == ">" else ""


class _Array:
    """What stands for `numpy.ndarray`: shape, type and bytes, until they are all there."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: object, dtype: object, shape: object, order: str) -> np.ndarray:
    if isinstance(content, str):
        content = content.encode("latin1")
    sides = isinstance(shape, tuple) and all(isinstance(s, int) and s >= 0 for s in shape)
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _DType) or not sides:
        raise pickle.UnpicklingError("an array that is none")
    kind = np.dtype(dtype.order + dtype.code)
    assert isinstance(shape, tuple)  # looked at above
    if math.prod(shape) * kind.itemsize != len(content):
        raise pickle.UnpicklingError(
            f"an array of shape {shape} with {len(content):,} bytes: cut short or edited"
        )
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: object, dtype: object, shape: object, order: str, *_: object) -> _Array:
    array = _Array()
    array.value = _array(content, dtype, shape, order)
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,  # how Python 3 pickles bytes for Python 2
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Unpickler(pickle._Unpickler):  # the one in Python
    read: Callable[[int], bytes]  # set by load()
    append: Callable[[object], None]

    # Python's own makes room for as many bytes as a pickle claims before it reads them.
    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}")
        return _ALLOWED[module, name]


def unpickle(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickled batch: arrays, lists, numbers and texts by name.

    Args:
        content: the pickle.
        where: for messages.

    Raises:
        ValueError: if it asks for anything but arrays, is cut short, or is no dictionary.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        text = str(error)
        if text.startswith("asks for "):
            raise ValueError(
                f"{where}: a pickle that {text}, which no batch of images needs and which could "
                "run code: refused; fetch the data from their authors"
            ) from error
        raise ValueError(f"{where}: not a pickled batch, or broken: {text}") from error
    # A stream of opcodes gone wrong ends in nearly any of Python's errors.
    except Exception as error:
        known = {EOFError: "it ends too early", KeyError: "no such opcode"}
        reason = known.get(type(error)) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: not a pickled batch, or cut short: {reason}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: a pickled {type(found).__name__}, not a batch of images")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): (
            value.value if isinstance(value, _Array) else value
        )
        for key, value in found.items()
    }
