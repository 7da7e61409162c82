"""`softtrunc demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's runs.")] = Path("runs/demo"),
    full: Annotated[
        bool,
        typer.Option("--full", help="Also the variance-weighted baseline and k = 0.9 and 2."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Fewer or more optimiser steps per model.")
    ] = None,
) -> None:
    """Train with hard and with Soft Truncation on real digits; sample, judge, compare.

    Takes a few minutes on two CPU cores and writes a page with the pictures. Stopped by Ctrl-C,
    it goes on where it was when called again.
    """
    from softtrunc.cli.console import ConsoleProgress, echo, stdout
    from softtrunc.cli.table import comparison_table
    from softtrunc.jobs.demo import run_demo

    progress = ConsoleProgress()
    outcome = run_demo(out, full=full, steps=steps, progress=progress)
    if outcome is None:
        progress.say(f"stopped; the same command goes on from the checkpoints in {out}")
        return
    stdout().print(comparison_table(outcome))
    echo(f"report: {outcome.page}")
