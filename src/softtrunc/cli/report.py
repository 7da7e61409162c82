"""`softtrunc report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders, compared on one page.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in the first run unless given.")
    ] = None,
) -> None:
    """Write an HTML page about one or more runs."""
    from softtrunc.cli.console import echo
    from softtrunc.jobs.compare import write_page

    echo(str(write_page(runs, out or runs[0] / "report.html")))
