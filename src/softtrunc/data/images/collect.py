"""Many encoded images to one array in memory, decoded by threads, with broken files set aside."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from softtrunc.data.dataset import Skipped
from softtrunc.data.images.decode import Decoded, decode_for
from softtrunc.data.images.fit import Fit
from softtrunc.data.source import Encoded, ImageFiles

Advance = Callable[[int, int], None]
"""Called with the number of images done and their total."""

T = TypeVar("T")

# Of encoded images that wait for being decoded.
_MOST_BYTES = 64 << 20


class Collected(NamedTuple):
    """Images uint8 (N, C, H, W) and what could not be read.

    - `rows`: the place of each image among the names asked for.
    - `lossy`: whether any was stored with loss.
    - `converted`: how many images were changed how, beside cropping and resizing.
    """

    images: UInt8[np.ndarray, "n c h w"]
    rows: Int64[np.ndarray, " n"]
    skipped: list[Skipped]
    lossy: bool
    converted: Counter[str]


def try_decode(item: Encoded, fit: Fit | None, channels: int | None) -> Decoded | Skipped:
    """An image, or why there is none."""
    return _try(lambda image: image, item, fit, channels)


def _try(
    use: Callable[[Decoded], T], item: Encoded, fit: Fit | None, channels: int | None
) -> T | Skipped:
    if item.content is None:
        return Skipped(item.name, item.reason)
    try:
        return decode_for(use, item.content, fit, channels)
    # Decoders fed with broken files raise nearly anything; every case means the same here.
    except Exception as error:
        reason = " ".join(str(error).split())
        # Pillow names the stream object that it could not identify: noise to a reader.
        if "cannot identify image file" in reason:
            reason = "not an image in a format that is read"
        return Skipped(item.name, reason or type(error).__name__)


def decode_each(
    encoded: Iterable[Encoded],
    use: Callable[[Decoded], T],
    *,
    fit: Fit | None,
    channels: int | None,
) -> Iterator[tuple[str, T | Skipped]]:
    """Decode on all cores, a bounded number of images ahead, in the order given.

    `use` runs in the thread that decoded and reduces the image to what is wanted of it.
    """

    def work(item: Encoded) -> tuple[str, T | Skipped]:
        return item.name, _try(use, item, fit, channels)

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="softtrunc-decode") as pool:
        submitted = ((pool.submit(work, item), _bytes(item)) for item in encoded)
        yield from in_order(submitted, 4 * workers)


def _bytes(item: Encoded) -> int:
    return len(item.content) if isinstance(item.content, bytes) else 0


def in_order(futures: Iterable[tuple[Future[T], int]], most: int) -> Iterator[T]:
    """Results in the order of their futures, of which `most` are under way at a time.

    Each comes with the bytes that it holds: fewer are under way where these are many.
    """
    ahead: deque[tuple[Future[T], int]] = deque()
    held = 0
    for entry in futures:
        ahead.append(entry)
        held += entry[1]
        while len(ahead) > most or (held > _MOST_BYTES and ahead):
            future, size = ahead.popleft()
            held -= size
            yield future.result()
    while ahead:
        yield ahead.popleft()[0].result()


def several_sizes(
    location: object, first: tuple[str, tuple[int, int]], other: tuple[str, tuple[int, int]]
) -> ValueError:
    """The refusal of images that differ in size; sizes are (height, width)."""
    (name, (height, width)), (name2, (height2, width2)) = first, other
    return ValueError(
        f"{location}: images of several sizes: {name} is {width}x{height}, {name2} is "
        f"{width2}x{height2} (width x height): say what to bring them to, e.g. image_size=64 (on "
        "the command line: --set data.image_size=64, or data prepare --size 64)"
    )


def nothing_readable(location: object, skipped: Sequence[Skipped]) -> ValueError:
    """The refusal of data of which no image can be decoded."""
    first = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
    return ValueError(f"no readable image under {location}{first}")


def collect(
    files: ImageFiles,
    names: Sequence[str],
    *,
    fit: Fit | None,
    channels: int | None,
    largest: int | None = None,
    progress: Advance | None = None,
) -> Collected:
    """Decode images into one array in the order of `names`.

    With no `fit` they must all have one size; with no number of channels they have 3 if any image
    has colour. `largest` is the most bytes that the array may take; `progress` is called after each
    image.

    Raises:
        ValueError: if none can be read, they take too many bytes, or sizes differ and none was
            asked for.
    """
    images: np.ndarray | None = None
    first = ""
    row_of = {name: row for row, name in enumerate(names)}
    filled = np.zeros(len(names), dtype=bool)
    skipped: list[Skipped] = []
    lossy, converted = False, Counter[str]()
    results = decode_each(files.read(names), lambda image: image, fit=fit, channels=channels)
    for done, (name, result) in enumerate(results, start=1):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            height, width, depth = result.pixels.shape
            if images is None:
                images, first = _room(files, (len(names), depth, height, width), largest), name
            if (height, width) != images.shape[2:]:
                one = images.shape[2], images.shape[3]
                raise several_sizes(files.location, (first, one), (name, (height, width)))
            if depth > images.shape[1]:
                grey = images
                images = _room(files, (len(names), depth, height, width), largest)
                np.copyto(images, grey)
            images[row_of[name]] = result.pixels.transpose(2, 0, 1)
            filled[row_of[name]] = True
            lossy |= result.lossy
            if result.converted:
                converted[result.converted] += 1
        if progress is not None:
            progress(done, len(names))
    if images is None:
        raise nothing_readable(files.location, skipped)
    rows = np.flatnonzero(filled)
    kept = images if len(rows) == len(names) else images[rows]
    return Collected(kept, rows, sorted(skipped), lossy, converted)


def _room(
    files: ImageFiles, shape: tuple[int, int, int, int], largest: int | None
) -> UInt8[np.ndarray, "n c h w"]:
    size = int(np.prod(shape, dtype=np.int64))
    if largest is not None and size > largest:
        raise ValueError(
            f"{files.location}: {shape[0]:,} images of {shape[1]} x {shape[2]} x {shape[3]} take "
            f"{size / 2**30:.1f} GiB: prepare them once with softtrunc data prepare "
            f"{files.location} --out DIR, then give DIR as the data"
        )
    return np.empty(shape, dtype=np.uint8)
