"""Parquet files of image tables, as the Hugging Face Hub keeps them.

Read by pyarrow and not by `datasets`: that would first copy every table into its cache, and it
brings in many packages more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.formats.bounds import refuse_bomb
from softtrunc.data.formats.optional import import_for
from softtrunc.data.formats.tables import image_column, known_labels, tables_source
from softtrunc.data.images.decode import MAX_FILE_BYTES, too_large
from softtrunc.data.source import Encoded, ImageFiles, Source, plain_name, rows_by_file

# train-00000-of-00004.parquet, or train.parquet.
_NAME = re.compile(r"(?P<split>[A-Za-z_]+?)([-.].*)?\.parquet$")
# Read at a time, at most.
_ROWS = 256
_BATCH_BYTES = 64 << 20
_LABELS = ("label", "labels", "fine_label", "fine_labels")


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def parquet_source(location: Path, held_out: float) -> Source | None:
    """A Parquet file, or those in a folder or its folder `data`, if there are any.

    Tables have a column of image files, and labels where a column is named `label`. Files of one
    split are read one after the other; those that tell no split are divided like a folder of
    images.
    """
    if location.is_file():
        paths = [location]
    else:
        places = (location, location / "data")
        found = (sorted(p for p in place.glob("*.parquet") if p.is_file()) for place in places)
        paths = next(filter(None, found), [])
    if not paths:
        return None
    splits: dict[str, list[Path]] = {}
    for path in paths:
        match = _NAME.fullmatch(path.name)
        splits.setdefault(path.stem if match is None else match["split"], []).append(path)

    def opener(tables: Sequence[Path]) -> _Tables:
        return _Tables(location, tables)

    name = plain_name(location)
    return tables_source(opener, splits, "parquet", str(location), held_out, name=name)


class _Tables(ImageFiles):
    """Image files in a column of one or several tables, named by file and row."""

    def __init__(self, location: Path, paths: Sequence[Path]) -> None:
        self.location = location
        self._paths = {path.name: path for path in paths}
        names: list[str] = []
        labels: list[np.ndarray | None] = []
        for path in paths:
            with _opened(path) as table:
                _refuse_bomb(path, table.metadata)
                self._column = _image_column(path, table.schema_arrow)
                names += [f"{path.name}/{row:08d}" for row in range(table.metadata.num_rows)]
                labels.append(_labels(table))
        self.names = names
        known = [part for part in labels if part is not None]
        if len(known) == len(labels):
            self.labels = known_labels(np.concatenate(known))

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the files and rows."""
        for file, rows in rows_by_file(names).items():
            wanted = set(rows)
            with _opened(self._paths[file]) as table:
                row, at_once = 0, _rows_at_once(table.metadata)
                for batch in table.iter_batches(batch_size=at_once, columns=[self._column]):
                    for value in batch.column(0):
                        if row in wanted:
                            yield _encoded(f"{file}/{row:08d}", value.as_py())
                        row += 1


def _encoded(name: str, value: Any) -> Encoded:
    content = value["bytes"] if isinstance(value, dict) else value
    if content and len(content) > MAX_FILE_BYTES:
        return Encoded(name, None, too_large(len(content)))
    return Encoded(name, content or None, "no image in this row")


def _rows_at_once(metadata: Any) -> int:
    """How many rows to unpack together: any of them may be as large as all that is stored.

    Rows that repeat a value are stored as its number.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    largest = max((group.total_byte_size for group in groups), default=0)
    return max(1, min(_ROWS, _BATCH_BYTES // max(1, largest)))


def _refuse_bomb(path: Path, metadata: Any) -> None:
    """Look at what the file promises; a thousand rows may be written in a few bytes."""
    size = path.stat().st_size
    if metadata.num_rows > size:
        raise ValueError(
            f"{path}: promises {metadata.num_rows:,} rows in {size:,} bytes, more than one a byte: "
            "refused as a decompression bomb"
        )
    for group in range(metadata.num_row_groups):
        for number in range(metadata.row_group(group).num_columns):
            column = metadata.row_group(group).column(number)
            packed = min(column.total_compressed_size, size)
            refuse_bomb(path, packed, column.total_uncompressed_size)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file open for reading; any way in which it can be broken becomes a ValueError."""
    pyarrow = import_for("Parquet files", "pyarrow", "parquet")
    parquet = import_for("Parquet files", "pyarrow.parquet", "parquet")
    broken = (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError)
    try:
        file = parquet.ParquetFile(path)
    except broken as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    try:
        yield file
    except broken as error:
        raise ValueError(f"{path}: broken or cut short: {error}") from error
    finally:
        file.close()


def _labels(table: Any) -> np.ndarray | None:
    """The integers of the first column that is named like labels, if there is one."""
    names = [name for name in _LABELS if name in table.schema_arrow.names]
    if not names:
        return None
    column = table.read(columns=names[:1]).column(0)
    if str(column.type) not in ("int64", "int32", "int16", "int8", "uint8"):
        return None
    numbers: np.ndarray = column.to_numpy()
    return numbers


def _image_column(path: Path, schema: Any) -> str:
    """The column that holds image files: a struct with `bytes`, or bytes of a telling name."""
    structs = [f.name for f in schema if str(f.type).startswith("struct<bytes: binary")]
    plain = [
        f.name for f in schema if str(f.type) == "binary" and f.name in ("image", "img", "bytes")
    ]
    return image_column(path, structs or plain, {f.name: str(f.type) for f in schema})
