"""One door to every data set: a name or a path."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from softtrunc.data.dataset import ImageDataset
from softtrunc.data.detect import open_source
from softtrunc.data.floats import open_floats
from softtrunc.data.images.collect import Advance, Collected, collect
from softtrunc.data.images.decode import conform, decode
from softtrunc.data.protocol import How, open_part
from softtrunc.data.source import ArrayImages
from softtrunc.data.splits import EVERY, HELD_OUT, check_split


def open_dataset(
    source: str | Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    preset: str | None = None,
    held_out: float = HELD_OUT,
    largest: int | None = None,
    value_range: tuple[float, float] | None = None,
    progress: Advance | None = None,
) -> ImageDataset:
    """Open one split of a data set, of whatever kind it turns out to be.

    Of image files, folders `train` and `test` (also `training`; `testing`, `val`, `valid`,
    `validation`) are the splits. Where data come without splits, a share of them, chosen by a hash
    of their names, is the test split. Images stand upright (EXIF), transparency is laid on white,
    CMYK and palettes become RGB, of animations the first frame is taken; `converted` counts what
    was changed. Files that cannot be read, or that have 16 bits a channel, are left out and listed
    in `skipped`; they never end the reading.

    Arrays of floats (N, C, H, W), an autoencoder's latents say, are no images: they may have any
    number of channels, are taken as they are, and have to lie in a range that is told.

    Args:
        source: "digits" or "fashion16"; "hf://OWNER/NAME" of the Hugging Face Hub; or the path of a
            folder, zip or tar of images, a .npy, .npz or .safetensors, IDX files, CIFAR-10 or
            CIFAR-100, batches of the downsampled ImageNet, STL-10, CelebA with its partition file,
            LSUN's LMDB folders, Parquet files, a data set saved by `datasets`, or a prepared
            folder. Archives as downloaded are read as they are.
        split: "train" or "test"; or "all" for every image, whatever its folder is called.
        image_size: side, or (height, width), to crop centrally and resize to (Pillow's
            antialiased bicubic); None: all images must have one size.
        channels: 1 or 3; None: colour if any image is. Of floats the number that they have.
        preset: the protocol of a known data set (`PRESETS`) instead of these; prepared data must
            have been prepared by it.
        held_out: share in [0, 1) held out where the data come without splits.
        largest: most bytes of memory that image files may take when they are decoded.
        value_range: of floats, low and high between which all of them lie; None: they are images.
        progress: called with (done, total) after each image file is decoded.

    Raises:
        FileNotFoundError: if there are no such data.
        ModuleNotFoundError: if reading them needs a package that is not installed.
        ValueError: if they cannot be read, are not what the preset says, or take too much memory.
    """
    check_split(split, source, EVERY)
    told = channels if value_range is None else None  # floats may have any number of channels
    how = How.asked(source, image_size, told, preset)
    opened = open_source(source, held_out)
    part = open_part(opened, split, how)
    splits = tuple(opened.splits)
    if isinstance(part.files, ArrayImages) and part.files.floats:
        values = open_floats(opened, split, part, part.files, how, value_range, channels)
        return dataclasses.replace(values, splits=splits)
    if value_range is not None:
        raise ValueError(
            f"{source}: uint8 images, which have levels and no data.value_range: leave it out"
        )
    if part.data is not None:
        return dataclasses.replace(part.data, splits=splits)
    if how.preset is None and isinstance(part.files, ArrayImages):
        picked = part.files.pick(part.names)
        images = conform(picked, how.fit, how.channels)
        # They are all alike: what becomes of one becomes of every one.
        first = decode(picked[0].transpose(1, 2, 0), how.fit, how.channels) if len(picked) else None
        converted = Counter({first.converted: len(images)} if first and first.converted else {})
        found = Collected(images, np.arange(len(images)), [], lossy=False, converted=converted)
    else:
        found = collect(
            part.files,
            part.names,
            fit=how.fit,
            channels=how.channels,
            largest=largest,
            progress=progress,
        )
    return dataclasses.replace(how.finish(opened, split, part, found), splits=splits)
