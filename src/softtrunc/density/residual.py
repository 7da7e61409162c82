"""What it costs to go from the smallest time eps back to the data.

`r = log p(x_eps | x_0) - log p_theta(x_0 | x_eps)` for one draw of x_eps. Its first part is the
(negative) entropy term of the noise; leaving it out turns a bound into a number that means nothing.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.density.bits import check_grid
from softtrunc.density.dequantize import bin_index
from softtrunc.density.normal import log_normal_interval, time_of_noise
from softtrunc.density.truncated import TruncatedNormal
from softtrunc.sde import SDE, wide_dtype, widen

Reconstruction = Literal["gaussian", "discrete", "truncated"]
"""The law p_theta(x_0 | x_eps): a Gaussian density, a Gaussian summed over each level's bin, or the
one level whose cell `x_eps / alpha` lies in, to which the noise is then cut."""

_CELL_SHARE = 0.4
"""Measured: see `lossless_eps`."""


def lossless_eps(
    sde: SDE,
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    least: float = 1e-5,
) -> float:
    """The time at which a code for grey levels should begin: `sigma / alpha` is 0.4 of a bin.

    The code's length bounds minus the log-probability of the levels whatever the time is. With less
    noise the model has to know, to a fraction of a bin, where in it the levels lie, and pays
    `log2(bin / sigma)` bits per dimension where it does not; with more, the step from eps to the
    levels is not Gaussian. On the digits the best is near 0.4 for models trained with
    dequantisation and without (docs/density.md).

    Args:
        sde: the forward diffusion.
        levels: number of bins.
        value_range: low and high of the bins.
        least: returned where the noise of the time `least` is more than that (VE with its usual
            sigma_min, say).

    Raises:
        ValueError: if levels or range are out of range, or all of the diffusion's noise is less
            than that.
    """
    ratio = _CELL_SHARE * check_grid(levels, value_range) / levels
    found = time_of_noise(sde, ratio, least)
    if found is None:
        raise ValueError(
            f"lossless_eps: {levels} levels over {value_range} are too coarse for all the noise of "
            "this diffusion: choose eps (evaluation.lossless_eps) yourself"
        )
    return found


def gaussian_residual(
    noise: Float[Tensor, "b *event"],
    predicted: Float[Tensor, "b *event"],
    alpha: Float[Tensor, ""],
) -> Float[Tensor, " b"]:
    """The residual when `p_theta(x_0 | x_eps)` is Gaussian, in nats.

    Its mean is Tweedie's `(x_eps + sigma^2 score) / alpha`, its standard deviation
    `sigma / alpha`. With `x_eps = alpha x_0 + sigma z` and `n = -sigma score` everything but
    `-D log alpha + (||z - n||^2 - ||z||^2) / 2` cancels.

    Args:
        noise: z, the noise in x_eps.
        predicted: n, the model's prediction of it.
        alpha: alpha(eps).
    """
    z, n = widen(noise).flatten(1), widen(predicted).flatten(1)
    # ||z - n||^2 - ||z||^2 = n (n - 2 z): no difference of two large numbers.
    return 0.5 * (n * (n - 2.0 * z)).sum(1) - z.shape[1] * alpha.to(z).log()


def discrete_log_prob(
    index: Tensor,
    mean: Float[Tensor, "*shape"],
    std: Float[Tensor, "*#shape"],
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Float[Tensor, "*shape"]:
    """Log-probability that `N(mean, std^2)` gives to the bin of each level.

    The range is cut into `levels` equal bins, of which the first and the last reach out to
    infinity: the probabilities of all levels sum to 1 for any mean and std.

    Args:
        index: levels, integers of the shape of `mean`.
        mean: means in units of the value range.
        std: standard deviations, > 0.
        levels: number of bins.
        value_range: low and high.
    """
    low, high = value_range
    width = (high - low) / levels
    mean, std = widen(mean), widen(std)
    lower = (low + width * index - mean) / std
    upper = (low + width * (index + 1) - mean) / std
    lower = torch.where(index <= 0, -torch.inf, lower)
    upper = torch.where(index >= levels - 1, torch.inf, upper)
    return log_normal_interval(lower, upper)


def lossless_residual(
    x: Float[Tensor, "b *event"],
    noise: Float[Tensor, "b *event"],
    predicted: Float[Tensor, "b *event"],
    alpha: Float[Tensor, ""],
    sigma: Float[Tensor, ""],
    *,
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Float[Tensor, " b"]:
    """The residual when `p_theta(x_0 | x_eps)` is a Gaussian summed over each level's bin, in nats.

    Added to the negative log-density of x_eps it bounds minus the log-probability of the level
    itself; there is no dequantisation and no offset. The entropy term of the noise,
    `log p(x_eps | x_0)`, is part of it. Noise, prediction and schedule as in `gaussian_residual`.

    Args:
        x: data in the middle of their bins (`bin_centers`).
        noise: z.
        predicted: n.
        alpha: alpha(eps).
        sigma: sigma(eps).
        levels: number of bins.
        value_range: low and high of the bins.

    Raises:
        ValueError: if `x` is not in the middle of its bins.
    """
    home = x.device
    if home.type == "mps":  # it has neither float64 nor `log_ndtr`
        x, noise, predicted, alpha, sigma = (v.cpu() for v in (x, noise, predicted, alpha, sigma))
    index = bin_index(x, levels, value_range)
    z, n = widen(noise), widen(predicted)
    std = (sigma / alpha).to(z)
    log_prob = discrete_log_prob(index, widen(x) + std * (z - n), std, levels, value_range)
    entropy_term = -0.5 * z.square() - sigma.to(z).log() - 0.5 * math.log(2.0 * math.pi)
    return widen((entropy_term - log_prob).flatten(1).sum(1), home)


def start_noise(
    sde: SDE,
    x: Tensor,
    eps: float,
    reconstruction: Reconstruction,
    levels: int,
    value_range: tuple[float, float],
) -> TruncatedNormal | None:
    """The law of the noise in x_eps, where it is no plain normal one."""
    if reconstruction != "truncated":
        return None
    marginal = sde.marginal(torch.full((), eps, dtype=wide_dtype(x.device), device=x.device))
    return TruncatedNormal.around(x, *marginal, levels, value_range)


def residual_nats(
    x: Tensor,
    noise: Tensor,
    predicted: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    reconstruction: Reconstruction,
    levels: int,
    value_range: tuple[float, float],
) -> Float[Tensor, " b"]:
    """The residual of one draw, as `reconstruction` says."""
    if reconstruction == "gaussian":
        return gaussian_residual(noise, predicted, alpha)
    if reconstruction == "truncated":
        law = TruncatedNormal.around(x, alpha, sigma, levels, value_range)
        return widen(law.log_prob(noise), x.device) - x[0].numel() * sigma.log()
    return lossless_residual(
        x, noise, predicted, alpha, sigma, levels=levels, value_range=value_range
    )
