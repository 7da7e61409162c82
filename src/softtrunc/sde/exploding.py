"""Diffusions in which the data keep their size and the noise grows over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softtrunc.sde.base import SDE, Grid


@dataclass(frozen=True)
class _VarianceExploding(SDE):
    """What VE and reciprocal VE share: alpha = 1, f = 0, a geometric range of sigma."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"{type(self).__name__}: sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: "
                "need 0 < sigma_min < sigma_max, e.g. 0.01 and 50"
            )

    @property
    def prior_std(self) -> float:
        """sigma_max: the data are small beside it."""
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


@dataclass(frozen=True)
class VESDE(_VarianceExploding):
    """Variance-exploding SDE (Song et al. 2021, eq. 9): sigma geometric in t, alpha = 1.

    ValueError unless 0 < sigma_min < sigma_max, which is about the largest distance of two data.
    """

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.sigma_min) + t * self._log_ratio

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return 2.0 * self._log_ratio * (2.0 * self._log_alpha_sigma(t)[1]).exp()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class ReciprocalVESDE(_VarianceExploding):
    """Reciprocal variance-exploding SDE (Kim et al. 2022): log sigma linear in 1/t.

    `sigma(eps) = sigma_min`, `sigma(1) = sigma_max`, and sigma falls to 0 with t: the score of the
    data is within reach. ValueError unless 0 < sigma_min < sigma_max and 0 < eps < 1.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 50.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.eps < 1.0:
            raise ValueError(f"ReciprocalVESDE: eps={self.eps}: need 0 < eps < 1, e.g. 1e-5")

    @property
    def t_end(self) -> float:
        """eps, where sigma is sigma_min."""
        return self.eps

    @property
    def default_grid(self) -> Grid:
        """1/t, in which log sigma is linear."""
        return "reciprocal"

    @property
    def _span(self) -> float:
        return 1.0 / self.eps - 1.0  # length of [1, 1/eps], where log sigma runs its range

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        descent = (1.0 / t - 1.0) / self._span
        return torch.zeros_like(t), math.log(self.sigma_max) - descent * self._log_ratio

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        # One exponential for sigma^2 / t^2, which vanishes with t: its factors would be 0 * inf.
        t = t.clamp(min=torch.finfo(t.dtype).tiny)
        log_sigma = self._log_alpha_sigma(t)[1]
        return 2.0 * self._log_ratio / self._span * (2.0 * (log_sigma - t.log())).exp()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        descent = (math.log(self.sigma_max) + 0.5 * log_snr) / self._log_ratio
        return 1.0 / (1.0 + descent * self._span)
