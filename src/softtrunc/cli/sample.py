"""`softtrunc sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softtrunc.cli.options import (
    Ema,
    Guidance,
    Label,
    MaybeRunFolder,
    Overrides,
    Precision,
    Sampler,
    Steps,
    Weights,
    as_overrides,
    chosen_weights,
    refuse_unused,
)

_HOW_MANY = "How many images; 64, or 8 with --trajectory."
Count = Annotated[
    int | None, typer.Option("-n", "--count", metavar="N", min=1, max=10**8, help=_HOW_MANY)
]


def sample(
    context: typer.Context,
    run: MaybeRunFolder = None,
    count: Count = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder of PNGs, a .zip of PNGs or an .npz; of floats a .npy or .safetensors; "
            "RUN/samples/drawn unless given."
        ),
    ] = None,
    above: Annotated[
        Path | None, typer.Option(help="Instead of RUN: the run that draws above --at.")
    ] = None,
    below: Annotated[
        Path | None, typer.Option(help="With --above: the run that draws below --at.")
    ] = None,
    at: Annotated[
        float | None, typer.Option(metavar="TIME", help="The time at which one run takes over.")
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="Instead show how images come out of noise, as a .gif or .png."),
    ] = None,
    sampler: Sampler = None,
    steps: Steps = None,
    label: Label = None,
    guidance: Guidance = None,
    precision: Precision = None,
    overrides: Overrides = None,
    weights: Weights = "ema",
    ema: Ema = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**62, help="Image i is drawn from seed + i.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="Images at a time in each process.")
    ] = 256,
) -> None:
    """Draw images from a trained run.

    Image i depends on seed + i alone. After Ctrl-C, SIGTERM or a kill the same command goes on.
    Under `accelerate launch` all processes share the work. A .json beside the images says what
    they are. A conditional run draws every class in turn, unless --class names one. With --above,
    --below and --at, two runs draw together.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.errors import UserError
    from softtrunc.feedback.signals import stopped_code
    from softtrunc.jobs.class_grid import check_turns
    from softtrunc.jobs.trajectory import draw_trajectory
    from softtrunc.runs.draw import draw_to

    named = {
        "sampling.sampler": sampler,
        "sampling.steps": steps,
        "sampling.precision": precision,
        "sampling.guidance": guidance,
    }
    which = chosen_weights(context, weights, ema)
    changes = as_overrides(named, overrides, label)
    progress = ConsoleProgress()
    first, second = _runs(run, above, below, at)
    if label == "all":
        check_turns([first] if second is None else [first, second[0]])
    drawn: dict[str, Any] = {
        "overrides": changes,
        "weights": which,
        "seed": seed,
        "progress": progress,
    }
    if trajectory is not None:
        if second is not None:
            raise UserError("--trajectory shows one run: leave out --above, --below and --at")
        refuse_unused(context, "--trajectory FILE says where and how", "out", "batch_size")
        draw_trajectory(first, trajectory, count or 8, **drawn)
        progress.say(f"how {count or 8} images come about: {trajectory}")
        return
    outcome = draw_to(first, count or 64, out, below=second, batch_size=batch_size, **drawn)
    if outcome.interrupted:
        progress.say(f"stopped at {outcome.done} of {count or 64} images; the same command goes on")
        raise typer.Exit(stopped_code())
    what = "samples" if outcome.out.suffix in (".npy", ".safetensors") else "images"
    progress.say(f"{outcome.done} {what} in {outcome.out}")


def _runs(
    run: Path | None, above: Path | None, below: Path | None, at: float | None
) -> tuple[Path, tuple[Path, float] | None]:
    """The run that draws, and what takes over from it where two draw."""
    from softtrunc.feedback.errors import UserError

    if above is None and below is None and at is None:
        if run is None:
            raise UserError("sample: name a run folder")
        return run, None
    if run is not None or above is None or below is None or at is None:
        raise UserError("sample: two runs: write --above RUN --below RUN --at TIME, and no other")
    return above, (below, at)
