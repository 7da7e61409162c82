"""`softtrunc evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    bpd: Annotated[bool, typer.Option("--bpd", help="Bits per dimension.")] = False,
    fid: Annotated[bool, typer.Option("--fid", help="Frechet distance of samples.")] = False,
    data: Annotated[
        str | None, typer.Option(help="The images, where they are not where training read them.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split for bits/dim: test or train.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many images for bits/dim.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images, each with fresh noise.")
    ] = None,
    dequantization: Annotated[
        str | None,
        typer.Option(
            help="Which bits/dim: uniform (with and without residual, NELBO), none (probability "
            "of the levels, lossless) or learned (a dequantizer trained on the spot)."
        ),
    ] = None,
    probes: Annotated[
        int | None, typer.Option(min=1, help="Hutchinson probes of the divergence.")
    ] = None,
    per_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Every image's bits/dim, to FILE.csv or FILE.parquet."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=2, help="How many samples.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set evaluation.eps=1e-4"),
    ] = None,
) -> None:
    """Measure a run: bits/dim on held-out images, Frechet distance of samples.

    Without --bpd or --fid both are measured, the distance if the recipe names a feature
    extractor. Figures go to RUN/evaluation.json one by one with their whole
    protocol; figures measured before stay unless they are measured again. An evaluation
    that was stopped goes on where it was when the same command is given again.
    """
    from softtrunc.cli.console import ConsoleProgress, stdout
    from softtrunc.cli.options import data_override, figures_override, weights_of
    from softtrunc.cli.table import figure_table
    from softtrunc.recipes.measure import measure

    changes = list(overrides or [])
    if passes is not None:
        changes.insert(0, f"evaluation.passes={passes}")
    if probes is not None:
        changes.insert(0, f"evaluation.probes={probes}")
    if dequantization is not None:
        changes.insert(0, figures_override(dequantization))
    if count is not None:
        changes.insert(0, f"evaluation.samples={count}")
    if data is not None:
        changes.insert(0, data_override(data))
    bpd = bpd or per_image is not None or dequantization is not None
    both = not (bpd or fid)
    evaluation = measure(
        run,
        density=bpd or both,
        samples=None if both else fid,
        split=split,
        limit=limit,
        weights=weights_of(weights),
        overrides=changes,
        per_image=per_image,
        progress=ConsoleProgress(),
    )
    stdout().print(figure_table(evaluation))
