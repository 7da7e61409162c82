"""CelebA: aligned images and the official split (Liu et al. 2015)."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path

from softtrunc.data.dataset import Skipped
from softtrunc.data.formats.files import FolderFiles, open_archive
from softtrunc.data.source import Encoded, ImageFiles, Source

_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
# The file counts 0, 1, 2.
_SPLITS = {"0": "train", "1": "validation", "2": "test"}
_ALIGNED = "img_align_celeba"


def _find_partition(path: Path) -> Path | None:
    """Looked for in a folder and its folder `Eval`; beside images called img_align_celeba, too."""
    places = [path] if path.is_dir() else []
    if path.name.split(".")[0].lower() == _ALIGNED:
        places += [path.parent, path.parent.parent]
    for place in places:
        for folder in (place, place / "Eval"):
            for name in _PARTITIONS:
                if (folder / name).is_file():
                    return folder / name
    return None


def _read_partition(path: Path) -> dict[str, str]:
    """The split of every image, by file name; lines are "NAME 0|1|2" (or with a comma)."""
    splits: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or (number == 1 and words == ["image_id", "partition"]):
            continue
        if len(words) != 2 or words[1] not in _SPLITS:
            raise ValueError(
                f"{path}: line {number}: {line[:60]!r} is not a name and 0 (train), 1 "
                "(validation) or 2 (test)"
            )
        if words[0] in splits:
            raise ValueError(f"{path}: line {number}: {words[0]} is there twice")
        splits[words[0]] = _SPLITS[words[1]]
    if not splits:
        raise ValueError(f"{path}: empty")
    return splits


def _images(path: Path) -> ImageFiles:
    """The aligned images: below a folder of their name, in a zip of it, or the path itself."""
    if not path.is_dir():
        return open_archive(path)
    for folder in (path, path / "Img"):
        if (folder / _ALIGNED).is_dir():
            return FolderFiles(folder / _ALIGNED)
        if (folder / f"{_ALIGNED}.zip").is_file():
            return open_archive(folder / f"{_ALIGNED}.zip")
    return FolderFiles(path)


def celeba_source(path: Path) -> Source | None:
    """CelebA, if there is the official partition file; its validation part is in neither split."""
    partition = _find_partition(path)
    if partition is None:
        return None
    files, split_of = _images(path), _read_partition(partition)
    found: dict[str, str] = {}
    for name in files.names:
        base = posixpath.basename(name)
        if base in found:
            raise ValueError(
                f"{path}: {found[base]} and {name} have one name in {partition.name}: give the "
                f"folder that holds {_ALIGNED} alone"
            )
        found[base] = name
    if not split_of.keys() & found.keys():
        raise ValueError(f"{partition}: names none of the {len(found):,} images under {path}")
    images = _Listed(files, partition.name)
    unlisted = [name for base, name in found.items() if base not in split_of]
    images.skipped = [*files.skipped, *(Skipped(n, f"not in {partition.name}") for n in unlisted)]
    # A name that has no image stays in the list: reading it tells that it is missing.
    names: dict[str, list[str]] = {split: [] for split in split_of.values()}
    for base, split in split_of.items():
        names[split].append(found.get(base, base))
    return Source("celeba", "celeba", str(path), names, lambda split: images.part(names[split]))


class _Listed(ImageFiles):
    """Images that a list names, those that are missing among them."""

    def __init__(self, files: ImageFiles, listed_in: str) -> None:
        self.location = files.location
        self.names = files.names
        self._files = files
        self._there = frozenset(files.names)
        self._list = listed_in

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Those that are there, and word of those that are not."""
        yield from self._files.read([name for name in names if name in self._there])
        for name in names:
            if name not in self._there:
                yield Encoded(name, None, f"in {self._list}, but there is no such file")
