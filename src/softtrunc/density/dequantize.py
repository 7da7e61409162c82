"""From discrete levels to a continuous space on which a density lives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from softtrunc.density.bits import check_grid, check_on_grid
from softtrunc.noise import Noise
from softtrunc.sde import wide_dtype, widen


def dequantize(
    x: Integer[Tensor, "b *event"],
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    noise: Float[Tensor, "b *event"] | None = None,
    seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b *event"]:
    """Uniform dequantisation: `low + width (x + u) / levels` with u uniform on [0, 1).

    By Jensen's inequality a density of the result bounds the probability of the levels from below
    (Theis et al. 2016, arXiv 1511.01844, section 3.1).

    Args:
        x: levels, integers in 0 ... levels - 1.
        levels: number of values a dimension can take.
        value_range: low and high of the result.
        noise: u itself, in [0, 1], if it is not to be drawn (a learned dequantiser's, say).
        seeds: one integer per example: its noise then does not depend on the batch.
        generator: source of the noise without `seeds`.
        dtype: of the result.

    Raises:
        ValueError: if `x` is not of integer type or out of range, or the noise outside [0, 1].
    """
    if x.is_floating_point():
        raise ValueError(
            "dequantize takes integer levels, not floating-point values: pass the uint8 data (or "
            "what check_on_grid returns)"
        )
    index = check_on_grid(x, levels, value_range)
    wide = wide_dtype(x.device)
    if noise is None:
        streams = Noise(len(x), seeds, generator, purpose="dequantisation")
        noise = streams.uniform(x, wide)
    elif noise.shape != x.shape or not bool(((noise >= 0.0) & (noise <= 1.0)).all()):
        raise ValueError("noise: need the shape of x and values in [0, 1]")
    low, high = value_range
    # Rounding to the final precision may touch the upper edge of a bin, never cross it.
    return (low + (high - low) * (index + noise.to(wide)) / levels).to(dtype)


def bin_centers(
    x: Integer[Tensor, "b *event"],
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b *event"]:
    """The middle of each level's bin, `low + width (x + 1/2) / levels`: data for lossless mode.

    A model trained without dequantisation has its levels at the middles of `spread_range`.

    Raises:
        ValueError: as `dequantize`.
    """
    noise = torch.full(x.shape, 0.5, device=x.device)
    return dequantize(x, levels, value_range, noise=noise, dtype=dtype)


def spread_range(
    levels: int = 256, value_range: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float]:
    """The range whose bins have their middles at `low + width x / (levels - 1)`.

    That is where a model trained without dequantisation saw level x: the lowest at the low end, the
    highest at the high one. The range is half a level wider than the data at both. Lossless mode
    with it in place of the value range measures such a model.

    Raises:
        ValueError: if there are fewer than two levels, or no low < high.
    """
    half = 0.5 * check_grid(levels, value_range) / (levels - 1)
    return value_range[0] - half, value_range[1] + half


def bin_index(
    x: Float[Tensor, "b *event"],
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Int[Tensor, "b *event"]:
    """The levels behind values in the middle of their bins: the inverse of `bin_centers`.

    Raises:
        ValueError: if a value is further than a hundredth of a level from the middle of a bin.
    """
    low, high = value_range
    position = (widen(x) - low) * (levels / (high - low)) - 0.5
    index = position.round()
    off = (position - index).abs() >= 1e-2
    if bool((off | (index < 0) | (index >= levels)).any()):
        raise ValueError(
            f"lossless mode takes the middle of each of {levels} bins over {value_range}: pass "
            "bin_centers(levels of the data) and no dequantisation noise"
        )
    return index.long()
