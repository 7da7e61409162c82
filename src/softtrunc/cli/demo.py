"""`softtrunc demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo"),
    full: Annotated[
        bool,
        typer.Option("--full", help="Also train with drawn times, other k and variance weighting."),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Optimiser steps of each model, instead of 1,500."),
    ] = None,
) -> None:
    """Train with hard and with Soft Truncation, and compare.

    Trains one network twice on Fashion-MNIST at 16x16, samples, measures, and writes a page with
    pictures. It takes a few minutes on two CPU cores. Soft Truncation is the expected weight of
    k = 0.8, which did best in the studies. After Ctrl-C the same command goes on.
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
