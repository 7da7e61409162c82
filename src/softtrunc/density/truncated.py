"""Truncated-normal dequantisation: the noise of time eps, cut to the cell of each level.

The cells part the line: level i of L has that of width w around its middle c_i, the first and the
last reach out to infinity. With `p` the model's density of `x_eps / alpha`, the probability of a
level is its integral over the cell, and for every law q on the cell

    log P(c) = log E_q[p(y) / q(y)] >= E_q[log p(y) - log q(y)].

Here y = c + (sigma / alpha) z, z standard normal cut to |c - y| <= w / 2: where the model was
trained on the levels themselves, x_eps of the data is of this law but for what the cut takes away,
and next to nothing is lost (Zheng et al. 2023, arXiv 2305.03935, section 4.2; no training). There
is no step back from eps to the data to pay for: y lies in the cell, so the level is known. As
`x_eps = alpha y`, `log p(y) = log p_eps(x_eps) + D log alpha`, and all in all

    -log P(c) <= E[-log p_eps(x_eps) + log q(x_eps | c)],
    log q(x_eps | c) = sum over dimensions of -z^2 / 2 - log sqrt(2 pi) - log Z - log sigma

with Z the normal probability of the cut, in closed form as the mean, square and entropy of z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softtrunc.density.bits import check_grid
from softtrunc.density.dequantize import bin_index
from softtrunc.density.normal import log_normal_interval, time_of_noise
from softtrunc.noise import Noise
from softtrunc.sde import SDE, widen

SIGMAS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 3.0, 4.0)
"""Half a cell in standard deviations of the noise: where the best eps is looked for."""

_SMALLEST = 2.0**-54
"""Uniform numbers stay so far from 0, where a quantile has no end."""

_LEAST_GAP = 1e-20
"""Of log-SNR, so that nothing is divided by 0 at eps itself."""


def truncated_times(
    sde: SDE,
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    sigmas: tuple[float, ...] = SIGMAS,
    least: float = 1e-5,
) -> dict[float, float]:
    """Times at which half a level's cell is so many standard deviations `sigma / alpha` wide.

    Args:
        sde: the forward diffusion.
        levels: number of cells.
        value_range: low and high of the levels' cells.
        sigmas: how many.
        least: in the place of earlier times.

    Returns:
        The times by the number of sigmas there, the latest first; at `least` it is what it is.

    Raises:
        ValueError: if levels or range are out of range, or the diffusion has too little noise.
    """
    half = 0.5 * check_grid(levels, value_range) / levels
    found = {}
    for count in sorted(sigmas):
        time = time_of_noise(sde, half / count, least)
        if time is not None:
            there = sigmas_in_half_a_cell(sde, time, levels, value_range)
            found[count if time > least else there] = time
    if not found:
        raise ValueError(
            f"truncated_times: {levels} levels over {value_range} are too coarse for all of this "
            "diffusion's noise: choose eps (evaluation.truncated_eps) yourself"
        )
    return found


def sigmas_in_half_a_cell(
    sde: SDE, time: float, levels: int = 256, value_range: tuple[float, float] = (-1.0, 1.0)
) -> float:
    """How many standard deviations `sigma / alpha` reach from a level to the edge of its cell.

    Raises:
        ValueError: if levels or range are out of range.
    """
    half = 0.5 * check_grid(levels, value_range) / levels
    return half * float((0.5 * sde.log_snr(torch.tensor(time, dtype=torch.float64))).exp())


class LaterNoise(NamedTuple):
    """The noise in x_t, `(x_t - alpha x) / sigma`, of each example.

    - `z` (B, *event): a draw.
    - `target` (B, *event): `-sigma grad log q(x_t | x)` there; z itself for Gaussian noise.
    - `square` (B,): E ||z||^2.
    """

    z: Float[Tensor, "b *event"]
    target: Float[Tensor, "b *event"]
    square: Float[Tensor, " b"]


@dataclass(frozen=True)
class TruncatedNormal:
    """Noise z of each dimension, standard normal on (-edge, edge).

    - `edge` (): half a cell over `sigma / alpha`.
    - `first`, `last` (B, *event): where the level is the lowest, whose z has no lower limit, and
      the highest, whose z has no upper one.

    All is float64, on the CPU for a device without it. Sums are over dimensions, in nats.
    """

    edge: Float[Tensor, ""]
    first: Bool[Tensor, "b *event"]
    last: Bool[Tensor, "b *event"]

    @classmethod
    def around(
        cls,
        x: Float[Tensor, "b *event"],
        alpha: Float[Tensor, ""],
        sigma: Float[Tensor, ""],
        levels: int = 256,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> TruncatedNormal:
        """The noise of levels in the middle of their cells.

        Args:
            x: the levels, as of `bin_centers`.
            alpha: of the time eps.
            sigma: of the time eps.
            levels: number of cells.
            value_range: low and high of the cells.

        Raises:
            ValueError: if `x` is not in the middle of its cells.
        """
        home = torch.device("cpu") if x.device.type == "mps" else x.device
        index = bin_index(x, levels, value_range).to(home)
        half = 0.5 * check_grid(levels, value_range) / levels
        edge = half * (widen(alpha, home) / widen(sigma, home))
        return cls(edge, index == 0, index == levels - 1)

    @property
    def _end(self) -> Tensor:
        return self.first | self.last

    @property
    def _direction(self) -> Tensor:
        """-1 where the noise has no lower limit, 1 where it has no upper one, else 0."""
        return self.last.to(self.edge) - self.first.to(self.edge)

    @property
    def _log_mass(self) -> tuple[Tensor, Tensor]:
        """Log of the normal probability between the limits, two-sided and one-sided."""
        return torch.erf(self.edge / math.sqrt(2.0)).log(), torch.special.log_ndtr(self.edge)

    @property
    def _hazards(self) -> tuple[Tensor, Tensor]:
        """Normal density at `edge` over those probabilities."""
        log_density = -0.5 * self.edge.square() - 0.5 * math.log(2.0 * math.pi)
        inner, outer = self._log_mass
        return (log_density - inner).exp(), (log_density - outer).exp()

    def _pick(self, inner: Tensor, outer: Tensor) -> Tensor:
        return torch.where(self._end, outer, inner)

    def icdf(self, uniform: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        """The noise that numbers in [0, 1) become; those of the ends count from the far side."""
        v = uniform.to(self.edge).clamp(min=_SMALLEST)
        inner = math.sqrt(2.0) * torch.erfinv((2.0 * v - 1.0) * self._log_mass[0].exp())
        outer = -self._direction * torch.special.ndtri(v * self._log_mass[1].exp())
        return self._pick(inner, outer)

    def draw(self, streams: Noise) -> Float[Tensor, "b *event"]:
        """z, from the streams of the batch."""
        return self.icdf(streams.uniform(self.first, self.edge.dtype))

    def log_prob(self, z: Float[Tensor, "b *event"]) -> Float[Tensor, " b"]:
        """Log-density of z between its limits."""
        inner, outer = self._log_mass
        terms = -0.5 * widen(z, self.edge.device).square() - 0.5 * math.log(2.0 * math.pi)
        return (terms - self._pick(inner, outer)).flatten(1).sum(1)

    def entropy(self) -> Float[Tensor, " b"]:
        """`E[-log_prob(z)]`, exactly."""
        inner, outer = self._log_mass
        terms = 0.5 * math.log(2.0 * math.pi) + self._pick(inner, outer)
        return (terms + 0.5 * self.mean_square()).flatten(1).sum(1)

    def mean(self) -> Float[Tensor, "b *event"]:
        """E z: 0 but at the ends."""
        return self._direction * self._hazards[1]

    def mean_square(self) -> Float[Tensor, "b *event"]:
        """E z^2."""
        inner, outer = self._hazards
        return self._pick(1.0 - 2.0 * self.edge * inner, 1.0 - self.edge * outer)

    def _shares(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        gap = widen(gap, self.edge.device).clamp(min=_LEAST_GAP)
        gap = gap.reshape(-1, *[1] * (self.first.ndim - 1))
        return (-0.5 * gap).exp(), (-torch.expm1(-gap)).sqrt()

    def moments(self, gap: Float[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """Mean (B, *event) and mean of the squared norm (B,) of the noise in x_t, as of `later`."""
        share, rest = self._shares(gap)
        square = share.square() * self.mean_square() + rest.square()
        return share * self.mean(), square.flatten(1).sum(1)

    def later(self, streams: Noise, gap: Float[Tensor, " b"]) -> LaterNoise:
        """Noise in x_t at later times.

        `x_t = (alpha_t / alpha_eps) x_eps + ...` makes it `z_t = r z + s fresh` with
        `r^2 = SNR(t) / SNR(eps)` and `r^2 + s^2 = 1`: standard normal but for the cut.

        Args:
            streams: of the batch.
            gap: log-SNR at eps minus that at t, >= 0.
        """
        share, rest = self._shares(gap)
        fresh = streams.draw(self.first.shape, self.edge.device, self.edge.dtype)
        z_t = share * self.draw(streams) + rest * fresh
        return LaterNoise(z_t, self._target(z_t, share, rest), self.moments(gap)[1])

    def _target(self, z_t: Tensor, share: Tensor, rest: Tensor) -> Tensor:
        """`-sigma grad log q(x_t | x)`.

        Given z_t, the noise at eps is `N(r z_t, s^2)` before the cut. So the density of z_t is
        `phi(z_t) P(cut | z_t) / Z`, and minus the derivative of its logarithm

            z_t + (r / s) (phi(b) - phi(a)) / (Phi(b) - Phi(a)),  a, b = (-+edge - r z_t) / s;

        a and b are infinite at the ends.
        """
        a, b = ((limit - share * z_t) / rest for limit in (-self.edge, self.edge))
        a, b = torch.where(self.first, -torch.inf, a), torch.where(self.last, torch.inf, b)
        log_mass = log_normal_interval(a, b) + 0.5 * math.log(2.0 * math.pi)
        densities = (-0.5 * b.square() - log_mass).exp() - (-0.5 * a.square() - log_mass).exp()
        return z_t + (share / rest) * densities
