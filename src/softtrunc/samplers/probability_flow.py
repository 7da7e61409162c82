"""The probability flow by an adaptive Runge-Kutta method, each example at its own pace."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from softtrunc.flow.path import Path, angle_variable
from softtrunc.flow.runge_kutta import DORMAND_PRINCE_54
from softtrunc.flow.steps import Place, Slope, StepUnderflowError, integrate
from softtrunc.samplers.base import Call, Sampler
from softtrunc.samplers.grids import Point, point_at, resolve_t_end
from softtrunc.sde import expand_to, widen


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """The deterministic flow that has the SDE's marginals, solved to a tolerance.

    Dormand and Prince's RK45 with error control per example (`softtrunc.flow.steps`): a sample
    depends on its batch only as far as a network's rounding does, or, where that tips a step over
    to another length, as far as the tolerance lets it. It is integrated in the angle
    `theta = atan(sigma / alpha)` for `y = x / sqrt(alpha^2 + sigma^2)`, where the flow of every
    SDE is `dy/dtheta = cos(theta) z - sin(theta) D` (z the predicted noise, D the denoised
    estimate): bounded and smooth at both ends. Source: Song et al. 2021 (arXiv 2011.13456),
    section 4.3; Dormand and Prince 1980.

    Args:
        rtol: relative tolerance of a step, > 0.
        atol: absolute tolerance of a step, > 0, in units of y.
        t_end: the time at which the flow stops, in (0, T); None takes the SDE's own.
        denoise_final: finish with Tweedie's formula at `t_end` (default True); False returns the
            flow's own end point.
        max_steps: attempted steps after which to give up, >= 1.

    Raises:
        ValueError: if an option is out of range.
        FloatingPointError: while sampling, if the score is not finite or the steps grow too small
            or too many for the tolerance; the message names the time.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    _: KW_ONLY
    t_end: float | None = None
    denoise_final: bool = True
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0 and self.max_steps >= 1):
            raise ValueError(
                f"ProbabilityFlow: rtol={self.rtol}, atol={self.atol}, "
                f"max_steps={self.max_steps}: all must be positive, e.g. 1e-5, 1e-5, 10000"
            )

    def check(self, sde: SDE) -> None:
        """Refuse a time to stop at that is none of this SDE's, with a ValueError."""
        resolve_t_end(sde, self.t_end)

    def _solve(self, call: Call, x: Tensor) -> Tensor:
        end = point_at(call.sde, resolve_t_end(call.sde, self.t_end))
        x = self.transport(call, x, point_at(call.sde, call.sde.t_max), end)
        if self.denoise_final:
            x = call.denoise(x, end)
            call.report(1.0, 0.0, x, x)
        return x

    def transport(self, call: Call, x: Tensor, start: Point, end: Point) -> Tensor:
        """Carry `x` `(B, *event)` along the flow from one time to another, in either direction."""
        if x.shape[0] == 0:
            return x
        times = torch.tensor(sorted((start.t, end.t)), dtype=torch.float64)
        path = Path(call.sde, angle_variable(1.0), 1.0, widen(times, x.device))
        # The solver walks upwards: on the way down to the data in minus the angle.
        sign = math.copysign(1.0, end.t - start.t)
        first, last = (sign * angle for angle in path.ends[:: int(sign)])
        scale, last_scale = path.scales[:: int(sign)]

        def field(y: Tensor, u: Tensor, rows: Tensor) -> Slope:
            p = path.point(sign * u)
            noise = -expand_to(p.sigma, y) * call.score(expand_to(p.scale, y) * y, p.t, rows)
            return Slope(sign * p.velocity(y, noise), torch.zeros_like(u))

        # The whole batch, for the callback: the solver speaks of the examples under way alone.
        all_y, all_slope = torch.empty_like(x), torch.empty_like(x)
        all_u = first.repeat(len(x))

        def watch(rows: Tensor, here: Place) -> None:
            all_y[rows], all_u[rows], all_slope[rows] = here.state, here.u, sign * here.slope.state
            p, angle = path.point(sign * all_u), sign * all_u
            denoised = expand_to(angle.cos(), x) * all_y - expand_to(angle.sin(), x) * all_slope
            done = ((all_u - first) / (last - first)).min()
            fraction, t = torch.stack([done, p.t.max()]).tolist()
            call.report(fraction, t, expand_to(p.scale, x) * all_y, denoised)

        try:
            solution = integrate(
                field,
                x / scale.to(x),
                first,
                last,
                method=DORMAND_PRINCE_54,
                rtol=self.rtol,
                atol=self.atol,
                max_steps=self.max_steps,
                watch=None if call.callback is None else watch,
                describe=lambda u: path.describe(sign * u),
            )
        except StepUnderflowError as error:
            raise FloatingPointError(_complaint(error)) from None
        return solution.state * last_scale.to(x)


def _complaint(error: StepUnderflowError) -> str:
    if not error.finite:
        return (
            f"probability flow: the score is not finite near {error.where}: check the model there"
        )
    return (
        f"probability flow: the step became too small at {error.where}: the score is rougher than "
        "the tolerance allows; raise rtol and atol, or stop at a larger t_end"
    )
