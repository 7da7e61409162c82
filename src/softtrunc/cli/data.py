"""`softtrunc data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softtrunc.cli.options import Command, refuse_unused

data = typer.Typer(
    help="Look through images, and prepare them for training.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Source = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A folder, archive, array or released data set; hf://OWNER/NAME; or digits.",
    ),
]


@data.command("inspect")
def inspect(
    source: Source,
    grid: Annotated[Path | None, typer.Option(help="Also write some images as one PNG.")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=100_000, help="Image size for which sigma_max is estimated."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every pixel of prepared data.")
    ] = False,
) -> None:
    """Count and check all images; change nothing.

    Prints sizes, modes, the range of values, duplicates and unreadable files, and estimates
    sigma_max for the variance-exploding SDEs.
    """
    from softtrunc.cli.console import ConsoleProgress, echo, stdout
    from softtrunc.cli.data_tables import float_table, inspection_table
    from softtrunc.jobs.prepare import inspect_data

    progress = ConsoleProgress()
    found = inspect_data(source, size=size, grid=grid, verify=verify, progress=progress)
    stdout().print(inspection_table(found) if found.on_grid else float_table(found))
    # Every one, for this is the command that finds them.
    for name, reason in found.unreadable:
        echo(f"unreadable: {name}: {reason}")
    if grid is not None:
        echo(str(grid))


@data.command("prepare", cls=Command)
def prepare(
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    preset: Annotated[
        str | None,
        typer.Option(help="Protocol of a known data set; softtrunc data presets lists them."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=100_000, help="Without a preset: crop and resize to this size."
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=3, help="Without a preset: 1 (grey) or 3 (RGB)."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="train or test; both unless given.")
    ] = None,
    allow_count: Annotated[
        bool,
        typer.Option("--allow-count", help="Accept another number of images than the preset's."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1024, help="Processes; one for each core unless given."
        ),
    ] = None,
) -> None:
    """Decode images once, for training to map into memory.

    Writes a uint8 array and a card for each split. After a stop or a kill the same command goes on.
    Then train with --data DIR.
    """
    from softtrunc.cli.console import ConsoleProgress, echo, stdout
    from softtrunc.cli.data_tables import card_table
    from softtrunc.jobs.prepare import prepare_data

    if preset is not None:
        refuse_unused(context, f"--preset {preset} says it", "size", "channels")
    else:
        refuse_unused(context, "only a --preset has a count", "allow_count")
    cards = prepare_data(
        source,
        out,
        preset=preset,
        size=size,
        channels=channels,
        splits=split,
        allow_count=allow_count,
        workers=workers,
        progress=ConsoleProgress(),
    )
    stdout().print(card_table(cards))
    echo(str(out))


@data.command("presets")
def presets() -> None:
    """List the data sets whose protocol is known."""
    from softtrunc.cli.console import stdout
    from softtrunc.cli.data_tables import preset_table

    stdout().print(preset_table())
