"""What several verbs make of the same option."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

__all__ = ["data_override", "quoted", "sampling_overrides", "weights_of"]


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


def weights_of(name: str) -> Literal["ema", "raw"]:
    """The value of `--weights`.

    Raises:
        UserError: if it is neither "ema" nor "raw".
    """
    from softtrunc.recipes.errors import UserError, nearest

    if name == "ema":
        return "ema"
    if name == "raw":
        return "raw"
    raise UserError(f"--weights {name}: {nearest(name, ('ema', 'raw'))}")
