"""Nats, bits per dimension, and which data have any."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from softtrunc.sde import widen


def check_grid(levels: int, value_range: tuple[float, float]) -> float:
    """Width of the range, after a look at both."""
    low, high = value_range
    if levels < 2:
        raise ValueError(f"levels={levels}: need at least 2, e.g. 256 for 8-bit data")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range={value_range}: need finite low < high, e.g. (-1, 1)")
    return high - low


def bits_per_dim(
    nats: Float[Tensor, " b"],
    dim: int,
    *,
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Float[Tensor, " b"]:
    """Bits per dimension of the discrete data behind a dequantised density.

    `nats / (D ln 2) + log2(levels / width)`: the second term turns a density over the value range
    into one over the numbers 0 ... levels (7 for 256 levels on [-1, 1], 8 on [0, 1]).

    Args:
        nats: negative log-densities.
        dim: number of dimensions D of an example.
        levels: number of values a dimension can take.
        value_range: what the data were mapped to: low and high, in units of the model's data.

    Raises:
        ValueError: if a number is out of range.
    """
    width = check_grid(levels, value_range)
    if dim < 1:
        raise ValueError(f"dim={dim}: need at least 1")
    return nats / (dim * math.log(2.0)) + math.log2(levels / width)


def density_bits_per_dim(
    nats: Float[Tensor, " b"],
    dim: int,
    data_range: tuple[float, float],
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Float[Tensor, " b"]:
    """Bits per dimension of a density, in the data's own units, where a model saw them mapped.

    `nats / (D ln 2) + log2(width of the data / width of the model)`: the second term is the
    Jacobian of the linear map from one range to the other. Of data on no grid these are no lengths
    of a code: they may be negative, and in units half as large they are one bit more.

    Args:
        nats: negative log-densities over the model's range.
        dim: number of dimensions D of an example.
        data_range: low and high of the data that were mapped.
        value_range: what they were mapped to.

    Raises:
        ValueError: if a number is out of range.
    """
    if dim < 1:
        raise ValueError(f"dim={dim}: need at least 1")
    scale = check_grid(2, data_range) / check_grid(2, value_range)
    return nats / (dim * math.log(2.0)) + math.log2(scale)


@dataclass(frozen=True)
class Density:
    """Negative log-likelihoods of a batch, term by term; `nats = prior + flow + residual`.

    - `prior` (B,): `-log pi(x_T)` under the Gaussian prior (its expectation, for a bound).
    - `flow` (B,): what lies between T and eps; for the ODE minus the integrated divergence.
    - `residual` (B,): `log p(x_eps | x_0) - log p_theta(x_0 | x_eps)`; 0 without residual.
    - `nats` (B,): their sum, in nats; over the model's data range, or of the discrete value.
    - `nfe` (B,): network evaluations spent on the example.
    - `dim`: number of dimensions of an example.
    - `levels`: None if `nats` is a density; else the number of discrete levels that the discrete
      reconstruction summed over, and `nats` is minus the log-probability of a discrete value.

    The first four are float64 (float32 on devices without it).
    """

    prior: Float[Tensor, " b"]
    flow: Float[Tensor, " b"]
    residual: Float[Tensor, " b"]
    nats: Float[Tensor, " b"]
    nfe: Int[Tensor, " b"]
    dim: int
    levels: int | None = None

    def bits_per_dim(
        self, levels: int = 256, value_range: tuple[float, float] = (-1.0, 1.0)
    ) -> Float[Tensor, " b"]:
        """Bits per dimension, see `bits_per_dim`; a discrete `nats` needs no offset.

        Raises:
            ValueError: if a number is out of range, or `levels` is not what a discrete
                reconstruction was made with.
        """
        if self.levels is None:
            return bits_per_dim(self.nats, self.dim, levels=levels, value_range=value_range)
        if levels != self.levels:
            raise ValueError(
                f"levels={levels}: the discrete reconstruction was made with {self.levels}: "
                f"write levels={self.levels}"
            )
        return self.nats / (self.dim * math.log(2.0))

    @classmethod
    def join(cls, parts: Iterable[Density]) -> Density:
        """The densities of several batches as those of one.

        Raises:
            ValueError: if there are none, or they differ in dimension or kind.
        """
        parts = list(parts)
        if len({(p.dim, p.levels) for p in parts}) != 1:
            raise ValueError("join: need at least one batch, all of one dimension and kind")
        tensors = {
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in fields(cls)
            if f.name not in ("dim", "levels")
        }
        return cls(**tensors, dim=parts[0].dim, levels=parts[0].levels)


class Mean(NamedTuple):
    """A mean, its standard error and the number `n` of values behind it."""

    mean: float
    standard_error: float
    n: int


def mean_with_error(values: Float[Tensor, " n"]) -> Mean:
    """Mean and standard error of independent values; the error of a single one is not known (nan).

    Raises:
        ValueError: if there are no values.
    """
    n = values.numel()
    if n == 0:
        raise ValueError("mean_with_error: no values: give at least one")
    wide = widen(values)
    error = float(wide.std()) / math.sqrt(n) if n > 1 else math.nan
    return Mean(float(wide.mean()), error, n)


def check_on_grid(
    x: Tensor,
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Int[Tensor, "b *event"]:
    """The levels 0 ... levels - 1 behind `x`, refusing data that bits per dimension cannot mean.

    Integers are taken as the levels themselves. Floating-point data must sit on one of the three
    grids in use over `value_range` (low, high): levels spread from low to high inclusively
    (`x / 127.5 - 1`), the centres of equal bins, or their lower edges (`x / 128 - 1`); all of `x`
    on the same one, to a hundredth of a level.

    Args:
        x: data as they are before dequantisation, any shape.
        levels: number of values a dimension can take.
        value_range: low and high.

    Returns:
        The levels, int64.

    Raises:
        ValueError: if the data are not on a grid: resized in floating point, already dequantised,
            normalised twice or in another range. The message says which and what to do.
    """
    low, high = value_range
    width = check_grid(levels, value_range)
    if x.numel() == 0:
        raise ValueError("the data are empty: nothing to measure")
    if not x.is_floating_point():
        lowest, highest = torch.stack(x.aminmax()).tolist()
        if lowest < 0 or highest >= levels:
            raise ValueError(
                f"the data hold integers from {lowest} to {highest}, but levels={levels} allows 0 "
                f"to {levels - 1}: write the number of levels that the data have"
            )
        return x.long()
    if not bool(x.isfinite().all()):
        raise ValueError("the data hold nan or inf: repair the files before measuring a density")
    wide = widen(x)
    least, most = float(wide.min()), float(wide.max())
    slack = 1e-3 * width
    if least < low - slack or most > high + slack:
        hint = (
            f"they look like raw levels: pass them as integers, or map them to {value_range} once"
            if least >= 0.0 and 1.5 < most <= levels and high <= 1.0
            else f"write the value_range they are in, or map them to {value_range} once"
        )
        raise ValueError(
            f"the data run from {least:.4g} to {most:.4g}, outside of value_range={value_range}: "
            + hint
        )
    share = (wide - low) / width
    candidates = (share * (levels - 1), share * levels - 0.5, share * levels)
    for position in candidates:
        index = position.round()
        # An inclusive top edge (share = 1) is no lower edge of any bin.
        if (
            float((position - index).abs().max()) < 1e-2
            and 0 <= index.min() <= index.max() < levels
        ):
            return index.long()
    if x.numel() > 64 and most - least < 4.0 * width / levels:
        raise ValueError(
            f"the data span only {most - least:.3g} of value_range={value_range}, less than four "
            f"of {levels} levels: they were normalised twice; map the 8-bit values only once"
        )
    raise ValueError(
        f"the data are not on a grid of {levels} levels over {value_range} (resized in floating "
        "point, or already dequantised): a bits-per-dimension figure of them means nothing; round "
        f"them to {levels} levels after resizing, store them as integers and dequantise those once"
    )


def check_levels(x: Integer[Tensor, "*shape"], levels: int = 256) -> None:
    """Refuse integer data that plainly have another number of levels than stated.

    Bits per dimension of such data would count levels that cannot occur. Small samples pass: only
    what a hundred values or more leave no doubt about is refused.

    Args:
        x: data as they are stored.
        levels: number of values a dimension is said to take.

    Raises:
        ValueError: if a value is out of range, all are the same, or a few levels stand far apart
            (fewer levels spread over the range) or close to 0 (normalised before they were
            stored). The message says which and what to do.
    """
    used = torch.unique(check_on_grid(x, levels))
    if x.numel() < 100:
        return
    span = int(used[-1] - used[0]) + 1
    if span == 1:
        raise ValueError(
            f"every value of the data is {int(used[0])}: there is nothing to measure; look at how "
            "they were made"
        )
    if levels >= 16 and span <= 2:
        raise ValueError(
            f"the data hold the levels {int(used[0])} and {int(used[-1])} alone of {levels}: they "
            "are black and white, or were normalised before they were stored; store the levels "
            "0 ... 255 themselves"
        )
    # A quarter of the range in use would be found complete by so many values.
    if x.numel() >= 20 * span and len(used) <= span // 2:
        raise ValueError(
            f"the data use {len(used)} of the {span} levels from {int(used[0])} to "
            f"{int(used[-1])}: they hold fewer levels than the {levels} stated, spread over the "
            f"range; number them 0 ... {len(used) - 1}, state levels={len(used)} and train on those"
        )


def check_continuous(x: Float[Tensor, "*shape"]) -> None:
    """Refuse floating-point data that hold levels: their density has no bound.

    Args:
        x: data as they are stored.

    Raises:
        ValueError: if several thousand values hold no more different ones than a byte does.
    """
    different = len(torch.unique(x))
    if x.numel() >= 16 * 256 and different <= 256:
        raise ValueError(
            f"{x.numel():,} floating-point values, and only {different:,} different ones: they are "
            "on a grid, where a density has no bound: save the levels as uint8 images"
        )
