"""`softtrunc train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import Data, Overrides, RecipeName, as_overrides, refuse_unused

_MEASURED = 10.0
"""Seconds for which a dry run trains to find this machine's rate."""


def train(
    context: typer.Context,
    recipe: RecipeName,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/RECIPE unless given.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Optimiser steps, instead of the recipe's."),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FOLDER|HUB|NAME",
            help="Start from the weights of a run, a saved model (a folder, or owner/name on the "
            "Hub) or fashion16.",
        ),
    ] = None,
    keep_optimizer: Annotated[
        bool,
        typer.Option(
            "--keep-optimizer",
            help="With --init-from RUN: keep its last weights, average and Adam's moments.",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check all prepared data before the first step."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what training would cost, and stop."),
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(metavar="N", min=1e-9, help="With --dry-run: the TFLOP/s of your device."),
    ] = None,
) -> None:
    """Train a recipe; write a run folder.

    Ctrl-C, SIGTERM or SIGUSR1 saves a checkpoint and stops, with exit code 130, 143 or 138;
    --resume goes on, bit for bit.
    """
    from softtrunc.recipes import load_recipe

    resolved = load_recipe(
        recipe, as_overrides({"data.source": data, "training.steps": steps}, overrides)
    )
    out = out or Path("runs") / resolved.name
    if dry_run:
        refuse_unused(context, "not looked at by --dry-run", "init_from", "keep_optimizer")
        from softtrunc.cli.console import echo
        from softtrunc.feedback.launched import is_first, world_size
        from softtrunc.jobs.plan import describe

        if is_first():  # all would say the same
            seconds = _MEASURED if tflops is None else 0.0
            echo(describe(resolved, tflops=tflops, seconds=seconds, processes=world_size()))
        return
    refuse_unused(context, "belongs to --dry-run", "tflops")
    if init_from is None:
        refuse_unused(context, "belongs to --init-from", "keep_optimizer")

    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.signals import stopped_code
    from softtrunc.feedback.text import hours
    from softtrunc.jobs.start import Start
    from softtrunc.jobs.train import train as run

    progress = ConsoleProgress()
    start = None if init_from is None else Start(init_from, keep_optimizer)
    outcome = run(resolved, out, resume=resume, verify=verify, start=start, progress=progress)
    if outcome.interrupted:
        progress.say(f"stopped at step {outcome.step} with a checkpoint; go on with --resume")
        raise typer.Exit(stopped_code())
    progress.say(f"{out}: {outcome.step} steps in {hours(outcome.seconds)} of training")
