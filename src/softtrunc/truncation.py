"""Soft Truncation's one idea: the smallest diffusion time is a random variable.

For every optimiser step one truncation time tau is drawn from a prior on [eps, tau_max], and the
whole batch trains on times in [tau, T] (Kim et al. 2022, arXiv 2106.05527, section 4). The
usual training, with a fixed truncation, is the prior with all of its mass at eps.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

# Of the numerical prior, equal in log tau. On [1e-5, 1] a panel is 0.07 % of its time long.
_PANELS = 16_384


class TruncationPrior(abc.ABC):
    """A law of the truncation time tau.

    All results are float64, as tau spans five decades; float32 on devices without it.
    """

    eps: float

    @abc.abstractmethod
    def log_prob(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log-density at `tau`; minus infinity outside the support."""

    @abc.abstractmethod
    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`P(truncation time <= tau)`, in [0, 1]."""

    @abc.abstractmethod
    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The truncation time at quantile `u` in [0, 1]."""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw `n` truncation times on the generator's device (CPU without one)."""
        device = torch.device("cpu") if generator is None else generator.device
        wide = _wide_dtype(device)
        return self.icdf(torch.rand(n, generator=generator, device=device, dtype=wide))


def _wide_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(v: Tensor) -> Tensor:
    """`v` in the widest type that its device has."""
    return v.to(_wide_dtype(v.device))


def _check_range(eps: float, tau_max: float, name: str) -> None:
    if not eps > 0.0:
        raise ValueError(f"{name}: eps={eps}: need eps > 0, e.g. 1e-5")
    if not eps < tau_max <= 1.0:
        raise ValueError(f"{name}: eps={eps}, tau_max={tau_max}: need eps < tau_max <= 1")


@dataclass(frozen=True)
class PowerPrior(TruncationPrior):
    """The paper's family P_k: density proportional to `tau^-k` on [eps, tau_max].

    k = 0 is uniform, k = 1 log-uniform, k -> infinity hard truncation at eps. Written in
    s = log(tau / eps), where the density is proportional to `exp(-(k - 1) s)`; `expm1` and
    `log1p` then serve every k without a special case but k = 1 exactly, and without overflow.

    Args:
        k: exponent, any real number >= 0.
        eps: smallest time, > 0.
        tau_max: largest truncation time, in (eps, 1].

    Raises:
        ValueError: if k, eps or tau_max is out of range.
    """

    k: float
    eps: float = 1e-5
    tau_max: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.k < math.inf):
            raise ValueError(
                f"PowerPrior: k={self.k}: need a finite k >= 0 (for k = infinity write "
                f"HardTruncation(eps={self.eps}))"
            )
        _check_range(self.eps, self.tau_max, "PowerPrior")

    @property
    def _rate(self) -> float:
        return self.k - 1.0

    @property
    def _range(self) -> float:
        return math.log(self.tau_max / self.eps)

    def log_prob(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log-density at `tau`; minus infinity outside [eps, tau_max]."""
        tau = _wide(tau)
        inside = (tau >= self.eps) & (tau <= self.tau_max)
        log_tau = torch.where(inside, tau, self.eps).log()
        s = log_tau - math.log(self.eps)
        if self._rate == 0.0:
            log_norm = -math.log(self._range)
        else:
            log_norm = math.log(self._rate / -math.expm1(-self._rate * self._range))
        return torch.where(inside, log_norm - self._rate * s - log_tau, -math.inf)

    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`P(truncation time <= tau)`: 0 up to eps, 1 from tau_max on."""
        s = (_wide(tau) / self.eps).clamp(min=1.0).log().clamp(max=self._range)
        if self._rate == 0.0:
            return s / self._range
        return torch.expm1(-self._rate * s) / math.expm1(-self._rate * self._range)

    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The truncation time at quantile `u` in [0, 1]."""
        u = _wide(u)
        if self._rate == 0.0:
            s = u * self._range
        else:
            s = -torch.log1p(u * math.expm1(-self._rate * self._range)) / self._rate
        # The clamp also takes up u = 1, where log1p meets its pole at large k.
        return (self.eps * s.clamp(max=self._range).exp()).clamp(self.eps, self.tau_max)


@dataclass(frozen=True)
class HardTruncation(TruncationPrior):
    """The usual fixed truncation: all mass at eps, the limit k -> infinity of `PowerPrior`.

    Args:
        eps: the smallest time, in (0, 1).

    Raises:
        ValueError: if eps is out of range.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < 1.0:
            raise ValueError(f"HardTruncation: eps={self.eps}: need 0 < eps < 1, e.g. 1e-5")

    def log_prob(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log of the probability mass: 0 at eps, minus infinity elsewhere."""
        tau = _wide(tau)
        return _wide(torch.where(tau == self.eps, 0.0, -math.inf))

    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1 from eps on, 0 below."""
        return _wide(_wide(tau) >= self.eps)

    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Eps, whatever `u`."""
        return torch.full_like(_wide(u), self.eps)


@dataclass(frozen=True)
class WeightPrior(TruncationPrior):
    """The prior under which a loss has a wanted weight in expectation (Kim et al. 2022, Theorem 1).

    Soft Truncation of the weight w acts in expectation like `w(t) P(tau <= t)`. A target weight is
    such a product if its ratio to w, r = target / w, never falls with t: then
    `P(tau <= t) = r(t) / r(tau_max)`, with mass `r(eps) / r(tau_max)` at eps itself. From tau_max
    on the expected weight is a multiple of w.

    The law is numerical: `P` is linear in log tau within each of 16,384 panels.

    Args:
        target: the wanted weight, a function of t (B,), up to a factor.
        weight: the weight w > 0 that the truncated losses carry.
        eps: smallest time, > 0.
        tau_max: largest truncation time, in (eps, 1].

    Raises:
        ValueError: if eps or tau_max is out of range, or the ratio falls, is negative, or is not
            finite on [eps, tau_max].
    """

    target: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    eps: float = 1e-5
    tau_max: float = 1.0
    _cdf: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_range(self.eps, self.tau_max, "WeightPrior")
        place = torch.arange(_PANELS + 1, dtype=torch.float64)
        t = (self.eps * (place * self._panel).exp()).clamp(max=self.tau_max)
        ratio = self.target(t) / self.weight(t)
        if not (ratio.isfinite().all() and (ratio >= 0.0).all() and ratio[-1] > 0.0):
            raise ValueError("WeightPrior: target / weight is to be finite, and > 0 at tau_max")
        fall = (ratio.diff() < -1e-12 * ratio.max()).nonzero()
        if len(fall):
            raise ValueError(
                f"WeightPrior: target / weight falls at t = {float(t[fall[0]]):.3g}: no truncation "
                "has this weight in expectation; lower tau_max, or train with the weight itself"
            )
        # What rounding lets fall is level.
        object.__setattr__(self, "_cdf", (ratio / ratio.max()).cummax(0).values)

    @property
    def _panel(self) -> float:
        return math.log(self.tau_max / self.eps) / _PANELS

    def _place(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """The panel of each time, and how far into it the time lies."""
        place = ((tau / self.eps).clamp(min=1.0).log() / self._panel).clamp(max=_PANELS)
        i = place.long().clamp(max=_PANELS - 1)
        return i, place - i

    def log_prob(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log-density at `tau`, at eps log of the mass there, if any; minus infinity outside."""
        tau = _wide(tau)
        cdf = self._cdf.to(tau)
        i, _ = self._place(tau)
        density = (cdf[i + 1] - cdf[i]) / (self._panel * tau)
        density = torch.where((tau == self.eps) & (cdf[0] > 0.0), cdf[0], density)
        inside = (tau >= self.eps) & (tau <= self.tau_max)
        return torch.where(inside, density, 0.0).log()

    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`P(truncation time <= tau)`: 0 below eps, 1 from tau_max on."""
        tau = _wide(tau)
        cdf = self._cdf.to(tau)
        i, f = self._place(tau)
        return torch.where(tau >= self.eps, torch.lerp(cdf[i], cdf[i + 1], f), 0.0)

    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The truncation time at quantile `u` in [0, 1]; eps for every `u` of the mass there."""
        u = _wide(u)
        cdf = self._cdf.to(u)
        # The first panel that reaches u; below the mass at eps its share is negative or 0 / 0.
        i = (torch.searchsorted(cdf, u) - 1).clamp(min=0)
        f = ((u - cdf[i]) / (cdf[i + 1] - cdf[i])).nan_to_num(0.0).clamp(0.0, 1.0)
        return (self.eps * ((i + f) * self._panel).exp()).clamp(self.eps, self.tau_max)
