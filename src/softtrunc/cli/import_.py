"""`softtrunc import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import (
    Data,
    Overrides,
    Weights,
    as_overrides,
    offer_recipes,
    offering,
    refuse_unused,
)

_CONDITIONINGS = ("time", "unbounded_time", "log_sigma", "unbounded_sigma", "auto")


def import_(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A .pth of the score_sde or Soft-Truncation code; or a pipeline: a folder, or "
            "hf://OWNER/NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Of a checkpoint: the recipe that describes the model.",
            autocompletion=offer_recipes,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Of a checkpoint: its public configuration, saved as JSON.")
    ] = None,
    data: Data = None,
    weights: Weights = "ema",
    conditioning: Annotated[
        str | None,
        typer.Option(
            help="Noise label of the network: time, unbounded_time, log_sigma, unbounded_sigma; "
            "auto: the one that denoises best.",
            autocompletion=offering(*_CONDITIONINGS),
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Import a public checkpoint or a diffusers pipeline as a run.

    A checkpoint needs --recipe or --config; a pipeline needs neither. The result can be sampled and
    measured like any run. Give its images as --data here, or to evaluate later.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.locks import only_one
    from softtrunc.jobs.import_checkpoint import import_checkpoint
    from softtrunc.jobs.import_pipeline import import_pipeline, is_pipeline

    if is_pipeline(source):
        told = ("recipe", "config", "weights", "conditioning")
        refuse_unused(context, "a pipeline says what model it is", *told)
        changes = as_overrides({"data.source": data}, overrides)
        with only_one(out, "importing to it"):
            done = import_pipeline(source, out, overrides=changes)
        ConsoleProgress().say(
            f"{out}: conditioning {done.conditioning}; densities end at the first step unless "
            "evaluation.eps says otherwise"
        )
        return
    with only_one(out, "importing to it"):
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
