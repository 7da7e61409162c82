"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Weights = Annotated[Literal["ema", "raw"], typer.Option(help="Averaged weights, or the last ones.")]
Data = Annotated[
    str | None, typer.Option(help="The images: a folder, archive or prepared data set.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the recipe: --set truncation.k=0.9"
    ),
]
Sampler = Annotated[
    str | None, typer.Option(help="pc, euler_maruyama, ancestral, ode, heun or dpm_solver.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the sampler.")]
Precision = Annotated[str | None, typer.Option(help="Of the network: fp32, bf16 or fp16.")]


def as_overrides(keys: Mapping[str, object], given: Sequence[str] | None) -> list[str]:
    """Options as `--set`s of these keys, before those that were given themselves."""
    # JSON's quotes are YAML's too, whatever a path holds.
    told = [f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None]
    return [*told, *(given or [])]


def figures_of(dequantization: str | None) -> Sequence[str] | None:
    """The figures in bits/dim that `--dequantization NAME` means, None where it is not given.

    Raises:
        UserError: if there is no such dequantization.
    """
    from softtrunc.feedback.errors import UserError, nearest
    from softtrunc.recipes.schema import FIGURES_BY_DEQUANTIZATION as KNOWN

    if dequantization is not None and dequantization not in KNOWN:
        raise UserError(f"--dequantization {dequantization}: {nearest(dequantization, KNOWN)}")
    return None if dequantization is None else KNOWN[dequantization]
