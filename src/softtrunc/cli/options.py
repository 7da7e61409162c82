"""What several verbs make of the same option."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

__all__ = ["data_override", "figures_override", "quoted", "sampling_overrides", "weights_of"]


def data_override(data: str) -> str:
    """`--data PATH` as a `--set`: JSON's quotes are YAML's too, whatever the path holds."""
    return f"data.source={quoted(data)}"


def quoted(text: str) -> str:
    """A text as YAML, whatever it holds."""
    return json.dumps(text)


def sampling_overrides(
    sampler: str | None, steps: int | None, precision: str | None, overrides: Sequence[str] | None
) -> list[str]:
    """`--sampler`, `--steps` and `--precision` as `--set`s; those that were given come last."""
    named = {"sampler": sampler, "steps": steps, "precision": precision}
    changes = [f"sampling.{key}={value}" for key, value in named.items() if value is not None]
    return [*changes, *(overrides or [])]


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
