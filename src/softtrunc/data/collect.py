"""Many encoded images to one array, decoded by threads, with broken files set aside."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from softtrunc.data.dataset import Skipped
from softtrunc.data.decode import Decoded, decode
from softtrunc.data.files import Encoded, ImageFiles

__all__ = ["Allocate", "Collected", "Progress", "collect", "decode_each", "in_memory"]

Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""

Allocate = Callable[[tuple[int, int, int, int]], np.ndarray]
"""Gives a writable uint8 array of a shape; may be asked twice, the second time for more room."""

T = TypeVar("T")


class Collected(NamedTuple):
    """Images uint8 (N, C, H, W) and what could not be read."""

    images: UInt8[np.ndarray, "n c h w"]
    skipped: list[Skipped]


def in_memory(shape: tuple[int, int, int, int]) -> np.ndarray:
    """The plain `Allocate`."""
    return np.empty(shape, dtype=np.uint8)


def decode_each(
    encoded: Iterable[Encoded],
    use: Callable[[Decoded], T],
    *,
    size: tuple[int, int] | None,
    channels: int | None,
) -> Iterator[tuple[str, T | Skipped]]:
    """Decode on all cores, a bounded number of images ahead, in the order given.

    `use` runs in the thread that decoded and reduces the image to what is wanted of it.
    """

    def work(item: Encoded) -> T | Skipped:
        if item.content is None:
            return Skipped(item.name, item.reason)
        try:
            return use(decode(item.content, size, channels))
        # Decoders fed with broken files raise nearly anything; every case means the same here.
        except Exception as error:
            reason = " ".join(str(error).split())
            # Pillow names the stream object that it could not identify: noise to a reader.
            if "cannot identify image file" in reason:
                reason = "not an image in a format that is read"
            return Skipped(item.name, reason or type(error).__name__)

    workers = os.cpu_count() or 1
    ahead: deque[tuple[str, Future[T | Skipped]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="softtrunc-decode") as pool:
        for item in encoded:
            ahead.append((item.name, pool.submit(work, item)))
            if len(ahead) > 4 * workers:
                name, future = ahead.popleft()
                yield name, future.result()
        for name, future in ahead:
            yield name, future.result()


def _pixels(decoded: Decoded) -> UInt8[np.ndarray, "c h w"]:
    return decoded.pixels.transpose(2, 0, 1)


def collect(
    files: ImageFiles,
    names: Sequence[str],
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    allocate: Allocate = in_memory,
    progress: Progress | None = None,
) -> Collected:
    """Decode images into one array in the order of `names`.

    Args:
        files: where they lie.
        names: which ones.
        size: (height, width) to crop and resize to; None: they must all have one size.
        channels: 1 or 3; None: 3 if any image has colour.
        allocate: where the pixels go.
        progress: called after each image.

    Raises:
        ValueError: if none can be read, or sizes differ and none was asked for.
    """
    images: np.ndarray | None = None
    first = ""
    row_of = {name: row for row, name in enumerate(names)}
    filled = np.zeros(len(names), dtype=bool)
    skipped: list[Skipped] = []
    results = decode_each(files.read(names), _pixels, size=size, channels=channels)
    for done, (name, result) in enumerate(results, start=1):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            depth, height, width = result.shape
            if images is None:
                images, first = allocate((len(names), *result.shape)), name
            if (height, width) != images.shape[2:]:
                raise ValueError(
                    f"{files.location}: images of several sizes: {first} is "
                    f"{images.shape[3]}x{images.shape[2]}, {name} is {width}x{height} (width x "
                    "height): say what to bring them to, e.g. image_size=64 (on the command line: "
                    "--set data.image_size=64)"
                )
            if depth > images.shape[1]:
                grey, images = images, allocate((len(names), depth, height, width))
                np.copyto(images, grey)
            images[row_of[name]] = result
            filled[row_of[name]] = True
        if progress is not None:
            progress(done, len(names))
    if images is None:
        reason = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise ValueError(f"no readable image under {files.location}{reason}")
    return Collected(_close_gaps(images, filled), sorted(skipped))


def _close_gaps(images: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Move the rows that were filled to the front, in place: there may be no room for a copy."""
    kept = np.flatnonzero(filled)
    for target in range(int(np.argmin(filled)) if not filled.all() else len(kept), len(kept)):
        images[target] = images[kept[target]]
    return images[: len(kept)]
