"""Data sets of the Hugging Face Hub, by id or as `save_to_disk` left them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.dataset import Skipped
from softtrunc.data.formats.folder import files_source
from softtrunc.data.source import Encoded, Part, Source
from softtrunc.data.splits import split_of_folder

__all__ = ["SCHEME", "hub_source", "is_saved", "saved_source"]

SCHEME = "hf://"


def _import_datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data sets of the Hub need the package datasets: pip install 'softtrunc[hub]'"
        ) from error
    return datasets


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def hub_source(address: str) -> Source:
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
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(f"{address}: cannot be fetched from the Hub: {reason}") from error
    cache = [Path(str(datasets.config.HF_CACHE_HOME)), Path(str(datasets.config.HF_DATASETS_CACHE))]
    return _source(datasets, dict(found), address, name.split("/")[-1], cache)


def saved_source(folder: Path) -> Source:
    """A data set that `save_to_disk` wrote.

    Raises:
        ModuleNotFoundError: if `datasets` is not installed.
        ValueError: if it is broken or holds no images.
    """
    datasets = _import_datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    # Arrow, JSON and the file system each have errors of their own.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: a saved data set that cannot be read: {reason}") from error
    tables = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    return _source(datasets, tables, str(folder), folder.resolve().name, [folder])


def _source(
    datasets: Any, tables: Mapping[str, Any], location: str, name: str, allowed: Sequence[Path]
) -> Source:
    files = {split: _Table(datasets, table, location, allowed) for split, table in tables.items()}
    if len(files) == 1:
        return files_source(next(iter(files.values())), "hub", name=name)
    splits: dict[str, _Table] = {}
    # As in folders: a test split is preferred to one for validation.
    for split in sorted(files, key=lambda s: s.lower() not in ("train", "test")):
        known = split_of_folder(split) or split
        splits[split if known in splits else known] = files[split]
    if "train" not in splits:
        raise ValueError(f"{location}: splits {', '.join(files)}: none of them is called train")
    return Source(
        name=name,
        kind="hub",
        location=location,
        parts={
            split: functools.partial(Part, table, table.names, table.labels)
            for split, table in splits.items()
        },
    )


class _Table:
    """The image column of a table, named by row; labels where there is a column of classes."""

    def __init__(self, datasets: Any, table: Any, location: str, allowed: Sequence[Path]) -> None:
        self.location = location
        self.skipped: Sequence[Skipped] = ()
        columns = [n for n, f in table.features.items() if isinstance(f, datasets.Image)]
        if len(columns) != 1:
            there = ", ".join(f"{n}: {type(f).__name__}" for n, f in table.features.items())
            what = "several columns" if columns else "no column"
            raise ValueError(f"{location}: {what} of images among {there}")
        classes = [n for n, f in table.features.items() if isinstance(f, datasets.ClassLabel)]
        self._column = columns[0]
        self._table = table.select_columns(columns).cast_column(
            columns[0], datasets.Image(decode=False)
        )
        self._allowed = [path.resolve() for path in allowed]
        self.names: Sequence[str] = [f"{row:08d}" for row in range(len(table))]
        self.labels: np.ndarray | None = None
        if len(classes) == 1:
            labels = np.asarray(table.select_columns(classes).with_format("numpy")[:][classes[0]])
            # -1 is the Hub's word for "not told".
            self.labels = labels.astype(np.int64) if labels.min(initial=0) >= 0 else None

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
