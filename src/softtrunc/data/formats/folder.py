"""Images that come without splits, or with splits by whatever names people give them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

from softtrunc.data.source import ImageFiles, Kind, Part, Source, plain_name
from softtrunc.data.splits import HELD_OUT, choose_names, split_of_folder

__all__ = ["files_source", "tables_source"]

T = TypeVar("T")


def files_source(
    files: ImageFiles, kind: Kind, held_out: float = HELD_OUT, *, name: str | None = None
) -> Source:
    """Images as a data set: the splits are folders, or drawn by a hash of the names."""
    if not files.names:
        more = f" ({files.skipped[0].name}: {files.skipped[0].reason})" if files.skipped else ""
        raise ValueError(
            f"no readable image under {files.location}{more}: put PNG, JPEG, WebP, ... files there"
        )
    chosen = {split: choose_names(files.names, split, held_out) for split in ("train", "test")}
    used = {n for names in chosen.values() for n in names}
    chosen["unused"] = [n for n in files.names if n not in used]
    return Source(
        name=name or plain_name(files.location),
        kind=kind,
        location=str(files.location),
        parts={s: functools.partial(files.part, names) for s, names in chosen.items() if names},
        advice=f"none of its {len(files.names)} images falls into the SPLIT split: put those for "
        "it in a folder SPLIT/ of its own",
    )


def tables_source(
    open_table: Callable[[T], ImageFiles],
    tables: Mapping[str, T],
    kind: Kind,
    location: str,
    held_out: float,
    *,
    name: str,
) -> Source:
    """Tables of images by the name of their split; one alone is divided like a folder of images.

    Raises:
        ValueError: if there are several splits, none of them called train.
    """
    if len(tables) == 1:
        return files_source(open_table(*tables.values()), kind, held_out, name=name)
    splits: dict[str, T] = {}
    # As in folders: a test split is preferred to one for validation.
    for word in sorted(tables, key=lambda word: word.lower() not in ("train", "test")):
        known = split_of_folder(word) or word
        splits[word if known in splits else known] = tables[word]
    if "train" not in splits:
        raise ValueError(f"{location}: splits {', '.join(tables)}: none of them is called train")

    def opener(table: T) -> Part:
        return open_table(table).part()

    parts = {split: functools.partial(opener, table) for split, table in splits.items()}
    return Source(name, kind, location, parts)
