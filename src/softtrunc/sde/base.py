"""What every forward diffusion answers, and what follows from its marginal."""

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

from softtrunc.sde.tensors import expand_to, narrow, random_normal, widen

Conditioning = Literal[
    "time",
    "unbounded_time",
    "reversed_time",
    "timestep",
    "log_sigma",
    "unbounded_sigma",
    "edm",
]
"""What a network is told of the noise; see `softtrunc.score.noise_label`."""

Prediction = Literal["noise", "scaled_score", "velocity", "sample", "edm"]
"""What a network's output means; see `softtrunc.prediction`."""

Grid = Literal["uniform", "reciprocal", "log_snr", "edm", "asinh"]
"""What a sampler's times are equally spaced in; see `softtrunc.samplers.grids`."""


class Marginal(NamedTuple):
    """Scale and standard deviation of `p(x_t | x_0) = N(alpha x_0, sigma^2 I)`."""

    alpha: Float[Tensor, "*batch"]
    sigma: Float[Tensor, "*batch"]


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

    def timestep(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:  # noqa: ARG002
        """The step of a discrete schedule at `t`, counted from 0 and between whole numbers too.

        Raises:
            ValueError: the SDE is not made of a discrete schedule.
        """
        raise ValueError(
            f'conditioning "timestep" needs a TabulatedVPSDE, not {type(self).__name__}: write '
            f'"{self.conditionings[0]}"'
        )

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
        cls = type(self)
        if "__dataclass_fields__" not in vars(cls):
            raise ValueError(
                f"{cls.__name__} cannot be saved: of others' SDEs dataclasses alone have a form on "
                f"disk: write @dataclass(frozen=True) above class {cls.__name__}"
            )
        path = "" if cls.__module__.startswith(f"{__package__}.") else f"{cls.__module__}:"
        return {"type": path + cls.__qualname__, **asdict(self)}

    def marginal(self, t: Float[Tensor, "*batch"]) -> Marginal:
        """`alpha(t)` and `sigma(t)`, each of the shape of `t`."""
        log_alpha, log_sigma = self._log_alpha_sigma(widen(t))
        return Marginal(narrow(log_alpha.exp(), t), narrow(log_sigma.exp(), t))

    def drift(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The scalar `f(t)` of the linear drift `f(t) x`."""
        return narrow(self._drift(widen(t)), t)

    def diffusion(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The diffusion coefficient `g(t) >= 0`."""
        return narrow(self._diffusion_squared(widen(t)).sqrt(), t)

    def log_alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`log alpha(t)`, accurate where alpha is nearly 1."""
        return narrow(self._log_alpha_sigma(widen(t))[0], t)

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`log(alpha^2 / sigma^2)`, strictly decreasing in `t`."""
        log_alpha, log_sigma = self._log_alpha_sigma(widen(t))
        return narrow(2.0 * (log_alpha - log_sigma), t)

    def time_of_log_snr(self, log_snr: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The time whose log-SNR is `log_snr`: the inverse of `log_snr`."""
        return narrow(self._time_of_log_snr(widen(log_snr)), log_snr)

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
