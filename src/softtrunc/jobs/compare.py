"""Runs side by side: the table and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softtrunc.feedback.errors import user_errors
from softtrunc.report import SummaryTable, read_run, summary_rows, write_report

__all__ = ["compare", "write_page"]


def compare(runs: Sequence[Path]) -> SummaryTable:
    """The summary table of run folders, one run a row.

    Raises:
        UserError: if a folder is no run or is damaged.
    """
    with user_errors():
        return summary_rows([read_run(run) for run in runs])


def write_page(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write the self-contained HTML page about run folders; returns its path.

    Raises:
        UserError: if a folder is no run or is damaged.
    """
    with user_errors():
        return write_report(runs, out, title=title)
