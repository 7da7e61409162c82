"""Soft Truncation's one idea: the smallest diffusion time is a random variable.

For every optimiser step one truncation time tau is drawn from a prior on [eps, tau_max], and the
whole batch trains on times in [tau, T] (Kim et al. 2022, arXiv 2106.05527, section 4). A fixed
truncation, as used by everybody before, is the prior with all of its mass at eps.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["HardTruncation", "LowDiscrepancy", "PowerPrior", "TruncationPrior"]

# 2^64 over the golden ratio: its multiples modulo 2^64 are spread as evenly as those of any number.
_GOLDEN = 0x9E3779B97F4A7C15


class TruncationPrior(abc.ABC):
    """A law of the truncation time tau. All results are float64: tau spans five decades."""

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

    def sample(
        self,
        n: int,
        *,
        step: int | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " n"]:
        """Draw `n` truncation times, float64, on the generator's device (CPU without one).

        `step`, the number of the optimiser step, matters to `LowDiscrepancy` alone.
        """
        device = torch.device("cpu") if generator is None else generator.device
        return self.icdf(torch.rand(n, generator=generator, device=device, dtype=torch.float64))


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
        if not self.eps > 0.0:
            raise ValueError(f"PowerPrior: eps={self.eps}: need eps > 0, e.g. 1e-5")
        if not self.eps < self.tau_max <= 1.0:
            raise ValueError(
                f"PowerPrior: eps={self.eps}, tau_max={self.tau_max}: need eps < tau_max <= 1"
            )

    @property
    def _rate(self) -> float:
        return self.k - 1.0

    @property
    def _range(self) -> float:
        return math.log(self.tau_max / self.eps)

    def log_prob(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log-density at `tau`; minus infinity outside [eps, tau_max]."""
        tau = tau.double()
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
        s = (tau.double() / self.eps).clamp(min=1.0).log().clamp(max=self._range)
        if self._rate == 0.0:
            return s / self._range
        return torch.expm1(-self._rate * s) / math.expm1(-self._rate * self._range)

    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The truncation time at quantile `u` in [0, 1]."""
        u = u.double()
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
        tau = tau.double()
        return torch.where(tau == self.eps, 0.0, -math.inf).double()

    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1 from eps on, 0 below."""
        return (tau.double() >= self.eps).double()

    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Eps, whatever `u`."""
        return torch.full_like(u, self.eps, dtype=torch.float64)


@dataclass(frozen=True)
class LowDiscrepancy(TruncationPrior):
    """A prior whose draws cover it evenly over the steps, and are the same for every resume.

    Step i takes the quantile `shift + i / golden ratio` modulo 1, with a shift by the seed (a
    Kronecker sequence). Over the seeds each draw follows the prior; over any n steps in a row the
    share of draws below a time differs from its probability by order `log(n) / n`, not `n^-1/2`.
    A step that draws n times takes the next n of the sequence.

    Args:
        prior: the law.
        seed: decides the shift.
    """

    prior: TruncationPrior
    seed: int = 0
    eps: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", self.prior.eps)

    def log_prob(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The prior's."""
        return self.prior.log_prob(tau)

    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The prior's."""
        return self.prior.cdf(tau)

    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The prior's."""
        return self.prior.icdf(u)

    def sample(
        self, n: int, *, step: int | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, " n"]:
        """The `n` draws of a step, a function of seed and step; without a step, at random."""
        if step is None:
            return super().sample(n, generator=generator)
        # Whole numbers, so that no step is too late to be exact.
        turns = [i * _GOLDEN % 2**64 / 2**64 for i in range(n * step, n * (step + 1))]
        shift = torch.rand(
            1, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
        )
        device = torch.device("cpu") if generator is None else generator.device
        return self.icdf(((torch.tensor(turns, dtype=torch.float64) + shift) % 1.0).to(device))
