"""Decode once, train often: every split as one memory-mapped uint8 array and a card."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from softtrunc.data.dataset import DataCard, Skipped
from softtrunc.data.detect import open_source
from softtrunc.data.images.collect import (
    Advance,
    Collected,
    in_order,
    nothing_readable,
    several_sizes,
    try_decode,
)
from softtrunc.data.preparing.fill import chunks, workers_for
from softtrunc.data.preparing.journal import Journal
from softtrunc.data.preparing.prepared import open_prepared, write_split
from softtrunc.data.protocol import CountError, How, open_part
from softtrunc.data.source import ArrayImages, NoSplitError, Part, Source
from softtrunc.data.splits import check_split
from softtrunc.feedback.files import naming_lost_writes, replace_folder

_SECONDS_BETWEEN_COMMITS = 2.0
_COPY_ROWS = 1024

Bar = Callable[[str], Advance]
"""Gives the progress of one piece of work by its name."""


def prepare(
    source: str | Path,
    out: Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    preset: str | None = None,
    allow_count: bool = False,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    bar: Bar | None = None,
) -> dict[str, DataCard]:
    """Decode once, train often: write each split as a memory-mapped uint8 .npy and a JSON card.

    Images are decoded straight to disk, so the data may exceed the memory. The folder appears when
    everything is in it; until then the work lies beside it in `.NAME.partial`, and a call that was
    killed goes on from there. What is written depends on neither the number of workers nor on
    kills.

    Args:
        source: as in `open_dataset`.
        out: the folder to make; it may exist if it is empty.
        preset: the protocol of a known data set (`PRESETS`) instead of these; it also says how many
            images there must be.
        image_size: as in `open_dataset`, without a preset.
        channels: as in `open_dataset`, without a preset.
        allow_count: take other numbers of images than the preset's, under another name.
        splits: which ones to write; None: those that there are.
        workers: processes that decode. With more than one, a script must guard its entry by
            `if __name__ == "__main__":`.
        bar: gives the progress of each piece of work by its name.

    Returns:
        The cards by split.

    Raises:
        CountError: if numbers of images are not the preset's.
        ValueError: if `out` is in use or too small for the data, or as `open_dataset`.
    """
    how = How.asked(source, image_size, channels, preset, allow_count)
    opened = open_source(source)
    if opened.kind == "prepared":
        raise ValueError(f"{source}: is prepared already: give the original data")
    there = [split for split in ("train", "test") if split in opened.splits]
    if how.preset is not None and how.preset.test is None:
        there = ["train"]
    for split in splits or ():
        check_split(split, source)
        if split not in there:
            raise NoSplitError(f"{source}: no {split} split, only {', '.join(there)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: exists: choose another folder, or delete it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(out) as place:
        done = place / "done"
        done.mkdir(exist_ok=True)
        cards = {
            split: _Preparation(opened, split, how, place).run(workers, bar)
            for split in splits or there
        }
        replace_folder(done, out)
        shutil.rmtree(place)
    return cards


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """The folder beside `out` for unfinished work, for one process at a time.

    A refusal removes it, unless a split is finished or only the number of images is wrong; anything
    else leaves it to be gone on with.
    """
    place = out.parent / f".{out.name}.partial"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        _lock(lock.fileno(), out)
        try:
            with naming_lost_writes(place):
                yield place
        except (ValueError, FileNotFoundError) as error:
            counted = isinstance(error, CountError) and any(place.glob("*.raw.npy"))
            if not counted and not any(place.glob("done/*.json")):
                shutil.rmtree(place, ignore_errors=True)
            raise


def _lock(descriptor: int, out: Path) -> None:
    # Released by the system with the process, however it ends.
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{out}: another process is preparing it") from None


class _Preparation:
    """One split on its way to `place/done`."""

    def __init__(self, source: Source, split: str, how: How, place: Path) -> None:
        self._source = source
        self._split = split
        self._how = how
        self._place = place
        self._raw = place / f"{split}.raw.npy"
        self._preset = None if how.preset is None else how.preset.name
        self._first = ""

    def run(self, workers: int, bar: Bar | None) -> DataCard:
        part = open_part(self._source, self._split, self._how)
        if isinstance(part.files, ArrayImages) and part.files.floats:
            raise ValueError(
                f"{self._source.location}: floating-point data need no preparing, training maps "
                "them as they are: write train --data with this file (docs/latents.md)"
            )
        done = self._place / "done"
        card, log = done / f"{self._split}.json", self._place / f"{self._split}.journal"
        if not card.exists() and not self._raw.exists():
            log.unlink(missing_ok=True)
        journal = Journal(log, self._plan(part), len(part.names))
        if card.exists() and journal.done.all():
            return open_prepared(done, self._split).card
        for leftover in [card, *done.glob(f"{self._split}*")]:
            leftover.unlink(missing_ok=True)
        shape = self._shape(part)
        if not journal.done.all():
            self._fill(part, journal, shape, workers, bar)
        rows = np.asarray([row for row in range(len(part.names)) if row not in journal.skipped])
        skipped = [Skipped(part.names[row], why) for row, why in sorted(journal.skipped.items())]
        if not len(rows):
            raise nothing_readable(self._source.location, skipped)
        self._how.check_count(self._source, self._split, len(rows), skipped)
        grey = self._how.channels is None and not journal.colour
        file = self._settle(rows, 1 if grey else shape[0])
        images: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        found = Collected(images, rows, sorted(skipped), journal.lossy, journal.converted)
        progress = bar(f"check {self._split}") if bar else None
        data = self._how.finish(self._source, self._split, part, found, progress)
        file.replace(done / f"{self._split}.npy")
        write_split(done, data, {"kind": self._source.kind, "preset": self._preset})
        self._raw.unlink(missing_ok=True)
        return data.card

    def _plan(self, part: Part) -> dict[str, Any]:
        """Everything that the pixels follow from, as far as it can be told without reading them."""
        names = hashlib.sha256("\0".join(part.names).encode("utf-8", "surrogateescape"))
        where = Path(self._source.location)
        stat = where.stat() if where.is_file() else None
        return {
            "source": str(where.resolve()) if where.exists() else self._source.location,
            "file": None if stat is None else [stat.st_size, stat.st_mtime_ns],
            "preset": self._preset,
            "fit": repr(self._how.fit),
            "channels": self._how.channels,
            "names": names.hexdigest(),
            "pillow": PIL.__version__,
        }

    def _shape(self, part: Part) -> tuple[int, int, int]:
        """(C, H, W) of every row; three channels where it is not known that one will do."""
        fit, channels = self._how.fit, self._how.channels
        if isinstance(part.files, ArrayImages):
            depth, height, width = part.files.images.shape[1:]
            height, width = (height, width) if fit is None else fit.size
            return channels or depth, height, width
        if fit is not None:
            return channels or 3, *fit.size
        skipped: list[Skipped] = []
        for item in part.files.read(part.names):
            decoded = try_decode(item, None, 3)
            if not isinstance(decoded, Skipped):
                self._first = item.name
                height, width = decoded.pixels.shape[:2]
                return channels or 3, height, width
            skipped.append(decoded)
        raise nothing_readable(self._source.location, skipped)

    def _fill(
        self,
        part: Part,
        journal: Journal,
        shape: tuple[int, int, int],
        workers: int,
        bar: Bar | None,
    ) -> None:
        self._make_room(len(part.names), shape, journal)
        row_of = {name: row for row, name in enumerate(part.names)}
        wanted = [name for row, name in enumerate(part.names) if not journal.done[row]]
        progress = bar(f"prepare {self._split}") if bar else None
        done, committed = len(part.names) - len(wanted), time.monotonic()
        with self._raw.open("r+b") as stream, workers_for(len(wanted), workers) as fill:
            futures = (
                (fill(self._raw, chunk, self._how.fit, self._how.channels), 0)
                for chunk in chunks(part.files.read(wanted), row_of)
            )
            for filled in in_order(futures, 2 * workers):
                if filled.misfit is not None:
                    first = self._first, shape[1:]
                    raise several_sizes(self._source.location, first, filled.misfit)
                journal.add(filled)
                done += len(filled.rows)
                if time.monotonic() - committed > _SECONDS_BETWEEN_COMMITS:
                    os.fsync(stream.fileno())
                    journal.commit()
                    committed = time.monotonic()
                if progress is not None:
                    progress(done, len(part.names))
            os.fsync(stream.fileno())
            journal.commit()

    def _make_room(self, count: int, shape: tuple[int, int, int], journal: Journal) -> None:
        """A file for all rows, whether they will have an image or not; old rows stay."""
        if self._raw.exists() and journal.done.any():
            return
        needed, free = count * math.prod(shape), shutil.disk_usage(self._place).free
        if needed > free:
            raise ValueError(
                f"{self._place.parent}: {count:,} images of {shape[0]} x {shape[1]} x {shape[2]} "
                f"take {needed / 2**20:,.1f} MiB, only {free / 2**20:,.1f} are free"
            )
        np.lib.format.open_memmap(self._raw, "w+", np.uint8, (count, *shape)).flush()

    def _settle(self, rows: np.ndarray, channels: int) -> Path:
        """The file of the array without the rows and channels that hold nothing."""
        raw: np.ndarray = np.load(self._raw, mmap_mode="r", allow_pickle=False)
        if len(rows) == len(raw) and channels == raw.shape[1]:
            return self._raw
        # A copy, for moving rows within one file would not survive being killed.
        path = self._place / f"{self._split}.kept.npy"
        shape = (len(rows), channels, *raw.shape[2:])
        kept = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for first in range(0, len(rows), _COPY_ROWS):
            chosen = rows[first : first + _COPY_ROWS]
            kept[first : first + _COPY_ROWS] = raw[chosen][:, :channels]
        kept.flush()
        return path
