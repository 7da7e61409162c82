"""`softtrunc sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sample"]


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=1, help="How many images: 64, of a trajectory 8."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder of PNGs, a .zip of PNGs or an .npz; RUN/samples/drawn unless given."
        ),
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="Show how images come about instead: a .gif, or a .png with a row each."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="pc, euler_maruyama, ancestral, ode, heun or dpm_solver."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the network: fp32, bf16 or fp16.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set sampling.order=3"),
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    seed: Annotated[int, typer.Option(min=0, help="Image i is drawn from seed + i.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at a time, in each process.")
    ] = 256,
) -> None:
    """Draw images from a trained run.

    Image i depends on seed + i alone. Ctrl-C and SIGTERM end the work after the present batch; the
    same command goes on with it, as it does after a kill. Under `accelerate launch` all processes
    share it. Beside the images a .json of the same name says what they are.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.cli.options import sampling_overrides, weights_of
    from softtrunc.jobs.trajectory import draw_trajectory
    from softtrunc.runs.draw import draw_to

    changes = sampling_overrides(sampler, steps, precision, overrides)
    progress = ConsoleProgress()
    if trajectory is not None:
        draw_trajectory(
            run,
            trajectory,
            8 if count is None else count,
            overrides=changes,
            weights=weights_of(weights),
            seed=seed,
            progress=progress,
        )
        progress.say(f"how {8 if count is None else count} images come about: {trajectory}")
        return
    count = 64 if count is None else count
    outcome = draw_to(
        run,
        count,
        out,
        overrides=changes,
        weights=weights_of(weights),
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    if outcome.interrupted:
        progress.say(f"stopped at {outcome.done} of {count} images; the same command goes on")
        raise typer.Exit(130)
    progress.say(f"{count} images in {outcome.out}")
