"""The law of the diffusion time t on [tau, T], and the weight that makes it an integral.

A draw `(t, weight)` satisfies `E[weight h(t)] = integral of h over [tau, T]` for every h; the
choice of law changes the variance of that estimate and nothing else. (`LogSNRTimes` alone
integrates over log-SNR instead, which does not depend on how the SDE parametrises time.)
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE, wide_dtype, widen


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
        if not isinstance(tau, Tensor):  # filled in there: nobody waits for it to be sent
            tau = torch.full((), tau, dtype=u.dtype, device=u.device)
        return self._at(u, widen(tau, u.device))

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

    `E[weight h(t)] = integral of h(t(l)) dl over [l(T), l(tau)]`. This does not depend on how an
    SDE parametrises time. So a reciprocal VE has the same loss as a VE. For VE, whose log-SNR is
    linear in t, an average over log-SNR is the average over time.

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
class LogNormalTimes(TimeLaw):
    """`log(sigma / alpha)` normal, and cut to [tau, T]: the noise levels of EDM.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1; there sigma / alpha is sigma, of data in
    [-1, 1]. With `softtrunc.weighting.edm_weight` the loss is theirs.

    Args:
        sde: the forward diffusion.
        mean: of `log(sigma / alpha)` (P_mean).
        std: its standard deviation, > 0 (P_std).
        stratified: one draw in each of n equal cells of the law: lower variance, the same law.

    Raises:
        ValueError: if mean and std are no normal law.
    """

    sde: SDE
    mean: float = -1.2
    std: float = 1.2
    stratified: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ValueError(
                f"LogNormalTimes: mean={self.mean}, std={self.std}: need a finite mean and "
                "std > 0, e.g. -1.2 and 1.2"
            )

    def _standard(self, t: Tensor) -> Tensor:
        """How many standard deviations `log(sigma / alpha)` is above the mean."""
        return (-0.5 * self.sde.log_snr(t) - self.mean) / self.std

    def _above(self, t: Tensor) -> Tensor:
        """The share of the uncut law above t. T lies in its upper tail, where this keeps digits."""
        above: Tensor = torch.special.ndtr(-self._standard(t))
        return above

    def _ends(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """The shares above T and above tau."""
        return self._above(torch.full_like(tau, self.sde.t_max)), self._above(tau)

    def cdf(self, t: Tensor, tau: Tensor) -> Tensor:
        """The share of the law on [tau, T] that lies below t."""
        low, high = self._ends(tau)
        return ((high - self._above(t)) / (high - low)).clamp(0.0, 1.0)

    def density(self, t: Tensor) -> Tensor:
        """Of t under the uncut law: `d log(sigma / alpha) / dt = g^2 / (2 sigma^2)` at t."""
        rate = self.sde.diffusion(t).square() / self.sde.marginal(t).sigma.square()
        normal = (-0.5 * self._standard(t).square()).exp() / (self.std * math.sqrt(2.0 * math.pi))
        return 0.5 * rate * normal

    def _at(self, u: Tensor, tau: Tensor) -> TimeDraw:
        home = u.device
        place = torch.device("cpu") if home.type == "mps" else home  # which has no `ndtri`
        u, tau = widen(u, place), widen(tau, place)
        low, high = self._ends(tau)
        standard = -torch.special.ndtri(high - (high - low) * u)
        t = self.sde.time_of_log_snr(-2.0 * (self.mean + self.std * standard))
        t = t.clamp(max=self.sde.t_max).maximum(tau)
        return TimeDraw(widen(t, home), widen((high - low) / self.density(t), home))
