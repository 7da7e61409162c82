"""The stochastic samplers of Song et al. 2021: Langevin steps between steps of the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from softtrunc.noise import Noise
from softtrunc.samplers.base import Call, FixedStepSampler, State
from softtrunc.samplers.grids import Grid, Point, step_length
from softtrunc.score import tweedie
from softtrunc.sde import SDE, expand_to

Predictor = Literal["reverse_diffusion", "ancestral", "euler_maruyama"]
"""How the reverse SDE is discretised.

With the transition `p(x_t | x_s) = N(a x_s, b^2 I)` of one interval, s < t:

- "reverse_diffusion": `(2 - a) x + b^2 score`, noise b (Song et al. 2021, eq. 46).
- "ancestral": `(x + b^2 score) / a`, the mean of `p(x_s | x_t, D)`; the noise is the SDE's
  (`sde.ancestral_variance`): b for VP and sub-VP (DDPM; Song et al. 2021, eq. 4), the posterior's
  own `b sigma_s / sigma_t` for VE and RVE (Song et al. 2021, appendix F).
- "euler_maruyama": `x - (f x - g^2 score) h`, noise `g sqrt(h)`.
"""


@dataclass(frozen=True)
class PredictorCorrector(FixedStepSampler):
    """At each time Langevin steps at that noise level, then a step of the reverse SDE.

    The Langevin step is `x + e score + sqrt(2 e) z`, `e = 2 a^2 (snr |z| / |score|)^2` with a^2 the
    squared scale of the interval's transition (1 for VE and RVE, 1 - beta_i for VP). The norms are
    averaged over the batch; with `seeds`, where a sample must not depend on its batch, |z|^2 is its
    expectation D and |score|^2 the sample's own plus 32 / sigma^2. The stationary variance of the
    steps is about 1 + snr^2 times the true one. `steps (1 + corrector_steps)` network calls.

    Source: Song et al. 2021 (arXiv 2011.13456), algorithms 2 to 5. The public code's
    beta_i = beta(t_i) / N is here 1 - (alpha_i / alpha_next)^2: the same to first order in 1/N, and
    below 1 for steps of any length. `steps`, `t_end`, `denoise_final` and `grid` are those of
    `FixedStepSampler`.

    Args:
        snr: signal-to-noise ratio of the Langevin steps, > 0.
        corrector_steps: Langevin steps at each time, >= 0.
        predictor: how the reverse SDE is discretised; see `Predictor`.

    Raises:
        ValueError: if an option is out of range.
    """

    steps: int = 1000
    snr: float = 0.16
    corrector_steps: int = 1
    predictor: Predictor = "reverse_diffusion"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.snr > 0.0:
            raise ValueError(f"PredictorCorrector: snr={self.snr}: need snr > 0, e.g. 0.16")
        if self.corrector_steps < 0:
            raise ValueError(
                f"PredictorCorrector: corrector_steps={self.corrector_steps}: need 0 or more"
            )
        if self.predictor not in get_args(Predictor):
            raise ValueError(
                f"predictor {self.predictor!r} is unknown: "
                f"write one of {', '.join(get_args(Predictor))}"
            )

    def _step(self, call: Call, state: State, here: Point, there: Point) -> State:
        x = self._correct(call, state.x, here, (here.alpha / there.alpha) ** 2)
        return _predict(self.predictor, self.grid, call, x, here, there)

    def _last_step(self, call: Call, state: State, here: Point) -> State:
        x = self._correct(call, state.x, here, here.alpha**2)
        return super()._last_step(call, State(x), here)

    def _correct(self, call: Call, x: Tensor, here: Point, squared_scale: float) -> Tensor:
        for _ in range(self.corrector_steps):
            x = langevin_step(x, call.score(x, here.t), call.noise, self.snr, here, squared_scale)
        return x


@dataclass(frozen=True)
class EulerMaruyama(FixedStepSampler):
    """Euler-Maruyama for the reverse SDE: `x - (f x - g^2 score) h + g sqrt(h) z`.

    One network call a step: `steps` in all. Strong and weak order 1/2 and 1 in the step. The step
    is taken in the variable of the grid, so that RVE, whose g^2 spans decades in t, works too.
    Options: see `FixedStepSampler`. Source: Song et al. 2021 (arXiv 2011.13456), appendix E.
    """

    steps: int = 1000

    def _step(self, call: Call, state: State, here: Point, there: Point) -> State:
        return _predict("euler_maruyama", self.grid, call, state.x, here, there)


@dataclass(frozen=True)
class Ancestral(FixedStepSampler):
    """Ancestral sampling: each step draws from a Gaussian around the mean of `p(x_s | x_t, D)`.

    One network call a step: `steps` in all. Of the two variances that Ho et al. 2020 (arXiv
    2006.11239, section 3.2) allow, VP and sub-VP take the larger, beta_i, and VE and RVE the
    posterior's own, as in Song et al. 2021 (arXiv 2011.13456), appendix F. With the posterior's
    own everywhere it would be first-order `DPMSolver(stochastic=True)`. Options: see
    `FixedStepSampler`.
    """

    steps: int = 1000

    def _step(self, call: Call, state: State, here: Point, there: Point) -> State:
        return _predict("ancestral", self.grid, call, state.x, here, there)


class Transition(NamedTuple):
    """A Gaussian step: `mean` of shape `(B, *event)` and one standard deviation for all."""

    mean: Tensor
    std: float


def _predict(
    predictor: Predictor, grid: Grid | None, call: Call, x: Tensor, here: Point, there: Point
) -> State:
    score = call.score(x, here.t)
    match predictor:
        case "reverse_diffusion":
            step = reverse_diffusion_step(x, score, here, there)
        case "ancestral":
            step = ancestral_step(call.sde, x, score, here, there)
        case "euler_maruyama":
            h = step_length(call.sde, grid, here, there)
            step = euler_maruyama_step(call.sde, x, score, here.t, h)
    return State(
        step.mean + step.std * call.noise.like(x), tweedie(x, score, here.alpha, here.sigma)
    )


def _interval(here: Point, there: Point) -> tuple[float, float]:
    """Scale a and variance b^2 of `p(x_here | x_there)`, `there` being the earlier time."""
    scale = here.alpha / there.alpha
    # b^2 = sigma^2 - a^2 sigma_next^2, written so that close points lose no digits.
    shrink = math.expm1(2.0 * (here.half_log_snr - there.half_log_snr))
    return scale, -shrink * here.sigma**2


def reverse_diffusion_step(x: Tensor, score: Tensor, here: Point, there: Point) -> Transition:
    """The reverse of the forward chain's own discretisation (Song et al. 2021, eq. 46)."""
    scale, variance = _interval(here, there)
    return Transition((2.0 - scale) * x + variance * score, math.sqrt(variance))


def ancestral_step(sde: SDE, x: Tensor, score: Tensor, here: Point, there: Point) -> Transition:
    """The chain's posterior mean, with the noise that `Predictor` states for the SDE."""
    scale, variance = _interval(here, there)
    std = math.sqrt(variance)
    if sde.ancestral_variance == "posterior":
        std *= there.sigma / here.sigma
    return Transition((x + variance * score) / scale, std)


def euler_maruyama_step(sde: SDE, x: Tensor, score: Tensor, t: float, h: float) -> Transition:
    """Euler's step of length `h` > 0 in t for the reverse SDE, with everything taken at `t`."""
    time = torch.tensor(t, dtype=torch.float64)
    f, g = float(sde.drift(time)), float(sde.diffusion(time))
    return Transition(x - (f * x - g**2 * score) * h, g * math.sqrt(h))


_NOISE_DIMENSIONS = 32
"""A lone sample's `|score|^2` counts as if it had so many more dimensions of pure noise, each
1 / sigma^2. A step size that follows one sample's score widens the marginal, by a factor of about
1 + 2 / D, and where a score of few dimensions vanishes it would have no bound. In the dimensions of
an image the addition changes the size by a per cent or so."""


def langevin_step(
    x: Tensor, score: Tensor, noise: Noise, snr: float, at: Point, squared_scale: float = 1.0
) -> Tensor:
    """One Langevin step whose size keeps the signal-to-noise ratio of its two terms."""
    z = noise.like(x)
    if noise.per_sample:
        dim = z[0].numel() if len(z) else 1
        own = score.flatten(1).square().sum(1)
        ratio = dim / (own + _NOISE_DIMENSIONS / at.sigma**2)
    else:
        z_norm, score_norm = (v.flatten(1).norm(dim=1).mean() for v in (z, score))
        ratio = (z_norm / score_norm).square()
    size = expand_to(2.0 * squared_scale * snr**2 * ratio, x)
    return x + size * score + (2.0 * size).sqrt() * z
