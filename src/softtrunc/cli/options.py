"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "Data",
    "Overrides",
    "Precision",
    "RunFolder",
    "Sampler",
    "Steps",
    "Weights",
    "as_overrides",
    "data_override",
    "figures_override",
    "quoted",
    "weights_of",
]

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
    told = {key: value for key, value in keys.items() if value is not None}
    return [*(f"{key}={quoted(value)}" for key, value in told.items()), *(given or [])]


def quoted(value: object) -> str:
    """A value as YAML: JSON's quotes are YAML's too, whatever a path holds."""
    return json.dumps(value)


def data_override(data: str) -> str:
    """`--data PATH` as a `--set`."""
    return f"data.source={quoted(data)}"


def figures_override(dequantization: str) -> str:
    """`--dequantization NAME` as a `--set`: the figures of that name.

    Raises:
        UserError: if there is no such dequantization.
    """
    from softtrunc.feedback.errors import UserError, nearest
    from softtrunc.recipes.schema import FIGURES_BY_DEQUANTIZATION

    if dequantization not in FIGURES_BY_DEQUANTIZATION:
        known = nearest(dequantization, FIGURES_BY_DEQUANTIZATION)
        raise UserError(f"--dequantization {dequantization}: {known}")
    return f"evaluation.figures={json.dumps(FIGURES_BY_DEQUANTIZATION[dequantization])}"


def weights_of(name: str) -> Literal["ema", "raw"]:
    """The value of `--weights`.

    Raises:
        UserError: if it is neither "ema" nor "raw".
    """
    from softtrunc.feedback.errors import UserError, nearest

    if name == "ema":
        return "ema"
    if name == "raw":
        return "raw"
    raise UserError(f"--weights {name}: {nearest(name, ('ema', 'raw'))}")
