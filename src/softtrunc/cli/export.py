"""`softtrunc export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import Ema, RunFolder, Weights, chosen_weights, refuse_unused


def export(
    context: typer.Context,
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; RUN/export unless given.")
    ] = None,
    weights: Weights = "ema",
    ema: Ema = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="Of the weights, for the card; e.g. apache-2.0."
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload it to the Hugging Face Hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: make a new repository private.")
    ] = False,
) -> None:
    """Write a run's model for Python, diffusers and the Hub.

    The folder holds safetensors and JSON, a model card with recipe, data and measured figures, and
    settings for the schedulers of diffusers.
    """
    from softtrunc.cli.console import echo
    from softtrunc.jobs.export import export_run, push_export

    if push is None:
        refuse_unused(context, "nothing is pushed", "private")
    chosen = chosen_weights(context, weights, ema)
    out = out or run / "export"
    folder = export_run(run, out, weights=chosen, licence=licence, source=push)
    echo(str(folder))
    if push is not None:
        echo(push_export(folder, push, private=private or None))
