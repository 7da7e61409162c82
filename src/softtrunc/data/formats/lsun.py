"""LSUN's LMDB folders: image files by key (Yu et al. 2015)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softtrunc.data.formats.folder import files_source
from softtrunc.data.formats.optional import import_for
from softtrunc.data.images.decode import MAX_FILE_BYTES, too_large
from softtrunc.data.source import Encoded, ImageFiles, Source
from softtrunc.data.splits import split_of_folder

_NAME = re.compile(r"(?P<category>.+)_(?P<split>train|val|test)(_lmdb)?$")


def _is_lmdb(folder: Path) -> bool:
    return (folder / "data.mdb").is_file()


class _LmdbFiles(ImageFiles):
    """The image files in an LMDB folder, named and ordered by their keys."""

    def __init__(self, location: Path) -> None:
        self.location = location
        with _transaction(location) as transaction:
            keys = transaction.cursor().iternext(keys=True, values=False)
            self.names = [bytes(key).decode("latin1") for key in keys]

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the keys."""
        with _transaction(Path(self.location)) as transaction:
            for name in sorted(names):
                content = transaction.get(name.encode("latin1"))
                if content is None:
                    yield Encoded(name, None, "no such key")
                elif len(content) > MAX_FILE_BYTES:
                    yield Encoded(name, None, too_large(len(content)))
                else:
                    yield Encoded(name, bytes(content))


@contextmanager
def _transaction(location: Path) -> Iterator[Any]:
    """A read transaction on a database that cannot reach beyond the end of its file."""
    lmdb = import_for("LMDB folders", "lmdb", "lsun")
    try:
        environment = lmdb.open(
            str(location), readonly=True, lock=False, readahead=False, meminit=False
        )
    except lmdb.Error as error:
        raise ValueError(f"{location}: not a readable LMDB: {error}") from error
    with environment:
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        size = (location / "data.mdb").stat().st_size
        # It is mapped into memory: reading past its end would kill the process.
        if size < needed:
            raise ValueError(
                f"{location}: data.mdb has {size:,} of {needed:,} bytes: cut short; fetch it again"
            )
        yield environment.begin(buffers=True)


def lmdb_source(folder: Path, held_out: float) -> Source | None:
    """LSUN, if it is that: `CATEGORY_train_lmdb` and `CATEGORY_val_lmdb` are the splits.

    One LMDB folder whose name tells no split is divided like a folder of images.

    Raises:
        ValueError: if there are several of one split.
    """
    match = _NAME.fullmatch(folder.resolve().name)
    if _is_lmdb(folder) and match is None:
        return files_source(_LmdbFiles(folder), "lmdb", held_out)
    if _is_lmdb(folder) and match is not None:
        places = folder.resolve().parent.glob(f"{match['category']}_*")  # and its other half
    else:
        places = folder.iterdir()
    found: dict[str, Path] = {}
    for place in sorted(places):
        match = _NAME.fullmatch(place.name)
        if match is None or not _is_lmdb(place):
            continue
        split = split_of_folder(match["split"]) or match["split"]
        if split in found:
            raise ValueError(
                f"{folder}: {found[split].name} and {place.name} are both {split} images: give one "
                "LMDB folder"
            )
        found[split] = place
    if not found:
        return None
    category = next(iter(found.values())).name.split("_train")[0].split("_val")[0]
    return Source(
        name=f"lsun-{category}",
        kind="lmdb",
        location=str(folder),
        splits=found,
        open_split=lambda split: _LmdbFiles(found[split]).part(),
    )
