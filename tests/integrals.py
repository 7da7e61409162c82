"""Integrals over time by quadrature: the truth that random times and truncations must meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from exact import Gaussian
from torch import Tensor


def integrate(
    h: Callable[[Tensor], Tensor],
    low: float | Tensor,
    high: float = 1.0,
    *,
    panels: int = 24,
    nodes: int = 24,
) -> Tensor:
    """The integral of `h` over [low, high], 0 < low, for each `low`, in float64.

    Composite Gauss-Legendre in log t, where everything here is smooth.
    """
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(nodes))
    unit = ((torch.arange(panels, dtype=torch.float64)[:, None] + 0.5 * (x + 1)) / panels).flatten()
    weight = (0.5 * w / panels).repeat(panels)
    start = torch.as_tensor(low, dtype=torch.float64).log()[..., None]
    length = torch.tensor(high, dtype=torch.float64).log() - start
    t = (start + length * unit).exp()
    return (h(t) * t * weight).sum(-1) * length[..., 0]


def expected_error(data: Gaussian, model: Gaussian, t: Tensor) -> Tensor:
    """`E ||sigma score(x_t, t) + z||^2` of one Gaussian's score on another Gaussian's data.

    With `v' = alpha^2 s'^2 + sigma^2` the model's variance at t, `sigma score + z` is
    `(sigma alpha (m' - x_0) + alpha^2 s'^2 z) / v'` in each dimension; x_0 and z are independent.
    """
    alpha, sigma = (v[..., None] for v in data.sde.marginal(t))
    signal = (alpha * model.std).square()
    variance = signal + sigma.square()
    spread = (model.mean - data.mean).square() + data.std.square()
    terms = ((sigma * alpha).square() * spread + signal.square()) / variance.square()
    return terms.sum(-1)


def truncated_loss(
    data: Gaussian,
    model: Gaussian,
    weighting: Callable[[Tensor], Tensor],
    low: float | Tensor,
    high: float = 1.0,
) -> Tensor:
    """`L(model; w, low) = 1/2 integral of w / sigma^2 E ||sigma score + z||^2`, exactly."""

    def integrand(t: Tensor) -> Tensor:
        sigma = data.sde.marginal(t).sigma
        return 0.5 * weighting(t) / sigma.square() * expected_error(data, model, t)

    return integrate(integrand, low, high)
