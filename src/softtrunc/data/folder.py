"""Images in a folder, a zip or a tar."""

from __future__ import annotations

import functools
from pathlib import Path

from softtrunc.data.collect import Progress
from softtrunc.data.dataset import ImageDataset
from softtrunc.data.files import open_files
from softtrunc.data.fit import fit_to
from softtrunc.data.load import How, load_part
from softtrunc.data.source import ImageFiles, Part, Source
from softtrunc.data.splits import HELD_OUT, check_split, choose_names

__all__ = ["files_source", "load_archive", "load_files", "load_folder"]


def files_source(
    files: ImageFiles, kind: str, held_out: float = HELD_OUT, *, name: str | None = None
) -> Source:
    """Image files as a data set: the splits are folders, or drawn by a hash of the names."""
    chosen = {split: choose_names(files.names, split, held_out) for split in ("train", "test")}
    used = {n for names in chosen.values() for n in names}
    unused = [n for n in files.names if n not in used]
    if unused:
        chosen["unused"] = unused

    if not files.names:
        more = f" ({files.skipped[0].name}: {files.skipped[0].reason})" if files.skipped else ""
        raise ValueError(
            f"no readable image under {files.location}{more}: put PNG, JPEG, WebP, ... files there"
        )
    return Source(
        name=name or Path(files.location).resolve().name.split(".")[0],
        kind=kind,
        location=str(files.location),
        parts={s: functools.partial(Part, files, names) for s, names in chosen.items() if names},
        advice=f"none of its {len(files.names)} images falls into the SPLIT split: put those for "
        "it in a folder SPLIT/ of its own",
    )


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
