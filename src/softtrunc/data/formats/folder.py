"""Images in a folder, a zip or a tar."""

from __future__ import annotations

import functools
from pathlib import Path

from softtrunc.data.source import ImageFiles, Part, Source
from softtrunc.data.splits import HELD_OUT, choose_names

__all__ = ["files_source"]


def files_source(
    files: ImageFiles, kind: str, held_out: float = HELD_OUT, *, name: str | None = None
) -> Source:
    """Image files as a data set: the splits are folders, or drawn by a hash of the names."""
    chosen = {split: choose_names(files.names, split, held_out) for split in ("train", "test")}
    used = {n for names in chosen.values() for n in names}
    unused = [n for n in files.names if n not in used]
    if unused:
        chosen["unused"] = unused

    if not files.names:
        more = f" ({files.skipped[0].name}: {files.skipped[0].reason})" if files.skipped else ""
        raise ValueError(
            f"no readable image under {files.location}{more}: put PNG, JPEG, WebP, ... files there"
        )
    return Source(
        name=name or Path(files.location).resolve().name.split(".")[0],
        kind=kind,
        location=str(files.location),
        parts={s: functools.partial(Part, files, names) for s, names in chosen.items() if names},
        advice=f"none of its {len(files.names)} images falls into the SPLIT split: put those for "
        "it in a folder SPLIT/ of its own",
    )
