"""Normal probabilities of an interval, and the time at which a diffusion has so much noise."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE


def time_of_noise(sde: SDE, ratio: float, least: float) -> float | None:
    """The time at which `sigma / alpha` is `ratio`, at least `least`; None if it is never so much.

    Args:
        sde: the forward diffusion.
        ratio: in units of the data, > 0.
        least: returned where there is more noise than that from the first.
    """
    wanted = torch.tensor(ratio, dtype=torch.float64)
    ends = torch.tensor([least, sde.t_max], dtype=torch.float64)
    smallest, largest = (-0.5 * sde.log_snr(ends)).exp()
    if wanted >= largest:
        return None
    return least if smallest >= wanted else float(sde.time_of_log_snr(-2.0 * wanted.log()))


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """`log(exp(a) - exp(b))` for a >= b."""
    gap = b - a
    return a + torch.where(gap > -math.log(2.0), (-torch.expm1(gap)).log(), (-gap.exp()).log1p())


def log_normal_interval(
    lower: Float[Tensor, "*shape"], upper: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """`log(Phi(upper) - Phi(lower))` for lower < upper, infinite ones too, exact in both tails."""
    # In the right tail both normal probabilities round to 1: look at them from the other side.
    mirrored = lower + upper > 0
    a = torch.where(mirrored, -lower, upper)
    b = torch.where(mirrored, -upper, lower)
    return _log_difference(torch.special.log_ndtr(a), torch.special.log_ndtr(b))
