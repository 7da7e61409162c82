"""In which variable, and of which state, the probability-flow ODE is integrated.

With `rho = sigma / alpha` and `n = -sigma score` (the predicted noise) the probability-flow ODE of
every SDE here is `d(x/alpha) / d rho = n`: drift and schedule are gone. What is left to choose is
how fast to walk along rho, and a scale for the state that takes the expected contraction out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE, expand_to

__all__ = ["Path", "PathPoint", "Variable", "angle_variable", "power_variable", "state_scale"]


@dataclass(frozen=True)
class Variable:
    """A strictly increasing map of `rho = sigma / alpha` to u, its inverse, and `d rho / du`."""

    of_rho: Callable[[Tensor], Tensor]
    rho: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]


def angle_variable(scale: float) -> Variable:
    """`u = atan(rho / scale)` in (0, pi/2)."""
    return Variable(
        lambda rho: torch.atan(rho / scale),
        lambda u: scale * u.tan(),
        lambda u: scale / u.cos().square(),
    )


def power_variable(scale: float, power: float = 3.0) -> Variable:
    """`u = -(scale + rho)^(-1 / power)`: between the angle (power 1) and the logarithm (large)."""
    return Variable(
        lambda rho: -((scale + rho) ** (-1.0 / power)),
        lambda u: (-u) ** -power - scale,
        lambda u: power * (-u) ** (-power - 1.0),
    )


class PathPoint(NamedTuple):
    """What the ODE of `z = x / scale` needs at u: `dz/du = gain n(x, t) - decay z`; all (n,).

    `volume` times the divergence of n in x, minus `decay` times the dimension, is the divergence
    of the right-hand side in z.
    """

    t: Float[Tensor, "*n"]
    sigma: Float[Tensor, "*n"]
    scale: Float[Tensor, "*n"]
    gain: Float[Tensor, "*n"]
    decay: Float[Tensor, "*n"]
    volume: Float[Tensor, "*n"]

    def velocity(self, z: Tensor, noise: Tensor) -> Tensor:
        """`dz/du` at the scaled states `(n, *event)` with the predicted noise there."""
        return expand_to(self.gain, z) * noise - expand_to(self.decay, z) * z


def state_scale(alpha: Tensor, sigma: Tensor, data_std: float) -> Tensor:
    """`sqrt(alpha^2 + sigma^2 / data_std^2)`, proportional to the std of x_t for such data.

    Gaussian data of standard deviation `data_std` stand still in `x / scale`. An infinite
    `data_std` leaves `x / alpha`.
    """
    return torch.hypot(alpha, sigma / data_std)


@dataclass(frozen=True)
class Path:
    """The ODE of `z = x / scale` between two times.

    - `sde`: the forward diffusion.
    - `variable`: in which it is integrated.
    - `data_std`: see `state_scale`.
    - `times`: the lower and the higher time, (2,), in the widest type on the states' device.
    """

    sde: SDE
    variable: Variable
    data_std: float
    times: Float[Tensor, " 2"]

    @property
    def ends(self) -> tuple[Tensor, ...]:
        """The variable at both times."""
        return self.variable.of_rho((-0.5 * self.sde.log_snr(self.times)).exp()).unbind()

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """The scale at both times."""
        return state_scale(*self.sde.marginal(self.times), self.data_std).unbind()

    def point(self, u: Float[Tensor, "*n"]) -> PathPoint:
        """The coefficients at `u`; the time is held between both ends against rounding."""
        rho = self.variable.rho(u)
        t = self.sde.time_of_log_snr(-2.0 * rho.log()).clamp(*self.times)
        alpha, sigma = self.sde.marginal(t)
        scale = state_scale(alpha, sigma, self.data_std)
        rate = self.variable.rate(u)
        return PathPoint(
            t=t,
            sigma=sigma,
            scale=scale,
            gain=rate * alpha / scale,
            decay=rate * rho / (self.data_std**2 + rho.square()),
            volume=rate * alpha,
        )

    def describe(self, u: float) -> str:
        """The time at `u`, in words."""
        return f"t = {float(self.point(torch.tensor(u).to(self.times)).t):.3g}"
