"""`softtrunc anatomy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import (
    Data,
    Overrides,
    RunFolders,
    Weights,
    as_overrides,
    refuse_unused,
)


def anatomy(
    context: typer.Context,
    runs: RunFolders,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; RUN/anatomy unless given.")
    ] = None,
    images: Annotated[
        int,
        typer.Option("-n", "--images", metavar="N", min=2, help="Held-out images for the bound."),
    ] = 256,
    samples: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, max=10**6, help="With two runs: samples for each distance."
        ),
    ] = 500,
    bins: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Bins of log-SNR.")] = 24,
    draws: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=100_000, help="Times drawn for each image in each bin."
        ),
    ] = 2,
    times: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=1000, help="How many times to take over or sample again at."
        ),
    ] = 6,
    split: Annotated[str, typer.Option(help="Images for the bound: test or train.")] = "test",
    data: Data = None,
    weights: Weights = "ema",
    overrides: Overrides = None,
) -> None:
    """Show which times decide density and which decide samples.

    One run: the bound and the error of the score by time, and real images that are noised up to a
    time and sampled again. Two runs: the same with their differences, and samples of one run above
    a time and of the other below it. After a stop the same command goes on.
    """
    from softtrunc.cli.anatomy_tables import anatomy_tables
    from softtrunc.cli.console import ConsoleProgress, echo, stdout
    from softtrunc.jobs.anatomy import anatomy as measure

    if len(runs) == 1:
        refuse_unused(context, "one run alone has no chimeras", "samples")
    out = out or runs[0] / "anatomy"
    found = measure(
        runs,
        out,
        images=images,
        samples=samples,
        bins=bins,
        draws=draws,
        times=times,
        split=split,
        weights=weights,
        overrides=as_overrides({"data.source": data}, overrides),
        progress=ConsoleProgress(),
    )
    console = stdout(80)
    for table in anatomy_tables(found):
        console.print(table)
    echo(f"page: {out / 'anatomy.html'}")
