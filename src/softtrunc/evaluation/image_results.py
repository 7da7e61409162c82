"""Results of single images: in memory, in parts on disk while an evaluation runs, in a table.

With a folder every batch becomes a file of its own. An evaluation that was killed finds them again,
and the processes that share one tell each other through them, so the folder must be one that all
of them see. Nothing is read that was not measured under exactly the same protocol, with the same
weights, on the same images.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from softtrunc.density import Mean, mean_with_error
from softtrunc.feedback.errors import RunFailedError, UserError, user_errors
from softtrunc.feedback.files import whole_file, write_text

COLUMNS = (
    *("prior", "flow", "residual", "dequantization", "importance"),
    *("nats", "bits_per_dim", "nfe"),
)
"""What is kept of an image and pass: five terms and their sum in nats, bits/dim, evaluations.

Where draws are weighed against each other the first four are means over them, and `importance` is
what the weighing takes away."""

_SECONDS_BETWEEN_LOOKS = 0.2
_PATIENCE = 24 * 3600.0
"""After so many seconds without a new file from the other processes something is wrong."""


class Chunk(NamedTuple):
    """Some images of one pass: their places, a float64 column (m,) for each of `COLUMNS`."""

    turn: int
    images: np.ndarray
    columns: dict[str, np.ndarray]
    seconds: float


class ImageResults:
    """What is known of each image in each pass.

    Args:
        passes: number of passes.
        images: number of images.
        folder: where results are kept as well, from `parts_folder`; None: in memory alone.
        unit: of the mean, in words.
    """

    def __init__(
        self, passes: int, images: int, folder: Path | None = None, unit: str = "bits/dim"
    ) -> None:
        self.seen = np.zeros((passes, images), dtype=bool)
        self.columns = {name: np.full((passes, images), math.nan) for name in COLUMNS}
        self.seconds = 0.0
        self._folder = folder
        self._unit = unit
        self._read: set[str] = set()

    def add(self, chunk: Chunk) -> int:
        """Take in a chunk and keep it on disk; how many of its images were new.

        What lies beyond the images or passes asked for is left out.
        """
        if self._folder is not None:
            name = f"{chunk.turn:03d}-{int(chunk.images[0]):08d}-{len(chunk.images):06d}.npz"
            # Any: numpy's types hold what has a name for one of `savez`'s own options.
            arrays: dict[str, Any] = {
                "turn": chunk.turn,
                "images": chunk.images,
                "seconds": chunk.seconds,
                **chunk.columns,
            }
            with whole_file(self._folder / name) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)
            self._read.add(name)
        return self._take(chunk)

    def _take(self, chunk: Chunk) -> int:
        passes, images = self.seen.shape
        if chunk.turn >= passes:
            return 0
        inside = chunk.images < images
        places = chunk.images[inside]
        new = int((~self.seen[chunk.turn, places]).sum())
        for name in COLUMNS:
            self.columns[name][chunk.turn, places] = chunk.columns[name][inside]
        self.seen[chunk.turn, places] = True
        self.seconds += chunk.seconds if new else 0.0
        return new

    def gather(self) -> int:
        """Take in what is new in the folder; how many images that brought."""
        found = 0
        for path in sorted(self._folder.glob("*.npz")) if self._folder is not None else ():
            if path.name in self._read:
                continue
            try:
                with np.load(path) as part:
                    columns = {name: part[name] for name in COLUMNS}
                    chunk = Chunk(
                        int(part["turn"]), part["images"], columns, float(part["seconds"])
                    )
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)  # damaged: it is measured and written again
                continue
            self._read.add(path.name)
            found += self._take(chunk)
        return found

    def wait_for_others(
        self, advance: Callable[[int, str], None], look: Callable[[], None]
    ) -> None:
        """Take in what other processes bring until nothing is missing.

        Args:
            advance: as that of a bar.
            look: raises if they are dead, see `Company.look`.

        Raises:
            RunFailedError: if nothing has come for a day.
        """
        last = time.monotonic()
        while not self.complete:
            if found := self.gather():
                last = time.monotonic()
                advance(found, self.note())
            elif time.monotonic() - last > _PATIENCE:
                raise RunFailedError(
                    f"{self._folder}: {int((~self.seen).sum())} images are missing and no process "
                    "brings them: all processes must see the same run folder"
                )
            else:
                look()
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    @property
    def complete(self) -> bool:
        """Whether every image was counted in every pass."""
        return bool(self.seen.all())

    def mean(self) -> Mean:
        """Bits per dimension so far: passes are averaged image by image, then images."""
        counts = self.seen.sum(0)
        sums = np.where(self.seen, self.columns["bits_per_dim"], 0.0).sum(0)
        return mean_with_error(torch.from_numpy(sums[counts > 0] / counts[counts > 0]))

    def note(self) -> str:
        """Mean and standard error so far, for a progress bar."""
        mean = self.mean()
        error = "" if math.isnan(mean.standard_error) else f" ± {mean.standard_error:.3f}"
        return f"{mean.mean:.3f}{error} {self._unit}"


def parts_folder(folder: Path, key: str, identity: Mapping[str, object]) -> Path:
    """Make the folder for the parts of one figure.

    Args:
        folder: of all parts of an evaluation.
        key: of the figure.
        identity: everything that an image's numbers depend on, as plain values for JSON.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    place = folder / f"{key}-{digest[:16]}"
    with user_errors():
        write_text(place / "identity.json", json.dumps(identity, indent=1) + "\n")
    return place


class TableRows(NamedTuple):
    """The results of one figure, with its protocol."""

    figure: str
    protocol: Mapping[str, object]
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
    metadata under "softtrunc" as well.
    """
    columns: dict[str, list[object]] = {name: [] for name in ("figure", "pass", "image", *COLUMNS)}
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
