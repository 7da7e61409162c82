"""`softtrunc import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["import_"]


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint of the score_sde or Soft-Truncation code (.pth).")
    ],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    recipe: Annotated[
        str | None, typer.Option(help="The recipe that describes the model, by name or as YAML.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Or its public configuration, saved as JSON.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The images it was trained on, where they are at hand.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    conditioning: Annotated[
        str | None,
        typer.Option(
            help="What the network is told of the noise: time, unbounded_time, log_sigma, "
            "unbounded_sigma, or auto for the one that denoises better."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set data.channels=1"),
    ] = None,
) -> None:
    """Turn a public checkpoint into a run folder.

    The result can be sampled and measured like any run; evaluate needs --data unless the images
    were named here.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.cli.options import data_override, weights_of
    from softtrunc.jobs.import_checkpoint import import_checkpoint

    changes = list(overrides or [])
    if data is not None:
        changes.insert(0, data_override(data))
    done = import_checkpoint(
        checkpoint,
        out,
        recipe=recipe,
        config=config,
        weights=weights_of(weights),
        conditioning=conditioning,
        overrides=changes,
    )
    progress = ConsoleProgress()
    for name, error in done.errors.items():
        progress.say(f"conditioning {name}: denoising error {error:.4f}")
    progress.say(f"{out}: step {done.step}, conditioning {done.conditioning}")
