"""The law of the diffusion time t on [tau, T], and the weight that makes it an integral.

A draw `(t, weight)` satisfies `E[weight h(t)] = integral of h over [tau, T]` for every h; the
choice of law changes the variance of that estimate and nothing else. (`LogSNRTimes` alone
integrates over log-SNR instead, in which it makes no difference how fast the SDE's clock runs.)
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE, wide_dtype

# Of the numerical law, equal in log t. On [1e-5, 1] a panel is 0.07 % of its time long.
_PANELS = 16_384


class TimeDraw(NamedTuple):
    """Diffusion times and their integration weights, `(n,)` in the device's widest type."""

    t: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]


def _unit_draw(n: int, *, stratified: bool, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers on [0, 1); stratified: exactly one in each of `n` equal cells.

    The cells are dealt in random order, so that any part of a batch (a micro-batch, the share of
    one process) still sees the whole range.
    """
    device = torch.device("cpu") if generator is None else generator.device
    u = torch.rand(n, generator=generator, device=device, dtype=wide_dtype(device))
    if not stratified:
        return u
    return (torch.randperm(n, generator=generator, device=device) + u) / n


class TimeLaw(abc.ABC):
    """How the diffusion times of a batch are drawn."""

    sde: SDE
    stratified: bool

    def draw(
        self, n: int, tau: float | Float[Tensor, "*n"], *, generator: torch.Generator | None = None
    ) -> TimeDraw:
        """Draw `n` times on [tau, T] with their weights.

        Args:
            n: how many.
            tau: truncation time in (0, T), one for all or one each.
            generator: source of randomness; the draw lives on its device.
        """
        u = _unit_draw(n, stratified=self.stratified, generator=generator)
        return self._at(u, torch.as_tensor(tau, dtype=u.dtype, device=u.device))

    @abc.abstractmethod
    def cdf(self, t: Tensor, tau: Tensor) -> Tensor:
        """`P(time <= t)` under a truncation at tau, float64; t and tau of shapes that broadcast."""

    @abc.abstractmethod
    def _at(self, u: Tensor, tau: Tensor) -> TimeDraw:
        """The times at the quantiles `u` in [0, 1) of the law on [tau, T], and their weights."""


@dataclass(frozen=True)
class UniformTimes(TimeLaw):
    """t uniform on [tau, T].

    Args:
        sde: the forward diffusion, which gives T.
        stratified: one draw in each of n equal cells: lower variance, the same marginal law.
        average: divide the integral by `T - tau`, the convention of variance-weighted recipes.
    """

    sde: SDE
    stratified: bool = False
    average: bool = False

    def cdf(self, t: Tensor, tau: Tensor) -> Tensor:
        """`(t - tau) / (T - tau)`."""
        return ((t - tau) / (self.sde.t_max - tau)).clamp(0.0, 1.0)

    def _at(self, u: Tensor, tau: Tensor) -> TimeDraw:
        length = self.sde.t_max - tau
        # Counted back from T, so that T itself is as exact as a float can say.
        t = (self.sde.t_max - length * (1.0 - u)).maximum(tau)
        return TimeDraw(t, torch.ones_like(u) if self.average else length.expand(len(u)))


@dataclass(frozen=True)
class ImportanceTimes(TimeLaw):
    """t with density proportional to `g^2 / sigma^2`: log-SNR uniform on [l(T), l(tau)].

    With the likelihood weighting this makes every drawn time count the same (Song et al. 2021,
    arXiv 2101.09258, section 5.1). The weight is `Z(tau) sigma^2 / g^2`, `Z = l(tau) - l(T)`.

    Args:
        sde: the forward diffusion.
        stratified: one draw in each of n equal cells of log-SNR: lower variance, the same law.
    """

    sde: SDE
    stratified: bool = False

    def cdf(self, t: Tensor, tau: Tensor) -> Tensor:
        """`(l(tau) - l(t)) / Z(tau)`."""
        return LogSNRTimes(self.sde).cdf(t, tau)

    def _at(self, u: Tensor, tau: Tensor) -> TimeDraw:
        t, z = LogSNRTimes(self.sde)._at(u, tau)
        rate = self.sde.diffusion(t).square() / self.sde.marginal(t).sigma.square()
        return TimeDraw(t, z / rate)


@dataclass(frozen=True)
class LogSNRTimes(TimeLaw):
    """Log-SNR uniform on [l(T), l(tau)], and the integral over it rather than over time.

    `E[weight h(t)] = integral of h(t(l)) dl over [l(T), l(tau)]`: the same number in every clock
    that an SDE may be written in. For VE, whose log-SNR is linear in t, an average over it is the
    average over time; a reciprocal VE with this law is trained as the VE it is in another clock.

    Args:
        sde: the forward diffusion.
        stratified: one draw in each of n equal cells of log-SNR: lower variance, the same law.
        average: divide the integral by `Z = l(tau) - l(T)`.
    """

    sde: SDE
    stratified: bool = False
    average: bool = False

    def _ends(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """l(tau) and Z(tau)."""
        l_max = self.sde.log_snr(tau)
        return l_max, l_max - self.sde.log_snr(torch.full_like(tau, self.sde.t_max))

    def cdf(self, t: Tensor, tau: Tensor) -> Tensor:
        """`(l(tau) - l(t)) / Z(tau)`."""
        l_max, z = self._ends(tau)
        return ((l_max - self.sde.log_snr(t)) / z).clamp(0.0, 1.0)

    def _at(self, u: Tensor, tau: Tensor) -> TimeDraw:
        l_max, z = self._ends(tau)
        # The clamp takes up the last bit lost on the way through log-SNR and back.
        t = self.sde.time_of_log_snr(l_max - z * u).clamp(max=self.sde.t_max).maximum(tau)
        return TimeDraw(t, torch.ones_like(u) if self.average else z.expand(len(u)))


@dataclass(frozen=True)
class ProportionalTimes(TimeLaw):
    """t drawn in proportion to what an error there counts: density proportional to `w / sigma^2`.

    Under the weighting w every example then carries the same coefficient, `1/2 Z(tau)` with Z the
    integral of `w / sigma^2` over [tau, T]. For `w = g^2` this is `ImportanceTimes`; with a
    `PriorWeight` no example is spent on small times that Soft Truncation seldom looks at.

    It is for integrands that vanish where w does. The law is numerical, its density level in log t
    within each of 16,384 panels; of the integral of w that costs less than 1e-5.

    Args:
        sde: the forward diffusion.
        weight: the weight w(t) >= 0 of the loss, smooth on the scale of log t.
        eps: smallest time that can be drawn, in (0, T).
        stratified: one draw in each of n equal cells of the law: lower variance, the same law.

    Raises:
        ValueError: if eps is out of range, or a `tau` below eps is asked for.
    """

    sde: SDE
    weight: Callable[[Tensor], Tensor]
    eps: float = 1e-5
    stratified: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < self.sde.t_max:
            raise ValueError(f"ProportionalTimes: eps={self.eps}: need 0 < eps < {self.sde.t_max}")

    @property
    def _panel(self) -> float:
        return math.log(self.sde.t_max / self.eps) / _PANELS

    def _rate(self, t: Tensor) -> Tensor:
        return self.weight(t) / self.sde.marginal(t).sigma.square()

    @cached_property
    def _mass(self) -> Tensor:
        """The integral of w / sigma^2 from eps to each edge of the panels."""
        edges = torch.arange(_PANELS + 1, dtype=torch.float64) * self._panel
        t = (self.eps * edges.exp()).clamp(max=self.sde.t_max)
        mass = torch.cumulative_trapezoid(self._rate(t) * t, dx=self._panel)
        return torch.nn.functional.pad(mass, (1, 0))

    def _mass_below(self, t: Tensor) -> Tensor:
        mass = self._mass.to(t)
        place = (t / self.eps).clamp(min=1.0).log() / self._panel
        i = place.long().clamp(max=_PANELS - 1)
        return torch.lerp(mass[i], mass[i + 1], place - i)

    def cdf(self, t: Tensor, tau: Tensor) -> Tensor:
        """The integral of `w / sigma^2` from tau to t over that from tau to T."""
        below = self._mass_below(tau)
        return ((self._mass_below(t) - below) / (self._mass[-1] - below)).clamp(0.0, 1.0)

    def _at(self, u: Tensor, tau: Tensor) -> TimeDraw:
        if bool((tau < self.eps).any()):
            raise ValueError(f"ProportionalTimes: tau={float(tau.min())}: need tau >= {self.eps}")
        mass = self._mass.to(u)
        below = self._mass_below(tau)
        z = mass[-1] - below
        wanted = below + u * z
        i = (torch.searchsorted(mass, wanted, right=True) - 1).clamp(max=_PANELS - 1)
        place = i + (wanted - mass[i]) / (mass[i + 1] - mass[i])
        t = (self.eps * (place * self._panel).exp()).clamp(max=self.sde.t_max).maximum(tau)
        rate = self._rate(t)
        # Where nothing counts (w_P at eps) an example counts nothing.
        return TimeDraw(t, torch.where(rate > 0.0, z / rate, 0.0))
