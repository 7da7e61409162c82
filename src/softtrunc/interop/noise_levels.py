"""The noise levels of an SDE, as diffusers' schedulers are told of them.

Their schedulers know one family of states, `y = sqrt(a) (x_0 + rho z)` with data in [-1, 1] and
`a = 1 / (1 + rho^2)`, at 1,000 noise-to-signal ratios `rho`. A state of any of our SDEs is one of
these up to a factor: `x = alpha (centre + half_width y / sqrt(a))` has the ratio
`sigma / alpha = half_width rho` and the same noise z. So VP, sub-VP, VE and RVE models, with data
in [-1, 1] or [0, 1], all look alike from there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import SDE

TRAIN_TIMESTEPS = 1000
"""How many noise levels schedulers are told of unless somebody says otherwise."""

_LEAST_RATIO = 2e-3
"""Schedulers keep `1 - a = rho^2 / (1 + rho^2)` in float32 beside 1: below this it is rounding."""


class NoiseLevels(NamedTuple):
    """The levels of a schedule.

    - `betas`: what a scheduler is told.
    - `ratios` (steps,): what it makes of them, the noise-to-signal ratio of each step.
    """

    betas: list[float]
    ratios: Float[Tensor, " steps"]

    def scheduler_config(self) -> dict[str, Any]:
        """For `SomeScheduler.from_config`: these levels, and that the output is noise.

        Schedulers that clip the predicted image (DDPM, DDIM) do so unless they are told
        `clip_sample=False`, as here.
        """
        return {
            "num_train_timesteps": len(self.betas),
            "trained_betas": list(self.betas),
            "prediction_type": "epsilon",
            "timestep_spacing": "linspace",
            "clip_sample": False,
        }


def noise_levels(
    sde: SDE, value_range: tuple[float, float], steps: int = TRAIN_TIMESTEPS
) -> NoiseLevels:
    """The levels of an SDE for data in this range, even in t or, where it explodes, in log sigma.

    Raises:
        ValueError: if there are fewer than two.
    """
    if steps < 2:
        raise ValueError(f"train_timesteps={steps}: need at least 2, e.g. {TRAIN_TIMESTEPS}")
    half_width = 0.5 * (value_range[1] - value_range[0])
    ratios = _noise_to_signal(sde, steps, _LEAST_RATIO * half_width) / half_width
    a = 1.0 / (1.0 + ratios.square())
    betas: list[float] = (1.0 - a / torch.cat([torch.ones(1, dtype=a.dtype), a[:-1]])).tolist()
    # Schedulers multiply up in float32, which is off by percents in 1 - a where a is nearly 1.
    # What they make of the betas is what they mean by a timestep.
    a = torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0).double()
    return NoiseLevels(betas, ((1.0 - a) / a).sqrt().float())


def _noise_to_signal(sde: SDE, steps: int, least: float) -> Tensor:
    """`sigma / alpha` at `steps` times, ascending from `least` or what `t_end` has; float64.

    Even in t for VP and sub-VP, as the schedules of DDPM are; even in log sigma for VE and RVE.
    """
    ends = sde.log_snr(torch.tensor([sde.t_end, sde.t_max], dtype=torch.float64))
    ends = ends.clamp(max=-2.0 * math.log(least))
    share = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    if sde.exploding:
        return (-0.5 * torch.lerp(ends[0], ends[1], share)).exp()
    first, last = sde.time_of_log_snr(ends)
    return (-0.5 * sde.log_snr(torch.lerp(first, last, share))).exp()
