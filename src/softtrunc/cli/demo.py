"""`softtrunc demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's runs.")] = Path("runs/demo"),
    full: Annotated[
        bool,
        typer.Option("--full", help="Also truncation times drawn, other k and variance weighting."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Fewer or more optimiser steps per model.")
    ] = None,
) -> None:
    """Train with hard and with Soft Truncation on real images; sample, measure, compare.

    The images are Fashion-MNIST at 16x16. Soft Truncation is the form that the studies found best:
    k = 0.8, its weight in expectation. Takes a few minutes on two CPU cores and writes a page with
    the pictures. Stopped by Ctrl-C, it goes on where it was when called again.
    """
    from softtrunc.cli.console import ConsoleProgress, echo, stdout
    from softtrunc.cli.table import comparison_table
    from softtrunc.feedback.signals import stopped_code
    from softtrunc.jobs.demo import run_demo

    progress = ConsoleProgress()
    outcome = run_demo(out, full=full, steps=steps, progress=progress)
    if outcome is None:
        progress.say(f"stopped; the same command goes on from the checkpoints in {out}")
        raise typer.Exit(stopped_code())
    stdout().print(comparison_table(outcome))
    echo(f"report: {outcome.page}")
