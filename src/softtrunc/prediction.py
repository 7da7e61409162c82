"""What a network is told of the noise, and how the noise in its input follows from its output.

With `x = alpha x_0 + sigma z` and F the output of the network, of whichever kind it is:

| prediction | F is | z |
|---|---|---|
| "noise" | z | `F` |
| "scaled_score" | `sigma score` | `-F` |
| "velocity" | `alpha z - sigma x_0` | `(alpha F + sigma x) / (alpha^2 + sigma^2)` |
| "sample" | x_0 | `(x - alpha F) / sigma` |
| "edm" | see below | `(sigma c - a F) / r` |

"edm" is the preconditioning of Karras et al. 2022 (arXiv 2206.00364, table 1): in the state
`y = x / alpha`, whose noise has the standard deviation `s = sigma / alpha`, the denoised example is
`c_skip y + c_out F(c_in y, c_noise)`. With `a = alpha sigma_data` and `r^2 = sigma^2 + a^2` the
network's input is `c = c_in y = x / r`; neither alpha nor sigma is divided by, so that the noise is
as exact where alpha vanishes as where sigma does. Data are taken in [-1, 1] there, as the network
sees them; x_0 of "velocity" and "sample" is in the data's own range.

Velocity: Salimans & Ho 2022 (arXiv 2202.00512), appendix D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE, Conditioning, Prediction, expand_to, widen


def _time_log_snr_blend(sde: SDE, t: Tensor) -> Tensor:
    """F = log(1 - alpha^2 + c) + B, B = -2 log alpha: like log sigma at small t, then like B."""
    b = -2.0 * sde.log_alpha(t)
    return (1e-3 - torch.expm1(-b)).log() + b


def noise_label(
    sde: SDE, conditioning: Conditioning, t: Float[Tensor, "*batch"], *, half_width: float = 1.0
) -> Float[Tensor, "*batch"]:
    """The number that tells a network how noisy its input is.

    - "time": `999 t` (DDPM++).
    - "unbounded_time": `999 (F(t) - F(1e-5)) / (F(T) - F(1e-5))`, F = log(1 - alpha^2 + 1e-3)
      - 2 log alpha, finer at small t (UDDPM++; VP and sub-VP only).
    - "reversed_time": `999 (T - t)`, steps counted from the noisiest (discrete VE models).
    - "timestep": the step of a discrete schedule, counted from 0 (DDPM; `TabulatedVPSDE` only).
    - "log_sigma": `log sigma(t)` (NCSN++).
    - "unbounded_sigma": `log sigma` above sigma = 0.01 and `-0.01 / (sigma + 1e-4) - 3.6052`
      below it, finer where sigma is tiny (UNCSN++).
    - "edm": c_noise, `log(sigma / alpha) / 4` with data in [-1, 1]; `half_width` is half the length
      of the range that they are in (Karras et al. 2022, table 1).

    Source: Kim et al. 2022 (arXiv 2106.05527) and its public code.

    Raises:
        ValueError: if the conditioning is unknown or the SDE has no such label.
    """
    t = widen(t)
    if conditioning not in get_args(Conditioning):
        allowed = ", ".join(get_args(Conditioning))
        raise ValueError(f"conditioning {conditioning!r} is unknown: write one of {allowed}")
    if conditioning == "time":
        return 999.0 * t
    if conditioning == "reversed_time":
        return 999.0 * (sde.t_max - t)
    if conditioning == "timestep":
        return sde.timestep(t)
    if conditioning == "edm":
        return -0.125 * sde.log_snr(t) - 0.25 * math.log(half_width)
    if conditioning == "unbounded_time":
        if sde.exploding:
            raise ValueError(
                f'conditioning "unbounded_time" needs a VP or sub-VP SDE, not {type(sde).__name__}:'
                ' write "log_sigma" or "unbounded_sigma"'
            )
        low, high = (_time_log_snr_blend(sde, torch.full_like(t, v)) for v in (1e-5, sde.t_max))
        return 999.0 * (_time_log_snr_blend(sde, t) - low) / (high - low)
    sigma = sde.marginal(t).sigma
    if conditioning == "log_sigma":
        return sigma.log()
    return torch.where(sigma > 0.01, sigma.log(), -0.01 / (sigma + 1e-4) - 3.6052)


class Level(NamedTuple):
    """What a noise level is to a batch: `alpha`, `1 - alpha` and `sigma`, broadcastable to it."""

    alpha: Tensor
    faded: Tensor
    sigma: Tensor

    @classmethod
    def at(cls, sde: SDE, t: Float[Tensor, "*batch"], x: Float[Tensor, "b *event"]) -> Level:
        """The level at `t`, in the precision of `x`."""
        log_alpha = sde.log_alpha(t)
        alpha, sigma = sde.marginal(t)
        return cls(*(expand_to(v, x) for v in (alpha, -torch.expm1(log_alpha), sigma)))


@dataclass(frozen=True)
class Parametrization:
    """How a network's input is made and how its output is read.

    Args:
        prediction: what the output means.
        value_range: the range in which the data are given; networks see [-1, 1].
        sigma_data: for "edm", the standard deviation of the data in [-1, 1].

    Raises:
        ValueError: if one of them is out of what is allowed.
    """

    prediction: Prediction
    value_range: tuple[float, float]
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"prediction {self.prediction!r} is unknown: write one of "
                f"{', '.join(get_args(Prediction))}"
            )
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"value_range {self.value_range}: need finite low < high, e.g. (-1, 1)"
            )
        if not 0.0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data={self.sigma_data}: need a number > 0, e.g. 0.5")

    @property
    def half_width(self) -> float:
        """Half the length of the range: a unit of the network in units of the data."""
        low, high = self.value_range
        return 0.5 * (high - low)

    def network_input(self, x: Float[Tensor, "b *event"], level: Level) -> Tensor:
        """What the network is given for the state `x`."""
        low, high = self.value_range
        if self.prediction == "edm":
            return (x - level.alpha * (0.5 * (low + high))) / self._data_and_total(level)[1]
        return x if (low, high) == (-1.0, 1.0) else (2.0 * x - (low + high)) / (high - low)

    def noise(
        self, output: Float[Tensor, "b *event"], x: Float[Tensor, "b *event"], level: Level
    ) -> Float[Tensor, "b *event"]:
        """The noise in the state `x` that the network's output tells."""
        alpha, faded, sigma = level
        if self.prediction == "noise":
            return output
        if self.prediction == "scaled_score":
            return -output
        if self.prediction == "velocity":
            return (alpha * output + sigma * x) / (alpha.square() + sigma.square())
        if self.prediction == "sample":
            # x - F is exact where both are nearly alike; alpha F would be rounded first.
            return ((x - output) + faded * output) / sigma
        data, total = self._data_and_total(level)
        return (sigma * self.network_input(x, level) - data * output) / total

    def _data_and_total(self, level: Level) -> tuple[Tensor, Tensor]:
        """The standard deviations of the data and of all in the state `x`."""
        data = level.alpha * (self.half_width * self.sigma_data)
        return data, torch.hypot(level.sigma, data)
