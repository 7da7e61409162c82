"""Looking through data and preparing them, with bars and in a user's words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import torch

from softtrunc.data import (
    PRESETS,
    DataCard,
    FloatInspection,
    Inspection,
    Preset,
    describe_fit,
    inspect,
    open_prepared,
    prepare,
)
from softtrunc.data.pictures import save_grid
from softtrunc.feedback.errors import RunFailedError, UserError, missing_packages, user_errors
from softtrunc.feedback.progress import Progress, counting

# More are not named one by one.
_NAMED = 20


def presets() -> list[tuple[Preset, str]]:
    """The data sets whose protocol is known, and what it does to each image."""
    return [(preset, describe_fit(preset.fit)) for preset in PRESETS.values()]


def inspect_data(
    source: str,
    *,
    size: int | None = None,
    grid: Path | None = None,
    verify: bool = False,
    progress: Progress,
) -> Inspection | FloatInspection:
    """Look through data; with `grid`, also write a picture of some of them.

    Raises:
        UserError: if they cannot be read, or with `verify` are not what their card describes.
    """
    if verify:
        with user_errors():
            _verify(Path(source), progress)
    with counting(progress, f"inspect {source}") as count, user_errors(), missing_packages():
        found = inspect(source, image_size=size, progress=count)
    if grid is not None:
        with user_errors("--grid"):
            save_grid(torch.from_numpy(found.samples), grid)
    return found


def _verify(folder: Path, progress: Progress) -> None:
    """Compare every pixel of prepared data with their cards."""
    splits = [split for split in ("train", "test") if (folder / f"{split}.json").is_file()]
    if not splits:
        raise ValueError(
            f"--verify: {folder} is no prepared folder: others are read anew each time"
        )
    for split in splits:
        data = open_prepared(folder, split, verify=True)
        progress.say(f"{split}: all {len(data):,} images are those of the card")


def prepare_data(
    source: str,
    out: Path,
    *,
    preset: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    splits: Sequence[str] | None = None,
    allow_count: bool = False,
    workers: int | None = None,
    progress: Progress,
) -> dict[str, DataCard]:
    """Prepare data, telling what was left out or changed on the way.

    Args:
        source: what `softtrunc.data.open_dataset` reads.
        out: the folder to make.
        preset: the protocol of a known data set.
        size: side of the images, where there is no preset.
        channels: 1 or 3, likewise.
        splits: which ones; None: all.
        allow_count: take other numbers of images than the preset's.
        workers: processes; None: one for each core.
        progress: where bars and lines go.

    Raises:
        UserError: if the data cannot be read or are not what the preset says.
        RunFailedError: if a worker died.
    """
    unfinished = out.parent / f".{out.name}.partial"
    if unfinished.exists():
        progress.say(f"{unfinished} is there: going on from it where it is of the same data")
    try:
        with ExitStack() as stack, user_errors(), missing_packages():
            cards = prepare(
                source,
                out,
                preset=preset,
                image_size=size,
                channels=channels,
                allow_count=allow_count,
                splits=splits,
                workers=core_count() if workers is None else workers,
                bar=lambda label: stack.enter_context(counting(progress, label)),
            )
    except UserError as error:
        if unfinished.exists():
            raise UserError(
                f"{error} (what is done stays in {unfinished}, and need not be done again)"
            ) from error
        raise
    except BrokenProcessPool as error:
        raise RunFailedError(
            f"{source}: a worker was killed, for want of memory or by a broken image: the same "
            "command goes on from there; add --workers 1 to use less memory"
        ) from error
    for split in cards:
        _tell(out, split, progress)
    return cards


def _tell(out: Path, split: str, progress: Progress) -> None:
    """What was changed or left out in a split."""
    data = open_prepared(out, split)
    for what, count in data.converted.items():
        progress.say(f"{split}: {count:,} images: {what}")
    for name, reason in data.skipped[:_NAMED]:
        progress.say(f"{split}: left out {name}: {reason}")
    if (more := len(data.skipped) - _NAMED) > 0:
        progress.say(f"{split}: left out {more:,} more, all named in {out / f'{split}.json'}")


def core_count() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
