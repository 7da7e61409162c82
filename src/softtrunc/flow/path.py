"""In which variable, and of which state, the probability-flow ODE is integrated.

With `rho = sigma / alpha` and `n = -sigma score` (the predicted noise) the probability-flow ODE of
every SDE here is `d(x/alpha) / d rho = n`: drift and schedule are gone. What is left to choose is
how fast to walk along rho, and a scale for the state that takes the expected contraction out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE

__all__ = ["AngleVariable", "PathPoint", "PowerVariable", "Variable", "path_point", "state_scale"]


@runtime_checkable
class Variable(Protocol):
    """A strictly increasing map between `rho = sigma / alpha` and the variable u."""

    def of_rho(self, rho: Tensor) -> Tensor:
        """`u(rho)`."""

    def rho(self, u: Tensor) -> Tensor:
        """`rho(u)`."""

    def rate(self, u: Tensor) -> Tensor:
        """`d rho / du`."""


@dataclass(frozen=True)
class AngleVariable:
    """`u = atan(rho / scale)`."""

    scale: float

    def of_rho(self, rho: Tensor) -> Tensor:
        """`u(rho)` in (0, pi/2)."""
        return torch.atan(rho / self.scale)

    def rho(self, u: Tensor) -> Tensor:
        """`rho(u)`."""
        return self.scale * u.tan()

    def rate(self, u: Tensor) -> Tensor:
        """`d rho / du`."""
        return self.scale / u.cos().square()


@dataclass(frozen=True)
class PowerVariable:
    """`u = -(scale + rho)^(-1 / power)`: between the angle (power 1) and the logarithm (large)."""

    scale: float
    power: float = 3.0

    def of_rho(self, rho: Tensor) -> Tensor:
        """`u(rho)` < 0."""
        return -((self.scale + rho) ** (-1.0 / self.power))

    def rho(self, u: Tensor) -> Tensor:
        """`rho(u)`."""
        return (-u) ** -self.power - self.scale

    def rate(self, u: Tensor) -> Tensor:
        """`d rho / du`."""
        return self.power * (-u) ** (-self.power - 1.0)


class PathPoint(NamedTuple):
    """What the ODE of `z = x / scale` needs at u: `dz/du = gain n(x, t) - decay z`; all (n,).

    `volume` times the divergence of n in x, minus `decay` times the dimension, is the divergence
    of the right-hand side in z.
    """

    t: Float[Tensor, " n"]
    sigma: Float[Tensor, " n"]
    scale: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    decay: Float[Tensor, " n"]
    volume: Float[Tensor, " n"]


def state_scale(alpha: Tensor, sigma: Tensor, data_std: float) -> Tensor:
    """`sqrt(alpha^2 + sigma^2 / data_std^2)`, proportional to the std of x_t for such data.

    Gaussian data of standard deviation `data_std` stand still in `x / scale`. An infinite
    `data_std` leaves `x / alpha`.
    """
    return torch.hypot(alpha, sigma / data_std)


def path_point(
    sde: SDE, variable: Variable, data_std: float, u: Tensor, low: Tensor, high: Tensor
) -> PathPoint:
    """The coefficients at `u`; the time is held within [low, high] against rounding."""
    rho = variable.rho(u)
    t = sde.time_of_log_snr(-2.0 * rho.log()).clamp(low, high)
    alpha, sigma = sde.marginal(t)
    scale = state_scale(alpha, sigma, data_std)
    rate = variable.rate(u)
    return PathPoint(
        t=t,
        sigma=sigma,
        scale=scale,
        gain=rate * alpha / scale,
        decay=rate * rho / (data_std**2 + rho.square()),
        volume=rate * alpha,
    )
