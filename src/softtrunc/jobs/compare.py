"""Runs side by side on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softtrunc.feedback.errors import user_errors
from softtrunc.report import write_report


def write_page(runs: Sequence[Path], out: Path) -> Path:
    """Write the self-contained HTML page about run folders; returns its path.

    Raises:
        UserError: if a folder is no run or is damaged.
    """
    with user_errors():
        return write_report(runs, out)
