"""Parquet files of image tables, as the Hugging Face Hub keeps them."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.dataset import Skipped
from softtrunc.data.formats.folder import files_source
from softtrunc.data.source import Encoded, Part, Source
from softtrunc.data.splits import split_of_folder

__all__ = ["find_parquet", "is_parquet", "parquet_source"]

# train-00000-of-00004.parquet, or train.parquet.
_NAME = re.compile(r"(?P<split>[A-Za-z_]+?)([-.].*)?\.parquet$")
_LABELS = ("label", "labels", "fine_label", "fine_labels")


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Parquet files need the package pyarrow: pip install 'softtrunc[parquet]'"
        ) from error
    return pyarrow


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """Parquet files in a folder, or in its folder `data`, by split and in order; else empty."""
    for place in (folder, folder / "data"):
        paths = sorted(path for path in place.glob("*.parquet") if path.is_file())
        found: dict[str, list[Path]] = {}
        for path in paths:
            match = _NAME.fullmatch(path.name)
            word = path.stem if match is None else match["split"]
            found.setdefault(split_of_folder(word) or word, []).append(path)
        if found:
            return found
    return {}


def parquet_source(location: Path, found: Mapping[str, Sequence[Path]]) -> Source:
    """Tables with a column of image files, and labels where a column is named `label`.

    Files of one split are read one after the other; those that tell no split are divided like a
    folder of images.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        ValueError: if there are several splits, none of them called train.
    """
    name = location.resolve().name.split(".")[0]
    if len(found) == 1:
        (paths,) = found.values()
        return files_source(_Tables(location, paths), "parquet", name=name)
    if "train" not in found:
        raise ValueError(f"{location}: splits {', '.join(found)}: none of them is called train")

    def opener(split: str) -> Part:
        tables = _Tables(location, found[split])
        return Part(tables, tables.names, tables.labels())

    return Source(
        name=name,
        kind="parquet",
        location=str(location),
        parts={split: functools.partial(opener, split) for split in found},
    )


class _Tables:
    """Image files in a column of one or several tables, named by file and row."""

    def __init__(self, location: Path, paths: Sequence[Path]) -> None:
        self.location = location
        self.skipped: Sequence[Skipped] = ()
        self._paths = {path.name: path for path in paths}
        names: list[str] = []
        for path in paths:
            with _open(path) as table:
                self._column = _image_column(path, table.schema_arrow)
                names += [f"{path.name}/{row:08d}" for row in range(table.metadata.num_rows)]
        self.names: Sequence[str] = names

    def labels(self) -> np.ndarray | None:
        """The integers of the first column that is named like labels, if there is one."""
        parts = []
        for path in self._paths.values():
            with _open(path) as table:
                names = [name for name in _LABELS if name in table.schema_arrow.names]
                if not names:
                    return None
                column = table.read(columns=names[:1]).column(0)
            if str(column.type) not in ("int64", "int32", "int16", "int8", "uint8"):
                return None
            parts.append(column.to_numpy())
        labels = np.concatenate(parts).astype(np.int64)
        # -1 is the Hub's word for "not told".
        return labels if labels.min(initial=0) >= 0 else None

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the files and rows."""
        wanted = set(names)
        for file, path in self._paths.items():
            if not any(name.startswith(f"{file}/") for name in wanted):
                continue
            row = 0
            with _open(path) as table:
                for batch in table.iter_batches(batch_size=256, columns=[self._column]):
                    for value in batch.column(0).to_pylist():
                        name, row = f"{file}/{row:08d}", row + 1
                        if name in wanted:
                            content = value["bytes"] if isinstance(value, dict) else value
                            yield Encoded(name, content or None, "no image in this row")


class _open:  # noqa: N801  (reads as a function)
    """A Parquet file open for reading; any way in which it can be broken becomes a ValueError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        self._pyarrow = _import_pyarrow()
        try:
            self._file = self._pyarrow.parquet.ParquetFile(self._path)
        except (self._pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self._path}: not a readable Parquet file: {error}") from error
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, self._pyarrow.ArrowException | OSError):
            raise ValueError(f"{self._path}: broken or cut short: {error}") from error


def _image_column(path: Path, schema: Any) -> str:
    """The column that holds image files: a struct with `bytes`, or bytes of a telling name."""
    structs = [f.name for f in schema if str(f.type).startswith("struct<bytes: binary")]
    plain = [
        f.name for f in schema if str(f.type) == "binary" and f.name in ("image", "img", "bytes")
    ]
    found: list[str] = structs or plain
    if len(found) != 1:
        there = ", ".join(f"{f.name}: {f.type}" for f in schema)
        what = "several columns" if found else "no column"
        raise ValueError(f"{path}: {what} of images among {there}")
    return found[0]
