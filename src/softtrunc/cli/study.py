"""`softtrunc study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import Data, Overrides, as_overrides


def study(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE", help="One recipe, or several to compare.")
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="A key and its values, e.g. truncation.k=0.9,1,inf; may be given several times.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Training seeds of every setting.")
    ] = 3,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="What to compare with; unless given, the first value of the last --vary.",
        ),
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; runs/study-RECIPE unless given.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Optimiser steps of every run.")
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which runs there would be, and stop.")
    ] = False,
) -> None:
    """Train, measure and compare settings over several seeds.

    Every combination of the settings is a run. Runs go side by side: one for each core, or one for
    each graphics card. After Ctrl-C or a kill the same command does the rest. More values or seeds
    add to what is there. Settings that differ only in sampling or evaluation share a trained run.
    """
    from softtrunc.cli.console import ConsoleProgress, echo, stdout
    from softtrunc.cli.table import study_tables
    from softtrunc.feedback.errors import RunFailedError
    from softtrunc.feedback.signals import stopped_code
    from softtrunc.jobs.study import plan_study, run_study

    changes = as_overrides({"data.source": data, "training.steps": steps}, overrides)
    cells = plan_study(recipes, vary or [], seeds=seeds, baseline=baseline, overrides=changes)
    if dry_run:
        folders = dict.fromkeys(cell.folder(seed) for cell in cells for seed in cell.recipes)
        echo("\n".join(folders))
        return
    first = next(iter(cells[0].recipes.values()))
    progress = ConsoleProgress()
    found = run_study(
        cells, out or Path("runs") / f"study-{first.name}", title="Study", progress=progress
    )
    if found is None:
        progress.say("stopped before the first run was measured; the same command does the rest")
        raise typer.Exit(stopped_code())
    for table in study_tables(found):
        stdout().print(table)
        echo("")
    for caution in found.summary.cautions:
        progress.say(caution)
    echo(f"table: {found.table}, {found.records}")
    if found.picture is not None:
        echo(f"plot: {found.picture}")
    echo(f"report: {found.page}")
    if found.failures:
        raise RunFailedError("; ".join(found.failures.values()))
    if not found.finished:
        progress.say("stopped; the same command does the rest")
        raise typer.Exit(stopped_code())
