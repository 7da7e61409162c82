"""One door to every data set: a name or a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softtrunc.data.dataset import DataCard, ImageDataset
from softtrunc.data.detect import open_source
from softtrunc.data.images.collect import Advance
from softtrunc.data.load import How, load_part
from softtrunc.data.preparing.prepare import Bar, prepare_source
from softtrunc.data.source import NoSplitError
from softtrunc.data.splits import HELD_OUT, check_split

__all__ = ["open_dataset", "prepare"]


def open_dataset(
    source: str | Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    preset: str | None = None,
    held_out: float = HELD_OUT,
    largest: int | None = None,
    progress: Advance | None = None,
) -> ImageDataset:
    """Open one split of a data set, of whatever kind it turns out to be.

    Of image files, folders `train` and `test` (also `training`; `testing`, `val`, `valid`,
    `validation`) are the splits. Where data come without splits, a share of them, chosen by a hash
    of their names, is the test split. Images stand upright (EXIF), transparency is laid on white,
    CMYK and palettes become RGB, of animations the first frame is taken; `converted` counts what
    was changed. Files that cannot be read, or that have 16 bits a channel, are left out and listed
    in `skipped`; they never end the reading.

    Args:
        source: "digits"; "hf://OWNER/NAME" of the Hugging Face Hub; or the path of a folder, zip or
            tar of images, a .npy or .npz, IDX files, CIFAR-10 or CIFAR-100 (pickled or binary),
            batches of the downsampled ImageNet, STL-10, CelebA with its partition file, LSUN's LMDB
            folders, Parquet files, a data set saved by `datasets`, or a prepared folder. Archives
            as downloaded are read as they are.
        split: "train" or "test".
        image_size: side, or (height, width), to crop centrally and resize to (Pillow's
            antialiased bicubic); None: all images must have one size.
        channels: 1 or 3; None: colour if any image is.
        preset: the protocol of a known data set (`PRESETS`) instead of these; prepared data must
            have been prepared by it.
        held_out: share in [0, 1) held out where the data come without splits.
        largest: most bytes of memory that image files may take when they are decoded.
        progress: called with (done, total) after each image file is decoded.

    Raises:
        FileNotFoundError: if there are no such data.
        ModuleNotFoundError: if reading them needs a package that is not installed.
        ValueError: if they cannot be read, are not what the preset says, or take too much memory.
    """
    check_split(split, source)
    how = How.asked(source, image_size, channels, preset)
    return load_part(open_source(source, held_out), split, how, largest=largest, progress=progress)


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
        source, image_size, channels: as in `open_dataset`.
        out: the folder to make; it may exist if it is empty.
        preset: the protocol of a known data set (`PRESETS`) instead of these; it also says how many
            images there must be.
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
    there = [split for split in ("train", "test") if split in opened.parts]
    if how.preset is not None and how.preset.test is None:
        there = ["train"]
    for split in splits or ():
        check_split(split, source)
        if split not in there:
            raise NoSplitError(f"{source}: no {split} split, only {', '.join(there)}")
    return prepare_source(opened, out, splits or there, how, workers=workers, bar=bar)
