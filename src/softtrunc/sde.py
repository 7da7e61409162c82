"""Forward diffusions: how data become noise.

Every SDE here is `dx = f(t) x dt + g(t) dw` on t in [0, 1] with Gaussian transitions
`p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)` (Song et al. 2021, arXiv 2011.13456, section 3.4).
All of them share the identity `d log_snr / dt = -g^2 / sigma^2`, on which importance-sampled
times, solvers and densities rest.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Conditioning = Literal["time", "unbounded_time", "log_sigma", "unbounded_sigma"]
"""What a network is told of the noise; see `softtrunc.score.noise_label`."""

Prediction = Literal["noise", "scaled_score"]
"""What a network's output means: the noise (`-sigma score`) or `sigma score`."""

Grid = Literal["uniform", "reciprocal", "log_snr", "edm", "asinh"]
"""What a sampler's times are equally spaced in; see `softtrunc.samplers.grids`."""


class Marginal(NamedTuple):
    """Scale and standard deviation of `p(x_t | x_0) = N(alpha x_0, sigma^2 I)`."""

    alpha: Float[Tensor, "*batch"]
    sigma: Float[Tensor, "*batch"]


def send(v: Tensor, device: torch.device) -> Tensor:
    """`v` on `device`; where that is safe, the host does not wait for the copy.

    It is safe from pinned memory: from any other, a copy under way could see what `v` is later.
    """
    pinned = v.device.type == "cpu" and device.type == "cuda"
    return v.pin_memory().to(device, non_blocking=True) if pinned else v.to(device)


def expand_to(v: Float[Tensor, "*batch"], x: Float[Tensor, "b *event"]) -> Tensor:
    """`v`, `()` or `(B,)`, in the dtype of `x` to multiply it; a number may stay on the CPU."""
    v = v.to(x.dtype)
    return v if v.ndim == 0 else send(v, x.device).reshape(-1, *([1] * (x.ndim - 1)))


def random_normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers drawn where the generator lives, then moved to `device`."""
    source = device if generator is None else generator.device
    z = torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype)
    return z if device is None else send(z, torch.device(device))


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else (Apple's GPUs) float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(t: Tensor, device: torch.device | None = None) -> Tensor:
    """`t` on `device` in its widest type: schedules span decades, and their scalars are cheap."""
    wide = wide_dtype(device or t.device)
    # On the CPU before it is sent: the device may not have the type it is in.
    return send(t.to(wide) if t.device.type == "cpu" else t, device or t.device).to(wide)


def _narrow(v: Tensor, like: Tensor) -> Tensor:
    return v.to(torch.promote_types(like.dtype, torch.float32))  # never below float32


@dataclass(frozen=True)
class SDE(abc.ABC):
    """Base of the forward diffusions.

    Times have shape `()` or `(B,)` and lie in [0, `t_max`]; results keep the shape and, from
    float32 up, the dtype of the time given. The arithmetic runs in float64 inside (float32 on
    devices without it) with formulas that stay accurate down to t = 1e-5 in either.

    An SDE of your own is a frozen dataclass with the five abstract members; what models, samplers
    and files ask beside is answered from its marginal, and may be overridden.
    """

    @property
    @abc.abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian that stands for the marginal at T."""

    @abc.abstractmethod
    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of alpha and sigma at `t` (wide precision in and out, here and below)."""

    @abc.abstractmethod
    def _drift(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _diffusion_squared(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor: ...

    @property
    def t_max(self) -> float:
        """The largest time T."""
        return 1.0

    @cached_property
    def exploding(self) -> bool:
        """Whether the data keep their size (as in VE) and do not fade (as in VP)."""
        t = torch.tensor(self.t_max, dtype=torch.float64, device="cpu")
        return float(self.marginal(t).alpha) > 0.5

    @property
    def t_end(self) -> float:
        """The time at which samplers stop unless told otherwise."""
        # Where the data fade, a step of 1/1000 below 1e-3 overshoots in thin directions.
        return 1e-5 if self.exploding else 1e-3

    @property
    def default_grid(self) -> Grid:
        """What a sampler's times are equally spaced in unless told otherwise."""
        return "uniform"

    @property
    def conditionings(self) -> tuple[Conditioning, Conditioning]:
        """The usual and the unbounded noise label of networks for this SDE."""
        return ("log_sigma", "unbounded_sigma") if self.exploding else ("time", "unbounded_time")

    @property
    def default_prediction(self) -> Prediction:
        """What a network's output means unless told otherwise."""
        return "scaled_score" if self.exploding else "noise"

    @property
    def default_value_range(self) -> tuple[float, float]:
        """The range of the data unless told otherwise."""
        return (0.0, 1.0) if self.exploding else (-1.0, 1.0)

    @property
    def ancestral_variance(self) -> Literal["transition", "posterior"]:
        """Of an ancestral step's noise: that of `p(x_t | x_s)`, s < t, or `p(x_s | x_t, x_0)`."""
        return "posterior" if self.exploding else "transition"

    def check_smallest_time(self, t: float) -> None:
        """Refuse, with a ValueError, a time outside (0, T), or without noise, in float32."""
        limits = torch.finfo(torch.float32)
        sigma = float(self.marginal(torch.tensor(t, dtype=torch.float64)).sigma)
        if not (0.0 < t < self.t_max * (1.0 - limits.eps) and sigma >= limits.tiny):
            raise ValueError(f"{t}: need a time in (0, {self.t_max}) whose noise float32 holds")

    def to_dict(self) -> dict[str, Any]:
        """The form on disk: the fields, and as "type" the class, others' as "package.module:Class".

        Raises:
            ValueError: the class is no dataclass, so that its fields may not say all.
        """
        cls, own = type(self), ", ".join(cls.__name__ for cls in SDES.values())
        if "__dataclass_fields__" not in vars(cls):
            raise ValueError(
                f"{cls.__name__} cannot be saved: only {own} and dataclasses have a form on disk: "
                f"write @dataclass(frozen=True) above class {cls.__name__}"
            )
        path = "" if cls in SDES.values() else f"{cls.__module__}:"
        return {"type": path + cls.__qualname__, **asdict(self)}

    def marginal(self, t: Float[Tensor, "*batch"]) -> Marginal:
        """`alpha(t)` and `sigma(t)`, each of the shape of `t`."""
        log_alpha, log_sigma = self._log_alpha_sigma(widen(t))
        return Marginal(_narrow(log_alpha.exp(), t), _narrow(log_sigma.exp(), t))

    def drift(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The scalar `f(t)` of the linear drift `f(t) x`."""
        return _narrow(self._drift(widen(t)), t)

    def diffusion(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The diffusion coefficient `g(t) >= 0`."""
        return _narrow(self._diffusion_squared(widen(t)).sqrt(), t)

    def log_alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`log alpha(t)`, accurate where alpha is nearly 1."""
        return _narrow(self._log_alpha_sigma(widen(t))[0], t)

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`log(alpha^2 / sigma^2)`, strictly decreasing in `t`."""
        log_alpha, log_sigma = self._log_alpha_sigma(widen(t))
        return _narrow(2.0 * (log_alpha - log_sigma), t)

    def time_of_log_snr(self, log_snr: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The time whose log-SNR is `log_snr`: the inverse of `log_snr`."""
        return _narrow(self._time_of_log_snr(widen(log_snr)), log_snr)

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw x_T of the given shape `(B, *event)` from `N(0, prior_std^2 I)`."""
        z = random_normal(shape, generator=generator, device=device, dtype=dtype)
        return self.prior_std * z

    def prior_log_prob(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, " b"]:
        """Log-density in nats of `x` under `N(0, prior_std^2 I)`, one each, in the widest type."""
        flat = widen(x).reshape(x.shape[0], math.prod(x.shape[1:]))
        log_norm = math.log(self.prior_std) + 0.5 * math.log(2.0 * math.pi)
        return -0.5 * (flat / self.prior_std).square().sum(1) - flat.shape[1] * log_norm

    def perturb(
        self,
        x: Float[Tensor, "b *event"],
        t: Float[Tensor, "*batch"],
        noise: Float[Tensor, "b *event"],
    ) -> Float[Tensor, "b *event"]:
        """`x_t = alpha(t) x + sigma(t) noise`."""
        alpha, sigma = self.marginal(t)
        return expand_to(alpha, x) * x + expand_to(sigma, x) * noise


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


SDES: dict[str, type[SDE]] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE, "rve": ReciprocalVESDE}
"""The SDEs of this package by the name that recipes give them."""
