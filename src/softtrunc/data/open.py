"""One door to every data set: a name or a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softtrunc.data.dataset import DataCard, ImageDataset
from softtrunc.data.detect import open_source
from softtrunc.data.formats.digits import load_digits_split
from softtrunc.data.images.collect import Progress
from softtrunc.data.images.fit import fit_to, pair
from softtrunc.data.load import How, load_part
from softtrunc.data.preparing.prepare import Bar, prepare_source
from softtrunc.data.preparing.prepared import open_prepared
from softtrunc.data.presets import find_preset
from softtrunc.data.source import ArrayImages, NoSplitError, Source
from softtrunc.data.splits import check_split

__all__ = ["open_dataset", "prepare"]


def _how(
    source: str | Path,
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    preset: str | None,
    any_count: bool,
) -> How:
    if channels not in (None, 1, 3):
        raise ValueError(f"{source}: channels={channels}: write 1 (grey), 3 (RGB) or nothing")
    if preset is None:
        return How(fit_to(image_size), channels)
    known = find_preset(preset)
    if pair(image_size) not in (None, known.fit.size) or channels not in (None, known.channels):
        depth, (height, width) = known.channels, known.fit.size
        raise ValueError(
            f"{source}: preset {preset} makes images of {depth} x {height} x {width}: leave out "
            "image_size and channels, or the preset"
        )
    return How.of(known, any_count=any_count)


def _refuse_change(source: Source, how: How) -> None:
    """Digits and prepared data are what they are."""
    if source.kind not in ("digits", "prepared"):
        return
    card = source.part(next(iter(source.parts))).files
    assert isinstance(card, ArrayImages)  # both kinds are
    depth, height, width = card.images.shape[1:]
    size = None if how.fit is None else how.fit.size
    if size not in (None, (height, width)) or how.channels not in (None, depth):
        raise ValueError(
            f"{source.location}: images are {depth} x {height} x {width}: leave out "
            "data.image_size and data.channels, or set them to this"
        )


def open_dataset(
    source: str | Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    preset: str | None = None,
    largest: int | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """Open one split of a data set, of whatever kind it turns out to be.

    Args:
        source: "digits"; "hf://OWNER/NAME" of the Hugging Face Hub; or the path of a folder, zip or
            tar of images (`load_folder`, `load_archive`), a .npy or .npz (`load_array`), IDX files
            (`load_idx`), CIFAR-10 or CIFAR-100 (pickled or binary), batches of the downsampled
            ImageNet, STL-10, CelebA with its partition file, LSUN's LMDB folders, Parquet files, a
            data set saved by `datasets`, or a prepared folder (`open_prepared`). Archives as
            downloaded are read as they are.
        split: "train" or "test".
        image_size: side, or (height, width), to bring images to; None: as they are.
        channels: 1 or 3; None: as they are.
        preset: the protocol of a known data set (`PRESETS`) instead of these; prepared data must
            have been prepared by it.
        largest: most bytes of memory that image files may take when they are decoded.
        progress: called with (done, total) while image files are decoded.

    Raises:
        FileNotFoundError: if there are no such data.
        ModuleNotFoundError: if reading them needs a package that is not installed.
        ValueError: if they cannot be read, are not what the preset says, or take too much memory.
    """
    check_split(split, source)
    how = _how(source, image_size, channels, preset, any_count=False)
    opened = open_source(source)
    if opened.kind in ("digits", "prepared"):
        _refuse_change(opened, how)
        path = Path(source)
        data = load_digits_split(split) if opened.kind == "digits" else open_prepared(path, split)
        if preset is not None and data.card.name.removesuffix("-jpeg") != preset:
            raise ValueError(
                f"{source}: prepared as {data.card.name}, not by preset {preset}: prepare it with "
                f"--preset {preset}"
            )
        return data
    return load_part(opened, split, how, largest=largest, progress=progress)


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
    everything is in it; a call that was killed goes on where it stopped. What is written depends on
    neither the number of workers nor on kills.

    Args:
        source: as in `open_dataset`.
        out: the folder to make.
        image_size: as in `open_dataset`.
        channels: likewise.
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
        ValueError: if `out` is in use, numbers of images are not the preset's, or as
            `open_dataset`.
    """
    how = _how(source, image_size, channels, preset, allow_count)
    opened = open_source(source)
    if opened.kind == "prepared":
        raise ValueError(f"{source}: is prepared already: give the original data")
    _refuse_change(opened, how)
    there = [split for split in ("train", "test") if split in opened.parts]
    if how.preset is not None and how.preset.test is None:
        there = ["train"]
    for split in splits or ():
        check_split(split, source)
        if split not in there:
            raise NoSplitError(f"{source}: no {split} split, only {', '.join(there)}")
    return prepare_source(opened, out, splits or there, how, workers=workers, bar=bar)
