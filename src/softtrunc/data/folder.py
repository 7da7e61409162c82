"""Images in a folder, a zip or a tar."""

from __future__ import annotations

from pathlib import Path

from softtrunc.data.collect import Allocate, Progress, collect, in_memory
from softtrunc.data.dataset import ImageDataset
from softtrunc.data.decode import describe_fit, pair
from softtrunc.data.files import ImageFiles, open_files
from softtrunc.data.splits import HELD_OUT, check_split, choose_names

__all__ = ["load_archive", "load_files", "load_folder"]


def load_files(
    files: ImageFiles,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    held_out: float = HELD_OUT,
    allocate: Allocate = in_memory,
    progress: Progress | None = None,
) -> ImageDataset:
    """What `load_folder` does, for any source of named image files.

    Args:
        files: where the images lie.
        split: as in `load_folder`.
        image_size: likewise.
        channels: likewise.
        held_out: likewise.
        progress: likewise.
        allocate: where the pixels go.

    Raises:
        ValueError: as `load_folder`.
    """
    where = files.location
    check_split(split, where)
    if channels not in (None, 1, 3):
        raise ValueError(f"{where}: channels={channels}: write 1 (grey), 3 (RGB) or nothing")
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"{where}: held_out={held_out}: need a share in [0, 1), e.g. 0.1")
    size = pair(image_size)
    if not files.names:
        more = f" ({files.skipped[0].name}: {files.skipped[0].reason})" if files.skipped else ""
        raise ValueError(
            f"no readable image under {where}{more}: put PNG, JPEG, WebP, ... files there"
        )
    names = choose_names(files.names, split, held_out)
    if not names:
        raise ValueError(
            f"{where}: none of its {len(files.names)} images falls into the {split} split: put "
            f"those for it in a folder {split}/ of its own"
        )
    images, skipped = collect(
        files, names, size=size, channels=channels, allocate=allocate, progress=progress
    )
    return ImageDataset.create(
        images,
        name=where.resolve().name.split(".")[0],
        split=split,
        source=str(where),
        preprocessing=describe_fit(size),
        skipped=[*files.skipped, *skipped],
    )


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
    become RGB, of animations the first frame is taken. Files that cannot be read, or that have
    16 bits a channel, are left out and listed in `skipped`; they never end the reading.

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
