"""One split of a source, decoded into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softtrunc.data.dataset import ImageDataset, Skipped
from softtrunc.data.formats.files import open_files
from softtrunc.data.formats.folder import files_source
from softtrunc.data.images.collect import Progress, collect
from softtrunc.data.images.decode import conform
from softtrunc.data.images.fit import Fit, describe_fit, fit_to
from softtrunc.data.presets import Preset
from softtrunc.data.source import ArrayImages, ImageFiles, NoSplitError, Part, Source, joined
from softtrunc.data.splits import HELD_OUT, check_split

__all__ = [
    "CountError",
    "How",
    "load_archive",
    "load_files",
    "load_folder",
    "load_part",
    "name_of",
    "open_part",
]


class CountError(ValueError):
    """There are not as many images as the protocol of the data set has."""


@dataclass(frozen=True)
class How:
    """What images are brought to.

    - `fit`, `channels`: size and 1 or 3; None: as they are.
    - `preset`: the protocol that these come from, if any.
    - `any_count`: whether numbers of images other than the protocol's are taken.
    """

    fit: Fit | None = None
    channels: int | None = None
    preset: Preset | None = None
    any_count: bool = False

    @classmethod
    def of(cls, preset: Preset, *, any_count: bool = False) -> How:
        """By the protocol of a known data set."""
        return cls(preset.fit, preset.channels, preset, any_count)

    def check_count(self, source: object, split: str, found: int, why: str = "") -> None:
        """Refuse another number of images than the protocol has.

        Raises:
            CountError: unless any number is taken.
        """
        if self.preset is None or self.any_count:
            return
        wanted = self.preset.counts.get(split)
        if found != wanted:
            hint = why or self.preset.hint
            has = f"{found:,} {split} images, {self.preset.title} has "
            has += "none" if wanted is None else f"{wanted:,}"
            raise CountError(
                f"{source}: {has}{f' ({hint})' if hint else ''}: add --allow-count to take them "
                "under another name"
            )


def open_part(source: Source, split: str, how: How) -> Part:
    """Open a split, under the protocol's rules if there is one, and check its number of images.

    Raises:
        FileNotFoundError: if there is no such split.
        CountError: if the number of images is not the protocol's.
        ValueError: if the source cannot be read.
    """
    preset = how.preset
    if preset is None:
        return source.part(split)
    if preset.test is None:
        if split != "train":
            raise NoSplitError(f"{source.location}: {preset.title} has no {split} split")
        part = joined(source)
    else:
        part = source.part(split)
    how.check_count(source.location, split, len(part.names))
    return part


def name_of(source: Source, how: How, split: str, found: int, lossy: bool) -> str:
    """What prepared images may be called: a data set's name only if they are that data set."""
    if how.preset is None:
        return source.name
    name = how.preset.name
    if lossy and how.preset.lossless:
        name += "-jpeg"
    return name if found == how.preset.counts.get(split) else f"{name}-partial"


def load_part(
    source: Source,
    split: str,
    how: How,
    *,
    largest: int | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """Decode one split into memory.

    Args:
        source: the data set.
        split: "train" or "test".
        how: what images are brought to.
        largest: most bytes that the pixels may take.
        progress: called with (done, total) after each image.

    Raises:
        FileNotFoundError: if there is no such split.
        ValueError: if it cannot be read, or takes too many bytes.
    """
    part = open_part(source, split, how)
    common: dict[str, Any] = {
        "split": split,
        "source": source.location,
        "levels": source.levels,
        "preprocessing": describe_fit(how.fit),
    }
    if how.preset is None and isinstance(part.files, ArrayImages):
        images = conform(part.files.images, how.fit, how.channels)
        return ImageDataset.create(
            images, name=source.name, labels=part.labels, skipped=part.files.skipped, **common
        )
    found = collect(
        part.files,
        part.names,
        fit=how.fit,
        channels=how.channels,
        largest=largest,
        progress=progress,
    )
    how.check_count(source.location, split, len(found.images), _first_reason(found.skipped))
    return ImageDataset.create(
        found.images,
        name=name_of(source, how, split, len(found.images), found.lossy),
        labels=None if part.labels is None else part.labels[found.rows],
        skipped=[*part.files.skipped, *found.skipped],
        converted=dict(found.converted),
        **common,
    )


def _first_reason(skipped: Sequence[Skipped]) -> str:
    return f"unreadable: {skipped[0].name}: {skipped[0].reason}" if skipped else ""


def load_files(
    files: ImageFiles,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    held_out: float = HELD_OUT,
    progress: Progress | None = None,
) -> ImageDataset:
    """What `load_folder` does, for any collection of named image files.

    Args:
        files: where the images lie.
        split: as in `load_folder`.
        image_size: likewise.
        channels: likewise.
        held_out: likewise.
        progress: likewise.

    Raises:
        ValueError: as `load_folder`.
    """
    where = files.location
    check_split(split, where)
    if channels not in (None, 1, 3):
        raise ValueError(f"{where}: channels={channels}: write 1 (grey), 3 (RGB) or nothing")
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"{where}: held_out={held_out}: need a share in [0, 1), e.g. 0.1")
    how = How(fit_to(image_size), channels)
    return load_part(files_source(files, "folder", held_out), split, how, progress=progress)


def load_folder(
    path: Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    held_out: float = HELD_OUT,
    progress: Progress | None = None,
) -> ImageDataset:
    """Read every image below a folder, in the order of their names, with all cores.

    Folders `train` and `test` (also `training`; `testing`, `val`, `valid`, `validation`) inside
    are the splits. Without them a share of the files, chosen by a hash of their names, is the
    test split. Images stand upright (EXIF), transparency is laid on white, CMYK and palettes
    become RGB, of animations the first frame is taken; `converted` counts what was changed. Files
    that cannot be read, or that have 16 bits a channel, are left out and listed in `skipped`; they
    never end the reading.

    Args:
        path: the folder.
        split: "train" or "test".
        image_size: side, or (height, width), to crop centrally and resize to (Pillow's
            antialiased bicubic); None: all images must have one size.
        channels: 1 or 3; None: colour if any image is.
        held_out: share in [0, 1) held out where there are no folders for the splits.
        progress: called with (done, total) after each image.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no readable image, or sizes differ and none is asked for.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return load_files(
        open_files(path),
        split,
        image_size=image_size,
        channels=channels,
        held_out=held_out,
        progress=progress,
    )


def load_archive(
    path: Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    held_out: float = HELD_OUT,
    progress: Progress | None = None,
) -> ImageDataset:
    """Read every image in a zip or tar (also .gz, .bz2, .xz): the same data as its folder.

    Nothing is unpacked to disk, so names that would lead out of a folder do no harm.

    Args:
        path: the archive.
        split: as in `load_folder`.
        image_size: likewise.
        channels: likewise.
        held_out: likewise.
        progress: likewise.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken, cut short or a decompression bomb; else as `load_folder`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return load_files(
        open_files(path),
        split,
        image_size=image_size,
        channels=channels,
        held_out=held_out,
        progress=progress,
    )
