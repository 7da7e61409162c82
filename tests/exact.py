"""Models whose score is known in closed form at every t: the truth that tests measure against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softtrunc.sde import SDE, expand_to


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, diag(std^2)) with `mean` and `std` of the event's shape."""

    sde: SDE
    mean: Tensor
    std: Tensor

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn((n, *self.mean.shape), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * z

    def moments(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_t, broadcastable to `like` of shape (B, *event)."""
        alpha, sigma = (expand_to(v, like) for v in self.sde.marginal(t))
        mean, std = self.mean.to(like), self.std.to(like)
        return alpha * mean, (alpha * std).square() + sigma.square()

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        mean, var = self.moments(t, x)
        return (mean - x) / var

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Log-density of x_t in nats, (B,)."""
        mean, var = self.moments(t, x)
        terms = -0.5 * ((x - mean).square() / var + var.log() + math.log(2 * math.pi))
        return terms.flatten(1).sum(1)

    def entropy(self) -> float:
        """Differential entropy of the data in nats."""
        return float((self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum())

    def flow_map(self, x: Tensor, t_from: Tensor, t_to: Tensor) -> Tensor:
        """Where the exact probability-flow ODE carries `x` from one time to another."""
        mean0, var0 = self.moments(t_from, x)
        mean1, var1 = self.moments(t_to, x)
        return mean1 + (x - mean0) * (var1 / var0).sqrt()


@dataclass(frozen=True)
class Spoiled:
    """A model whose score is a tenth too large where log-SNR lies between two values."""

    model: Gaussian
    low: float
    high: float

    @property
    def sde(self) -> SDE:
        return self.model.sde

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        log_snr = self.sde.log_snr(t)
        factor = torch.where((log_snr > self.low) & (log_snr < self.high), 1.1, 1.0)
        return expand_to(factor.to(x), x) * self.model.score(x, t)


@dataclass(frozen=True)
class Mixture:
    """Data from sum_j weights_j N(means_j, stds_j^2 I): means (K, *event), the others (K,)."""

    sde: SDE
    means: Tensor
    stds: Tensor
    weights: Tensor

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        j = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn((n, *self.means.shape[1:]), generator=generator, dtype=self.means.dtype)
        return self.means[j] + expand_to(self.stds[j], z) * z

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log of weight times density (B, K), difference to the mean (B, K, D), variance (B, K)."""
        alpha, sigma = (v.to(x).expand(x.shape[0]) for v in self.sde.marginal(t))
        means = self.means.to(x).flatten(1)
        diff = x.flatten(1)[:, None] - alpha[:, None, None] * means
        var = (alpha[:, None] * self.stds.to(x)).square() + sigma.square()[:, None]
        d = means.shape[1]
        log_p = -0.5 * (diff.square().sum(2) / var + d * (2 * math.pi * var).log())
        return log_p + self.weights.to(x).log(), diff, var

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        log_p, diff, var = self._components(x, t)
        posterior = log_p.softmax(1)
        return -(posterior[:, :, None] * diff / var[:, :, None]).sum(1).reshape(x.shape)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Log-density of x_t in nats, (B,)."""
        return self._components(x, t)[0].logsumexp(1)


@dataclass(frozen=True)
class Levels:
    """Independent dimensions, each at `positions` (L,) with probabilities `p` (L,)."""

    sde: SDE
    positions: Tensor
    p: Tensor

    def sample(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Levels, integers of this shape."""
        drawn = torch.multinomial(self.p, math.prod(shape), replacement=True, generator=generator)
        return drawn.reshape(shape)

    def _terms(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log of probability times density, gap to the position, sigma; levels along the end."""
        alpha, sigma = (expand_to(v.to(x), x)[..., None] for v in self.sde.marginal(t))
        gap = alpha * self.positions.to(x) - x[..., None]
        log_p = self.p.to(x).log() - 0.5 * (gap / sigma).square()
        return log_p - (math.sqrt(2 * math.pi) * sigma).log(), gap, sigma

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        log_p, gap, sigma = self._terms(x, t)
        return (log_p.softmax(-1) * gap / sigma.square()).sum(-1)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Log-density of x_t in nats, (B,)."""
        return self._terms(x, t)[0].logsumexp(-1).flatten(1).sum(1)

    def entropy(self) -> float:
        """Of one dimension, in nats."""
        return float(-(self.p * self.p.log()).sum())
