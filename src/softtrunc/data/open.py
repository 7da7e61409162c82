"""One door to every data set: a name or a path, told apart by what is in it."""

from __future__ import annotations

import functools
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from softtrunc.data.arrays import is_array, load_array
from softtrunc.data.batches import cifar_source, find_cifar, find_imagenet, imagenet_source
from softtrunc.data.celeba import celeba_source, find_partition
from softtrunc.data.collect import Progress
from softtrunc.data.dataset import DataCard, ImageDataset
from softtrunc.data.digits import load_digits_split
from softtrunc.data.files import FolderFiles, open_archive
from softtrunc.data.fit import fit_to, pair
from softtrunc.data.folder import files_source
from softtrunc.data.hub import SCHEME, hub_source, is_saved, saved_source
from softtrunc.data.idx import find_idx, idx_folder, load_idx
from softtrunc.data.load import How, load_part
from softtrunc.data.lsun import find_lmdb, lmdb_source
from softtrunc.data.members import Members
from softtrunc.data.prepare import Bar, prepare_source
from softtrunc.data.prepared import is_prepared, open_prepared
from softtrunc.data.presets import find_preset
from softtrunc.data.source import ArrayImages, JoinedFiles, NoSplitError, Part, Source
from softtrunc.data.splits import check_split
from softtrunc.data.stl10 import find_stl10, stl10_source

__all__ = ["Kind", "kind_of", "open_dataset", "open_source", "prepare"]

Kind = str
"""One of "digits", "prepared", "idx", "array", "archive", "folder", "cifar10", "cifar100",
"imagenet", "stl10", "celeba", "lmdb", "hub"."""

_ALLOWED = (
    'write "digits", hf://OWNER/NAME, or the path of a folder, zip or tar of images, a .npy or '
    ".npz of uint8 images, MNIST-like IDX files, CIFAR, downsampled ImageNet, STL-10, CelebA or "
    "LSUN as released, or a prepared folder"
)


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error):
        return False


def _is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or _is_tar(path))


def _loaded(
    kind: Kind, path: str, load: Callable[[str], ImageDataset], splits: Sequence[str]
) -> Source:
    """A source of what is read whole; names and levels are in its cards."""
    first = load(splits[0]).card if kind in ("digits", "prepared") else None

    def opener(split: str) -> Part:
        return ArrayImages.part(load(split), path)

    return Source(
        name=Path(path).resolve().name.split(".")[0] if first is None else first.name,
        kind=kind,
        location=first.source if kind == "digits" and first is not None else path,
        parts={split: functools.partial(opener, split) for split in splits},
        levels=256 if first is None else first.levels,
    )


def _released(members: Members) -> Source | None:
    """A release whose files have names of their own."""
    if (form := find_cifar(members)) is not None:
        return cifar_source(members, form)
    if found := find_imagenet(members):
        return imagenet_source(members, found)
    return stl10_source(members) if find_stl10(members) else None


def _open_archive(path: Path) -> Source:
    partition = find_partition(path)
    if partition is not None:
        return celeba_source(path, partition)
    archive = open_archive(path)
    released = _released(Members.of_archives(path, [archive]))
    return released or files_source(archive, "archive")


def _open_folder(path: Path) -> Source:
    if is_prepared(path):
        splits = [split for split in ("train", "test") if (path / f"{split}.json").is_file()]
        return _loaded("prepared", str(path), lambda split: open_prepared(path, split), splits)
    if is_saved(path):
        return saved_source(path)
    if found := find_lmdb(path):
        return lmdb_source(path, found)
    if (place := idx_folder(path)) is not None:
        splits = sorted(find_idx(place), reverse=True)
        return _loaded("idx", str(place), lambda split: load_idx(place, split), splits)
    if (partition := find_partition(path)) is not None:
        return celeba_source(path, partition)
    if (released := _released(Members.of_folder(path))) is not None:
        return released
    files = FolderFiles(path)
    archives = [] if files.names and not files.bare else _archives_in(path)
    if len(archives) == 1:
        return _open_archive(archives[0])
    return _open_archives(path, archives) if archives else files_source(files, "folder")


def _archives_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_archive(path))


def _open_archives(folder: Path, paths: Sequence[Path]) -> Source:
    """A release in several archives, or one archive of images for each split."""
    archives = {path.name.split(".")[0]: open_archive(path) for path in paths}
    released = _released(Members.of_archives(folder, list(archives.values())))
    return released or files_source(JoinedFiles(folder, archives), "archive")


def open_source(source: str | Path) -> Source:
    """Find out what a source is, by what is in it.

    Raises:
        FileNotFoundError: if it is neither a name nor an existing path.
        ModuleNotFoundError: if reading it needs a package that is not installed.
        ValueError: if it is of no kind that is read, or broken.
    """
    text, path = str(source), Path(source)
    if text == "digits":
        return _loaded("digits", text, load_digits_split, ("train", "test"))
    if text.startswith(SCHEME):
        return hub_source(text)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such data: {_ALLOWED}")
    if is_array(path):
        splits = ("train", "test")
        return _loaded("array", text, lambda split: load_array(path, split), splits)
    if path in find_idx(path.parent).values():
        return _open_folder(path.parent)
    if _is_archive(path):
        return _open_archive(path)
    raise ValueError(f"{source}: not a kind of file that is read, or broken: {_ALLOWED}")


def kind_of(source: str | Path) -> Kind:
    """How a source will be read.

    Raises:
        FileNotFoundError: if it is neither a name nor an existing path.
        ValueError: if the path is of no kind that is read.
    """
    return open_source(source).kind


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
            ImageNet, STL-10, CelebA with its partition file, LSUN's LMDB folders, a data set saved
            by `datasets`, or a prepared folder (`open_prepared`). Archives as downloaded are read
            as they are.
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
