"""What of a split is done, written so that a killed preparation can go on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softtrunc.data.preparing.fill import Filled
from softtrunc.feedback.json import parse_json


class Journal:
    """A file of one JSON object a line: the plan, then what was filled.

    The plan is all that decides what the pixels will be; a journal of another one is begun anew.
    Rows count as done only after the pixels are safely on disk: `commit` is told once they are.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], count: int) -> None:
        self.done = np.zeros(count, dtype=bool)
        self.skipped: dict[int, str] = {}
        self.colour = self.lossy = False
        self.converted: Counter[str] = Counter()
        self._path = path
        self._pending: list[Filled] = []
        lines = _lines(path)
        if next(lines, None) == plan:
            for line in lines:
                self._take(_filled(line))
        else:
            path.write_text(json.dumps(plan) + "\n", encoding="utf-8")

    def add(self, filled: Filled) -> None:
        """More rows are filled."""
        self._pending.append(filled)

    def commit(self) -> None:
        """The pixels of what was added are on disk."""
        with self._path.open("a", encoding="utf-8") as stream:
            for filled in self._pending:
                line = filled._replace(rows=_ranges(filled.rows))._asdict()
                stream.write(json.dumps(line) + "\n")
                self._take(filled)
        self._pending.clear()

    def _take(self, filled: Filled) -> None:
        self.done[filled.rows] = True
        self.skipped.update(filled.skipped)
        self.colour |= filled.colour
        self.lossy |= filled.lossy
        self.converted.update(filled.converted)


def _lines(path: Path) -> Iterator[Any]:
    """The lines of the file. A kill may have cut the last one: what there is of it is cut off."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)
    for line in content[:whole].decode("utf-8").splitlines():
        try:
            yield parse_json(line)
        except ValueError:
            return


def _filled(line: dict[str, Any]) -> Filled:
    rows = [row for first, last in line["rows"] for row in range(first, last + 1)]
    skipped = [(int(row), str(reason)) for row, reason in line["skipped"]]
    return Filled(rows, skipped, line["colour"], line["lossy"], line["converted"])


def _ranges(rows: Iterable[int]) -> list[Any]:
    """[first, last] of every run of consecutive rows."""
    runs: list[list[int]] = []
    for row in sorted(rows):
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return runs
