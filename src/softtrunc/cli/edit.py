"""`softtrunc edit encode | interpolate | inpaint | colorize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from softtrunc.cli.options import (
    Command,
    Data,
    Guidance,
    Overrides,
    Precision,
    RunFolder,
    Sampler,
    Steps,
    Weights,
    as_overrides,
    refuse_unused,
)

if TYPE_CHECKING:
    from softtrunc.jobs.edit import Editor

edit = typer.Typer(
    no_args_is_help=True,
    help="Edit images: encode, interpolate, inpaint, colorize.",
)

Images = Annotated[
    list[Path] | None, typer.Argument(help="Image files; without any, held-out images are taken.")
]
Count = Annotated[
    int,
    typer.Option("-n", "--count", metavar="N", min=1, max=10**6, help="How many held-out images."),
]
Variants = Annotated[
    int, typer.Option(metavar="N", min=1, max=1000, help="Results for each image.")
]
Label = Annotated[
    str | None,
    typer.Option(
        "--class", metavar="NAME", help="A class, by name or number; without one unless given."
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, max=2**62, help="Seed of the first result.")]


def _open(
    run: Path,
    weights: Literal["ema", "raw"],
    overrides: list[str] | None,
    label: str | None,
    *,
    data: str | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    precision: str | None = None,
) -> Editor:
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.errors import UserError
    from softtrunc.jobs.edit import Editor

    if label == "all":
        raise UserError("--class all: an edit is of one class, or of any: name it, or write none")
    keys = {
        "data.source": data,
        "sampling.sampler": sampler,
        "sampling.steps": steps,
        "sampling.guidance": guidance,
        "sampling.precision": precision,
    }
    changes = as_overrides(keys, overrides, label)
    return Editor.open(run, weights=weights, overrides=changes, progress=ConsoleProgress())


def _refuse_held_out(context: typer.Context, images: list[Path] | None) -> None:
    if images:
        refuse_unused(context, "images are named, so none is taken of the data", "count", "data")


@edit.command(cls=Command)
def encode(
    context: typer.Context,
    run: RunFolder,
    images: Images = None,
    out: Annotated[
        Path, typer.Option(help="An .npz of images and latents, or a .png of both ends.")
    ] = Path("latents.npz"),
    count: Count = 8,
    data: Data = None,
    label: Label = None,
    precision: Precision = None,
    overrides: Overrides = None,
    weights: Weights = "ema",
) -> None:
    """Carry images to noise and back; print the error."""
    from softtrunc.cli.console import stdout
    from softtrunc.cli.table import round_trip_table

    _refuse_held_out(context, images)
    editor = _open(run, weights, overrides, label, data=data, precision=precision)
    trips, nfe = editor.encode(images or [], count, out)
    stdout().print(round_trip_table(trips))
    editor.progress.say(f"{nfe} network evaluations there and back; {out}")


@edit.command()
def interpolate(
    run: RunFolder,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Two or more image files, unless --seed is given.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=0,
            max=2**62,
            help="Seed of a sample, in place of an image; give two or more.",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option(metavar="N", min=2, max=1000, help="Pictures from one image to the next.")
    ] = 9,
    out: Annotated[Path, typer.Option(help="A .gif, or a .png with one row.")] = Path(
        "interpolation.png"
    ),
    sampler: Sampler = None,
    steps: Steps = None,
    label: Label = None,
    guidance: Guidance = None,
    precision: Precision = None,
    overrides: Overrides = None,
    weights: Weights = "ema",
) -> None:
    """Interpolate between images, or between samples."""
    editor = _open(
        run,
        weights,
        overrides,
        label,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        precision=precision,
    )
    drawn = editor.interpolate(images or [], seed or [], frames, out)
    editor.progress.say(f"{len(drawn.x)} pictures in {drawn.nfe} network evaluations: {out}")


@edit.command(cls=Command)
def inpaint(
    context: typer.Context,
    run: RunFolder,
    images: Images = None,
    mask: Annotated[
        str,
        typer.Option(
            help="What to fill in: left, right, top, bottom, center, or an image, white there."
        ),
    ] = "right",
    out: Annotated[Path, typer.Option(help="A .png with a row for each image.")] = Path(
        "inpainted.png"
    ),
    count: Count = 8,
    variants: Variants = 4,
    data: Data = None,
    sampler: Sampler = None,
    steps: Steps = None,
    label: Label = None,
    guidance: Guidance = None,
    precision: Precision = None,
    overrides: Overrides = None,
    weights: Weights = "ema",
    seed: Seed = 0,
) -> None:
    """Fill in the missing part of images."""
    _refuse_held_out(context, images)
    editor = _open(
        run,
        weights,
        overrides,
        label,
        data=data,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        precision=precision,
    )
    drawn = editor.inpaint(images or [], count, mask, out, variants=variants, seed=seed)
    editor.progress.say(f"{len(drawn.x)} results in {drawn.nfe} network evaluations: {out}")


@edit.command(cls=Command)
def colorize(
    context: typer.Context,
    run: RunFolder,
    images: Images = None,
    out: Annotated[Path, typer.Option(help="A .png with a row for each image.")] = Path(
        "colorized.png"
    ),
    count: Count = 8,
    variants: Variants = 4,
    data: Data = None,
    sampler: Sampler = None,
    steps: Steps = None,
    label: Label = None,
    guidance: Guidance = None,
    precision: Precision = None,
    overrides: Overrides = None,
    weights: Weights = "ema",
    seed: Seed = 0,
) -> None:
    """Colour grey images."""
    _refuse_held_out(context, images)
    editor = _open(
        run,
        weights,
        overrides,
        label,
        data=data,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        precision=precision,
    )
    drawn = editor.colorize(images or [], count, out, variants=variants, seed=seed)
    editor.progress.say(f"{len(drawn.x)} results in {drawn.nfe} network evaluations: {out}")
