"""Heun's method on the noise level: the deterministic and the churned sampler of EDM."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from softtrunc.samplers.base import Call, FixedStepSampler, State
from softtrunc.samplers.grids import Grid, Point, point_at
from softtrunc.sde import SDE


@dataclass(frozen=True)
class Heun(FixedStepSampler):
    """Heun's second-order method for the probability flow in `sigma / alpha`.

    With `u = x / alpha` and `r = sigma / alpha` the flow of every SDE is `du/dr = (u - D) / r`,
    D the denoised estimate. Two network calls a step, one in the final denoising:
    `2 steps - 1` in all. `steps`, `t_end`, `denoise_final` and `grid`, here "edm" by default, are
    those of `FixedStepSampler`. Source: Karras et al. 2022 (arXiv 2206.00364), algorithms 1 and 2.

    Args:
        churn: total amount of noise put in along the way (S_churn), >= 0; 0 is deterministic.
        churn_range: the values of `sigma / alpha` between which noise is put in, low < high; None
            stands for infinity.
        churn_noise: standard deviation of that noise relative to what the schedule loses
            (S_noise), > 0; a little above 1 makes up for what a network over-smooths.

    Raises:
        ValueError: if an option is out of range.
    """

    steps: int = 18
    _: KW_ONLY
    grid: Grid | None = "edm"
    churn: float = 0.0
    churn_range: tuple[float, float | None] = (0.0, math.inf)
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.churn_range
        high = math.inf if high is None else high
        object.__setattr__(self, "churn_range", (low, high))
        if not (self.churn >= 0.0 and 0.0 <= low < high and self.churn_noise > 0.0):
            raise ValueError(
                f"Heun: churn={self.churn}, churn_range={self.churn_range}, churn_noise="
                f"{self.churn_noise}: need churn >= 0, 0 <= low < high and churn_noise > 0"
            )

    def _step(self, call: Call, state: State, here: Point, there: Point) -> State:
        x, here = self._raise_noise(call, state.x, here)
        denoised = call.denoise(x, here)
        u, r, r_next = x / here.alpha, here.noise_ratio, there.noise_ratio
        slope = (u - denoised) / r
        u_next = u + (r_next - r) * slope
        slope_next = (u_next - call.denoise(there.alpha * u_next, there)) / r_next
        u_next = u + 0.5 * (r_next - r) * (slope + slope_next)
        return State(there.alpha * u_next, denoised)

    def _raise_noise(self, call: Call, x: Tensor, here: Point) -> tuple[Tensor, Point]:
        """Put noise in and go back in time as far as it belongs, but never beyond T."""
        r = here.noise_ratio
        low, high = self.churn_range
        if self.churn == 0.0 or here.t >= call.sde.t_max or not low <= r <= (high or math.inf):
            return x, here
        raised = r * (1.0 + min(self.churn / self.steps, math.sqrt(2.0) - 1.0))
        back = point_at(call.sde, min(_time_of_ratio(call.sde, raised), call.sde.t_max))
        extra = self.churn_noise * math.sqrt(back.noise_ratio**2 - r**2)
        return back.alpha * (x / here.alpha + extra * call.noise.like(x)), back


def _time_of_ratio(sde: SDE, ratio: float) -> float:
    log_snr = torch.tensor(-2.0 * math.log(ratio), dtype=torch.float64)
    return float(sde.time_of_log_snr(log_snr))
