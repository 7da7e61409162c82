"""What an error at time t costs: the weight w(t) of `||s_theta - grad log p(x_t|x_0)||^2`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE
from softtrunc.truncation import TruncationPrior

Weighting = Callable[[Tensor], Tensor]
"""A function of t `(B,)` or `()`, with w(t) >= 0 of the same shape."""


@dataclass(frozen=True)
class _Square:
    sde: SDE
    of: Literal["g", "sigma"]

    def __call__(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        root = self.sde.diffusion(t) if self.of == "g" else self.sde.marginal(t).sigma
        return root.square()


def likelihood_weight(sde: SDE) -> Weighting:
    """`w = g^2`: the loss bounds the negative log-likelihood (Song et al., arXiv 2101.09258)."""
    return _Square(sde, "g")


def variance_weight(sde: SDE) -> Weighting:
    """`w = sigma^2`: plain noise prediction; the best-looking samples, a worse likelihood."""
    return _Square(sde, "sigma")


@dataclass(frozen=True)
class _EDM:
    sde: SDE
    sigma_data: float
    mean: float
    std: float

    def __call__(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        log_ratio = -0.5 * self.sde.log_snr(t)
        standard = (log_ratio - self.mean) / self.std
        normal = (-0.5 * standard.square()).exp() / (self.std * math.sqrt(2.0 * math.pi))
        signal = 1.0 + (2.0 * log_ratio).exp() / self.sigma_data**2
        return self.sde.diffusion(t).square() * normal * signal


def edm_weight(
    sde: SDE, sigma_data: float = 0.5, mean: float = -1.2, std: float = 1.2
) -> Weighting:
    """The weight under which the loss is EDM's (Karras et al. 2022, arXiv 2206.00364, table 1).

    With `s = sigma / alpha` their loss is `E lambda(s) ||D - x_0||^2` over `log s ~ N(mean, std^2)`
    with `lambda = (s^2 + sigma_data^2) / (s sigma_data)^2`. The denoiser's error is
    `s (sigma score + z)`, and log s moves with t at the rate `g^2 / (2 sigma^2)`: an integral over
    time with the weight `w = g^2 N(log s; mean, std^2) (1 + s^2 / sigma_data^2)`, under whichever
    law the times are drawn. Under `LogNormalTimes` with the same mean and std every error counts
    `1 + s^2 / sigma_data^2`, as it does there.

    Args:
        sde: the forward diffusion.
        sigma_data: standard deviation of the data, in their own range.
        mean: of log s (P_mean; -1.2 is for data in [-1, 1]).
        std: its standard deviation (P_std).
    """
    return _EDM(sde, sigma_data, mean, std)


@dataclass(frozen=True)
class PriorWeight:
    """`w_P(t) = w(t) P(tau <= t)`: Soft Truncation's loss in expectation, as a weight.

    Training with it under hard truncation has the same mean gradient as Soft Truncation but
    another estimator; comparing the two is one of the paper's ablations (arXiv 2106.05527,
    section 4.2).

    The gradients agree in the mean without gradient clipping only. Clipping shortens the steps of
    small tau, whose gradients are the longest, and leaves those of large tau alone: the weight
    that Soft Truncation then acts with leans further to large times than w_P. On Fashion-MNIST
    16x16 at a clip of 1, k = 1 acts like an unclipped k near 0.8.

    Args:
        base: the weight w that the truncated losses carry.
        prior: the law of tau.
    """

    base: Weighting
    prior: TruncationPrior

    def __call__(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The weight at `t`."""
        w = self.base(t)
        return w * self.prior.cdf(t).to(w.dtype)
