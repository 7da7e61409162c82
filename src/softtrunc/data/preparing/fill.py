"""The part of preparing data that runs in worker processes: decode, and write rows into a file."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softtrunc.data.dataset import Skipped
from softtrunc.data.images.collect import try_decode
from softtrunc.data.images.fit import Fit
from softtrunc.data.source import Encoded

# What one task of a worker holds at most.
_CHUNK_IMAGES = 128
_CHUNK_BYTES = 16 << 20
# Starting processes takes longer than decoding so many images.
_WORTH_A_PROCESS = 1024


class Filled(NamedTuple):
    """What became of a chunk.

    - `rows`: all of its rows. `skipped`: those without an image, and why.
    - `colour`, `lossy`: whether any image has colour or was stored with loss.
    - `converted`: how many were changed how.
    - `misfit`: name and size (height, width) of an image that does not fit.
    """

    rows: list[int]
    skipped: list[tuple[int, str]]
    colour: bool
    lossy: bool
    converted: dict[str, int]
    misfit: tuple[str, tuple[int, int]] | None = None


Chunk = list[tuple[int, Encoded]]
Fill = Callable[[Path, Chunk, Fit | None, int | None], "Future[Filled]"]


def chunks(encoded: Iterable[Encoded], row_of: dict[str, int]) -> Iterator[Chunk]:
    """Images with their rows, in portions of a bounded size."""
    chunk: Chunk = []
    size = 0
    for item in encoded:
        chunk.append((row_of[item.name], item))
        if isinstance(item.content, bytes):
            size += len(item.content)
        elif isinstance(item.content, np.ndarray):
            size += item.content.nbytes
        if len(chunk) >= _CHUNK_IMAGES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def fill(path: Path, chunk: Chunk, fit: Fit | None, channels: int | None) -> Filled:
    """Decode images and write each into its row of a .npy; nothing else in it is touched."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape, start, row_bytes = array.shape[1:], array.offset, array[0].nbytes
    skipped: list[tuple[int, str]] = []
    converted: Counter[str] = Counter()
    colour = lossy = False
    # Not through the map: where the disk is full that would end the process without a word.
    with path.open("r+b") as stream:
        for row, item in chunk:
            decoded = try_decode(item, fit, channels)
            if isinstance(decoded, Skipped):
                skipped.append((row, decoded.reason))
                continue
            height, width, depth = decoded.pixels.shape
            if (height, width) != shape[1:]:
                return Filled([], [], False, False, {}, (item.name, (height, width)))
            colour |= depth == 3
            lossy |= decoded.lossy
            if decoded.converted:
                converted[decoded.converted] += 1
            stream.seek(start + row * row_bytes)
            stream.write(np.broadcast_to(decoded.pixels.transpose(2, 0, 1), shape).tobytes())
    return Filled([row for row, _ in chunk], skipped, colour, lossy, dict(converted))


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None  # this runs in a worker

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="softtrunc-parent").start()


def _here(path: Path, chunk: Chunk, fit: Fit | None, channels: int | None) -> Future[Filled]:
    future: Future[Filled] = Future()
    future.set_result(fill(path, chunk, fit, channels))
    return future


@contextmanager
def workers_for(images: int, workers: int) -> Iterator[Fill]:
    """How to fill chunks: in so many processes, or here where there is little to do."""
    if workers == 1 or images < _WORTH_A_PROCESS:
        yield _here
        return
    # Forking this process would copy its threads' locks. A server forks workers that have the
    # imports behind them; where there is none, each worker starts anew.
    server = "forkserver" in get_all_start_methods()
    context = get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield lambda *task: pool.submit(fill, *task)
    finally:
        pool.shutdown(cancel_futures=True)
