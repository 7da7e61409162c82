"""Images that come without splits: in a folder, an archive, an array or a single table."""

from __future__ import annotations

from softtrunc.data.classes import class_folders
from softtrunc.data.source import ImageFiles, Kind, Source, plain_name
from softtrunc.data.splits import HELD_OUT, choose_names


def files_source(
    files: ImageFiles, kind: Kind, held_out: float = HELD_OUT, *, name: str | None = None
) -> Source:
    """Images as a data set: the splits are folders, or drawn by a hash of the names.

    Folders below those of the splits are classes.
    """
    if not files.names:
        more = f" ({files.skipped[0].name}: {files.skipped[0].reason})" if files.skipped else ""
        raise ValueError(
            f"no readable image under {files.location}{more}: put PNG, JPEG, WebP, ... files there"
        )
    if files.labels is None:
        files.labels, files.classes = class_folders(files.names)
    chosen = {split: choose_names(files.names, split, held_out) for split in ("train", "test")}
    used = {n for names in chosen.values() for n in names}
    chosen["unused"] = [n for n in files.names if n not in used]
    return Source(
        name=name or plain_name(files.location),
        kind=kind,
        location=str(files.location),
        splits=[split for split, names in chosen.items() if names],
        open_split=lambda split: files.part(chosen[split]),
        advice=f"none of its {len(files.names)} images falls into the SPLIT split: put those for "
        "it in a folder SPLIT/ of its own",
    )
