"""The sampling section of a recipe: one class for each sampler and what it may be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from softtrunc.recipes.values import Count, Held, Natural, NotNegative, Positive, Section, Time

Grid = Literal["uniform", "reciprocal", "log_snr", "edm", "asinh"]


class _Sampler(Section):
    """What every sampler may be told.

    - `sampler`: which one.
    - `t_end`: the smallest time at which the score is evaluated; null: the SDE's default.
    - `denoise_final`: end with Tweedie's formula at `t_end`.
    - `label`: the class of all samples, by name or number; null: every class in turn; "none":
      without a class. `guidance`: scale of classifier-free guidance; 0: none.
      `guidance_interval`: the values of sigma between which to guide; null: all. These three are
      for runs with `data.labels`.
    - `precision`: of the network "fp32", or "bf16" or "fp16" under autocast; the state stays
      in float32.
    """

    sampler: str
    t_end: Time | None = None
    denoise_final: bool = True
    label: str | None = None
    guidance: Annotated[float, Field(ge=-1.0, le=1e6)] = 0.0
    guidance_interval: tuple[NotNegative, Positive] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _interval(self) -> _Sampler:
        low, high = self.guidance_interval or (0.0, 1.0)
        if not low < high:
            raise ValueError(f"guidance_interval: [{low:g}, {high:g}]: need 0 <= low < high")
        return self


class _FixedSteps(_Sampler):
    """What samplers may be told whose times are known before they start.

    - `steps`: how many.
    - `grid`: which quantity is equally spaced: "uniform" (t), "reciprocal" (1/t), "log_snr", "edm"
      ((sigma / alpha)^(1/7)) or "asinh" (densest where signal and noise are alike); null: t, for
      RVE 1/t.
    """

    steps: Held
    grid: Grid | None = None


class PCSampling(_FixedSteps):
    """Predictor-corrector (Song et al. 2021).

    - `steps`: network evaluations divided by `1 + corrector_steps`.
    - `snr`: signal-to-noise ratio of the Langevin steps.
    - `corrector_steps`: Langevin steps after each predictor step.
    - `predictor`: how the reverse SDE is discretised.
    """

    sampler: Literal["pc"] = "pc"
    steps: Held = 1000
    snr: Positive = 0.16
    corrector_steps: Natural = 1
    predictor: Literal["reverse_diffusion", "ancestral", "euler_maruyama"] = "reverse_diffusion"


class SDESampling(_FixedSteps):
    """The reverse SDE, step by step: Euler-Maruyama or ancestral sampling."""

    sampler: Literal["euler_maruyama", "ancestral"]
    steps: Held = 1000


class ODESampling(_Sampler):
    """Probability-flow ODE with an adaptive Runge-Kutta method.

    - `rtol`, `atol`: tolerances of a step. `max_steps`: attempted steps after which to give up.
    """

    sampler: Literal["ode"] = "ode"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    max_steps: Count = 10_000


class HeunSampling(_FixedSteps):
    """Heun's method on the EDM grid.

    - `churn`: noise put in along the way (S_churn); 0: deterministic.
    - `churn_range`: the values of sigma / alpha between which it is put in; null: no upper bound.
    - `churn_noise`: its standard deviation relative to what the schedule loses (S_noise).
    """

    sampler: Literal["heun"] = "heun"
    steps: Held = 18
    grid: Grid | None = "edm"
    churn: NotNegative = 0.0
    churn_range: tuple[NotNegative, Positive | None] = (0.0, None)
    churn_noise: Positive = 1.0


class DPMSolverSampling(_FixedSteps):
    """DPM-Solver++ in log-SNR.

    - `order`: 1 (DDIM), 2 ("2M") or 3 ("3M").
    - `stochastic`: solve the reverse SDE instead of the probability flow.
    - `grid`: null is "asinh", for order 3 "log_snr".
    """

    sampler: Literal["dpm_solver"] = "dpm_solver"
    steps: Held = 20
    order: Literal[1, 2, 3] = 2
    stochastic: bool = False


Sampling = Annotated[
    PCSampling | SDESampling | ODESampling | HeunSampling | DPMSolverSampling,
    Field(discriminator="sampler"),
]
