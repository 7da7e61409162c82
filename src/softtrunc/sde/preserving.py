"""Diffusions in which the data fade: variance-preserving and sub-variance-preserving."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde.base import SDE

_LARGEST_BETAS = 320.0  # alpha(1) = exp(-(beta_min + beta_max) / 4) is to be a float32


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """What VP and sub-VP share: `beta(t) = beta_min + (beta_max - beta_min) t`."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        where = f"{type(self).__name__}: beta_min={self.beta_min}, beta_max={self.beta_max}"
        if not 0.0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"{where}: need 0 < beta_min <= beta_max, e.g. 0.1 and 20")
        if self.beta_min + self.beta_max > _LARGEST_BETAS:
            too_large = (
                f"their sum is over {_LARGEST_BETAS}: at t = 1 float32 sees no data any more"
            )
            raise ValueError(f"{where}: {too_large}; write e.g. 0.1 and 20")

    prior_std = 1.0  # almost nothing of the data is left at T

    def beta(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The noise rate `beta(t)`."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integrated_beta(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`B(t)`, the integral of beta over [0, t]."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _time_of_integrated_beta(self, b: Tensor) -> Tensor:
        # The rationalised root of the quadratic: no cancellation at small B.
        slope = self.beta_max - self.beta_min
        return 2.0 * b / (self.beta_min + (self.beta_min**2 + 2.0 * slope * b).sqrt())

    def _drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance-preserving SDE (Song et al. 2021, eq. 11): alpha^2 + sigma^2 = 1.

    `beta_min` is beta(0), `beta_max` beta(1). ValueError unless 0 < beta_min <= beta_max.
    """

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.integrated_beta(t)
        return -0.5 * b, 0.5 * torch.log(-torch.expm1(-b))

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integrated_beta(torch.nn.functional.softplus(-log_snr))


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-variance-preserving SDE (Song et al. 2021, eq. 13): sigma = 1 - alpha^2.

    `beta_min` is beta(0), `beta_max` beta(1). ValueError unless 0 < beta_min <= beta_max.
    """

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.integrated_beta(t)
        return -0.5 * b, torch.log(-torch.expm1(-b))

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return self.beta(t) * -torch.expm1(-2.0 * self.integrated_beta(t))

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # alpha / sigma = 1 / (2 sinh(B / 2)).
        b = 2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr))
        return self._time_of_integrated_beta(b)
