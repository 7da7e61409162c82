"""From grey levels to a model's range and back."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_model_range(
    images: UInt8[Tensor, "b c h w"],
    *,
    levels: int,
    value_range: tuple[float, float] = (-1.0, 1.0),
    noise: Float[Tensor, "b c h w"] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Grey levels as float32 in [low, high], on the device of `images`.

    With `noise` u in [0, 1) level x becomes `low + (high - low) (x + u) / levels` (uniform
    dequantisation: each level has a cell of its own, and together they fill the range). Without,
    it becomes `low + (high - low) x / (levels - 1)`.
    """
    low, high = value_range
    x = images.float()
    unit = x / (levels - 1) if noise is None else (x + noise) / levels
    return low + (high - low) * unit


def to_uint8(
    x: Float[Tensor, "b c h w"],
    *,
    levels: int,
    value_range: tuple[float, float] = (-1.0, 1.0),
    dequantized: bool = True,
) -> UInt8[Tensor, "b c h w"]:
    """Samples as grey levels: clipped, and rounded to the nearest level of `to_model_range`.

    With `dequantized` that is the index of the cell, `floor((x - low) / (high - low) levels)`,
    without it `round((x - low) / (high - low) (levels - 1))`.

    A model of dequantised data knows level x as a cell with centre `(x + 1/2) / levels`, one of
    plain data as the point `x / (levels - 1)`; with few levels the two differ visibly. (The
    public score-SDE code truncates the latter, which darkens by half a level.)
    """
    low, high = value_range
    unit = (x.float() - low) / (high - low)
    level = (unit * levels).floor() if dequantized else (unit * (levels - 1)).round()
    return level.clamp(0, levels - 1).to(torch.uint8)


def stretch_levels(images: UInt8[Tensor, "b c h w"], levels: int) -> UInt8[Tensor, "b c h w"]:
    """Levels 0 ... levels - 1 spread over 0 ... 255, for pictures and feature extractors.

    Level x becomes `round(255 x / (levels - 1))`: black stays black, white becomes white.
    """
    if levels == 256:
        return images
    return (images.float() * (255.0 / (levels - 1))).round().to(torch.uint8)
