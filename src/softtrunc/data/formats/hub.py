"""Data sets of the Hugging Face Hub, by id or as `save_to_disk` left them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.formats.optional import import_for
from softtrunc.data.formats.tables import image_column, known_labels, tables_source
from softtrunc.data.source import Encoded, ImageFiles, Source
from softtrunc.data.splits import HELD_OUT
from softtrunc.feedback.text import one_line

SCHEME = "hf://"


def _import_datasets() -> Any:
    return import_for("data sets of the Hub", "datasets", "hub")


def hub_source(address: str, held_out: float = HELD_OUT) -> Source:
    """A data set of the Hub: `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`, `...:CONFIGURATION`.

    Raises:
        ModuleNotFoundError: if `datasets` is not installed.
        FileNotFoundError: if there is no such data set, or no way to it.
        ValueError: if it holds no images.
    """
    datasets = _import_datasets()
    rest, _, configuration = address.removeprefix(SCHEME).partition(":")
    name, _, revision = rest.partition("@")
    if not name.strip("/"):
        raise ValueError(f"{address}: write {SCHEME}OWNER/NAME, e.g. {SCHEME}uoft-cs/cifar10")
    try:
        found = datasets.load_dataset(name, configuration or None, revision=revision or None)
    # The library passes on whatever its many back ends raise: no such name, no network, a script.
    except Exception as error:
        raise FileNotFoundError(
            f"{address}: cannot be fetched from the Hub: {one_line(error, 300)}"
        ) from error
    cache = [Path(str(datasets.config.HF_CACHE_HOME)), Path(str(datasets.config.HF_DATASETS_CACHE))]

    def opener(table: Any) -> _Table:
        return _Table(datasets, table, address, cache)

    name = name.split("/")[-1]
    return tables_source(opener, dict(found), "hub", address, held_out, name=name)


def saved_source(folder: Path, held_out: float) -> Source | None:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, if it is that."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    if not one and not (folder / "dataset_dict.json").is_file():
        return None
    datasets = _import_datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    # Arrow, JSON and the file system each have errors of their own.
    except Exception as error:
        raise ValueError(
            f"{folder}: a saved data set that cannot be read: {one_line(error, 300)}"
        ) from error

    def opener(table: Any) -> _Table:
        return _Table(datasets, table, str(folder), [folder])

    tables = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    name = folder.resolve().name
    return tables_source(opener, tables, "hub", str(folder), held_out, name=name)


class _Table(ImageFiles):
    """The image column of a table, named by row; labels where there is a column of classes."""

    def __init__(self, datasets: Any, table: Any, location: str, allowed: Sequence[Path]) -> None:
        self.location = location
        columns = [n for n, f in table.features.items() if isinstance(f, datasets.Image)]
        there = {n: type(f).__name__ for n, f in table.features.items()}
        self._column = image_column(location, columns, there)
        classes = [n for n, f in table.features.items() if isinstance(f, datasets.ClassLabel)]
        self._table = table.select_columns(columns).cast_column(
            columns[0], datasets.Image(decode=False)
        )
        self._allowed = [path.resolve() for path in allowed]
        self.names = [f"{row:08d}" for row in range(len(table))]
        if len(classes) == 1:
            labels = np.asarray(table.select_columns(classes).with_format("numpy")[:][classes[0]])
            self.labels = known_labels(labels)
            self.classes = table.features[classes[0]].names

    def read(self, names: Collection[str]) -> Iterator[Encoded]:
        """Contents, in the order of the rows."""
        for name in sorted(names):
            image = self._table[int(name)][self._column]
            if image is None or (image["bytes"] is None and not image["path"]):
                yield Encoded(name, None, "no image in this row")
            elif image["bytes"] is not None:
                yield Encoded(name, image["bytes"])
            else:
                yield self._from_path(name, Path(image["path"]))

    def _from_path(self, name: str, path: Path) -> Encoded:
        # A table may name any file of the machine: only those that came with it are read.
        whole = path.resolve()
        if not any(whole.is_relative_to(place) for place in self._allowed):
            return Encoded(name, None, f"names the file {path} outside of the data set: refused")
        return Encoded(name, whole if whole.is_file() else None, "the file it names is missing")
