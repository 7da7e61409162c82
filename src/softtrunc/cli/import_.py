"""`softtrunc import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import Data, Overrides, Weights, as_overrides, refuse_unused


def import_(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint of the score_sde or Soft-Truncation code (.pth), or a pipeline of "
            "diffusers: a folder, or hf://OWNER/NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    recipe: Annotated[
        str | None, typer.Option(help="The recipe that describes the model, by name or as YAML.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Or its public configuration, saved as JSON.")
    ] = None,
    data: Data = None,
    weights: Weights = "ema",
    conditioning: Annotated[
        str | None,
        typer.Option(
            help="What the network is told of the noise: time, unbounded_time, log_sigma, "
            "unbounded_sigma, or auto for the one that denoises better."
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Turn a public checkpoint or a pipeline of diffusers into a run folder.

    The result can be sampled and measured like any run; evaluate needs --data unless the images
    that it was trained on were named here. A pipeline says itself what model it is.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.jobs.import_checkpoint import import_checkpoint
    from softtrunc.jobs.import_pipeline import import_pipeline, is_pipeline

    if is_pipeline(source):
        told = ("recipe", "config", "weights", "conditioning")
        refuse_unused(context, "a pipeline says what model it is", *told)
        changes = as_overrides({"data.source": data}, overrides)
        done = import_pipeline(source, out, overrides=changes)
        ConsoleProgress().say(
            f"{out}: conditioning {done.conditioning}; densities end at the first step unless "
            "evaluation.eps says otherwise"
        )
        return
    done = import_checkpoint(
        Path(source),
        out,
        recipe=recipe,
        config=config,
        weights=weights,
        conditioning=conditioning,
        overrides=as_overrides({"data.source": data}, overrides),
    )
    progress = ConsoleProgress()
    for name, error in done.errors.items():
        progress.say(f"conditioning {name}: denoising error {error:.4f}")
    if not done.moments:
        progress.say("no moments of Adam in the file: training would go on with fresh ones")
    progress.say(f"{out}: step {done.step}, conditioning {done.conditioning}")
