"""`softtrunc sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sample"]


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(help="An .npz file or a folder of PNGs; RUN/samples/drawn unless given."),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="pc, ode, heun, dpm_solver, ...")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set sampling.order=3"),
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    seed: Annotated[int, typer.Option(min=0, help="Image i is drawn from seed + i.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 256,
) -> None:
    """Draw images from a trained run.

    Image i depends on seed + i alone, not on the batch it was drawn in.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.cli.options import weights_of
    from softtrunc.recipes.sample import draw_to

    changes = list(overrides or [])
    if steps is not None:
        changes.insert(0, f"sampling.steps={steps}")
    if sampler is not None:
        changes.insert(0, f"sampling.sampler={sampler}")
    progress = ConsoleProgress()
    where = draw_to(
        run,
        count,
        out,
        overrides=changes,
        weights=weights_of(weights),
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    progress.say(f"{count} images in {where}")
