"""What tables of images have in common, whoever reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from softtrunc.data.formats.folder import files_source
from softtrunc.data.source import ImageFiles, Kind, Source
from softtrunc.data.splits import split_of_folder

T = TypeVar("T")


def tables_source(
    open_table: Callable[[T], ImageFiles],
    tables: Mapping[str, T],
    kind: Kind,
    location: str,
    held_out: float,
    *,
    name: str,
) -> Source:
    """Tables of images by the name of their split; one alone is divided like a folder of images."""
    if len(tables) == 1:
        return files_source(open_table(*tables.values()), kind, held_out, name=name)
    splits: dict[str, T] = {}
    # As in folders: a test split is preferred to one for validation.
    for word in sorted(tables, key=lambda word: word.lower() not in ("train", "test")):
        known = split_of_folder(word) or word
        splits[word if known in splits else known] = tables[word]
    if "train" not in splits:
        raise ValueError(f"{location}: splits {', '.join(tables)}: none of them is called train")
    return Source(name, kind, location, splits, lambda split: open_table(splits[split]).part())


def image_column(location: object, found: Sequence[str], there: Mapping[str, str]) -> str:
    """The one column of images; `there`: the types of all columns."""
    if len(found) != 1:
        what = "several columns" if found else "no column"
        columns = ", ".join(f"{name}: {kind}" for name, kind in there.items())
        raise ValueError(f"{location}: {what} of images among {columns}")
    return found[0]


def known_labels(labels: np.ndarray) -> Int64[np.ndarray, " n"] | None:
    """Integers as labels; -1 is the Hub's word for "not told", and then there are none."""
    return labels.astype(np.int64) if labels.min(initial=0) >= 0 else None
