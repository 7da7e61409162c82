"""Results of single images on disk: parts while an evaluation runs, a table when it is done.

Every batch becomes a file of its own, written beside its place and renamed. An evaluation that was
killed finds them again, and the processes that share one tell each other through them, so the
run folder must be one that all of them see. Nothing is read that was not measured under exactly
the same protocol, with the same weights, on the same images.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from softtrunc.evaluation.bits import COLUMNS, Chunk, ImageResults
from softtrunc.feedback.errors import RunFailedError, UserError, user_errors
from softtrunc.feedback.files import whole_file, write_text

__all__ = ["ResultFiles", "TableRows", "check_table_path", "write_table"]

_SECONDS_BETWEEN_LOOKS = 0.2
_PATIENCE = 24 * 3600.0
"""After so many seconds without a new file from the other processes something is wrong."""


class ResultFiles:
    """The parts of one figure.

    Args:
        folder: of all parts of an evaluation.
        key: of the figure.
        identity: everything that an image's numbers depend on, as plain values for JSON.
    """

    def __init__(self, folder: Path, key: str, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        self._folder = folder / f"{key}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._read: set[str] = set()
        with user_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / "identity.json", json.dumps(identity, indent=1) + "\n")

    def write(self, chunk: Chunk) -> None:
        """Add a part."""
        first = int(chunk.images[0])
        name = f"{chunk.turn:03d}-{first:08d}-{len(chunk.images):06d}.npz"
        with whole_file(self._folder / name) as partial, partial.open("wb") as file:
            arrays: dict[str, Any] = {
                "turn": np.asarray(chunk.turn),
                "images": chunk.images,
                "seconds": np.asarray(chunk.seconds),
                **chunk.columns,
            }
            np.savez(file, **arrays)

    def gather(self, results: ImageResults) -> int:
        """Take in the parts that are new since the last call; how many images they brought."""
        found = 0
        for path in sorted(self._folder.glob("*.npz")):
            if path.name in self._read:
                continue
            self._read.add(path.name)
            try:
                with np.load(path) as part:
                    columns = {name: part[name] for name in COLUMNS}
                    chunk = Chunk(
                        int(part["turn"]), part["images"], columns, float(part["seconds"])
                    )
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)  # damaged: it is measured and written again
                self._read.discard(path.name)
                continue
            found += results.add(chunk)
        return found

    def wait_for_others(self, results: ImageResults, advance: Any) -> None:
        """Take in what other processes write until nothing is missing.

        Raises:
            RunFailedError: if nothing has come for a day.
        """
        last = time.monotonic()
        while not results.complete:
            found = self.gather(results)
            if found:
                last = time.monotonic()
                advance(found)
            elif time.monotonic() - last > _PATIENCE:
                raise RunFailedError(
                    f"{self._folder}: {int((~results.seen).sum())} images are missing and no "
                    "process brings them: all processes must see the same run folder"
                )
            else:
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the parts of an evaluation that is written down."""
        shutil.rmtree(folder, ignore_errors=True)


class TableRows(NamedTuple):
    """The results of one figure, with its protocol."""

    figure: str
    protocol: Mapping[str, Any]
    results: ImageResults


def check_table_path(path: Path) -> None:
    """Refuse a table that could not be written in the end.

    Raises:
        UserError: if the name ends in neither .csv nor .parquet, pyarrow is missing, or the place
            is not there.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--per-image {path}: write a name that ends in .csv or .parquet")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(
            f"--per-image {path}: Parquet needs pyarrow: pip install 'softtrunc[parquet]', or "
            "write a .csv"
        )
    if path.is_dir():
        raise UserError(f"--per-image {path}: is a folder: name a file in it")
    with user_errors(f"--per-image {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_table(path: Path, rows: Sequence[TableRows]) -> None:
    """Every image in every pass: figure, pass, image, then `COLUMNS`.

    A `.csv` has a header line and full precision; a `.parquet` holds the protocols in its
    metadata under "softtrunc" as well. Either is written beside its place and renamed.
    """
    columns: dict[str, list[Any]] = {"figure": [], "pass": [], "image": []}
    columns |= {name: [] for name in COLUMNS}
    for figure, _, results in rows:
        passes, images = results.seen.shape
        columns["figure"] += [figure] * (passes * images)
        columns["pass"] += np.repeat(np.arange(passes), images).tolist()
        columns["image"] += np.tile(np.arange(images), passes).tolist()
        for name in COLUMNS:
            values = results.columns[name].ravel()
            columns[name] += (values.astype(np.int64) if name == "nfe" else values).tolist()
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_text(path, text.getvalue())
        return
    import pyarrow
    from pyarrow import parquet

    protocols = json.dumps({figure: dict(protocol) for figure, protocol, _ in rows})
    table = pyarrow.table(columns).replace_schema_metadata({"softtrunc": protocols})
    with whole_file(path) as partial:
        parquet.write_table(table, partial)
