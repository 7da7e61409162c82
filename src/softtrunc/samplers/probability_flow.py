"""The probability flow by an adaptive Runge-Kutta method, each example at its own pace."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softtrunc.samplers.base import Call, Sampler
from softtrunc.samplers.grids import Point, point_at, resolve_t_end
from softtrunc.sde import SDE, expand_to, wide_dtype

__all__ = ["ProbabilityFlow"]


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """The deterministic flow that has the SDE's marginals, solved to a tolerance.

    Dormand and Prince's RK45 with local extrapolation and error control per example, so that a
    sample does not depend on its batch; finished examples leave the batch. It is integrated in the
    angle `theta = atan(sigma / alpha)` for `y = x / sqrt(alpha^2 + sigma^2)`, where the flow of
    every SDE is `dy/dtheta = cos(theta) z - sin(theta) D` (z the predicted noise, D the denoised
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

    def _solve(self, call: Call, x: Tensor) -> Tensor:
        end = point_at(call.sde, resolve_t_end(call.sde, self.t_end))
        x = self.transport(call, x, point_at(call.sde, call.sde.t_max), end)
        if self.denoise_final:
            x = call.denoise(x, end)
            call.report(1.0, 0.0, x, x)
        return x

    def transport(self, call: Call, x: Tensor, start: Point, end: Point) -> Tensor:
        """Carry `x` `(B, *event)` along the flow from one time to another, in either direction."""
        wide = wide_dtype(x.device)
        goal, sign = _angle(end), math.copysign(1.0, _angle(end) - _angle(start))
        y = x / math.hypot(start.alpha, start.sigma)
        if y.shape[0] == 0:
            return y
        theta = torch.full((y.shape[0],), _angle(start), device=y.device, dtype=wide)
        slope = _velocity(call, y, theta)
        size = self._first_size(y, slope).to(wide)
        # The whole batch: where each example stands; `active` says which of them still move.
        all_y, all_theta, all_slope = y.clone(), theta.clone(), slope.clone()
        active = torch.arange(y.shape[0], device=y.device)
        for _ in range(self.max_steps):
            left = (goal - theta).abs()
            last = size >= left
            step = sign * torch.where(last, left, size)
            trial = _dormand_prince(call, y, theta, slope, step)
            error = self._error_norm(trial.error, y, trial.y).to(wide)
            accept = error <= 1.0
            growth = (0.9 * error.pow(-0.2)).clamp(0.2, 5.0)
            size = step.abs() * growth
            theta = torch.where(accept, torch.where(last, goal, theta + step), theta)
            chosen = accept.reshape(-1, *([1] * (y.ndim - 1)))
            y, slope = torch.where(chosen, trial.y, y), torch.where(chosen, trial.slope, slope)
            done = accept & last
            failed = ~torch.isfinite(error) | ((size < _SMALLEST_STEP) & ~done)
            all_y[active], all_theta[active], all_slope[active] = y, theta, slope
            any_done, any_failed = torch.stack([done.any(), failed.any()]).tolist()
            if any_failed:
                raise FloatingPointError(_complaint(call.sde, theta[failed], error[failed]))
            if call.callback is not None:
                _report(call, all_y, all_theta, all_slope, _angle(start), goal)
            if any_done:
                keep = ~done
                active, y, theta, slope = active[keep], y[keep], theta[keep], slope[keep]
                size = size[keep]
                if active.numel() == 0:
                    return all_y * math.hypot(end.alpha, end.sigma)
        t = _time_of_angle(call.sde, theta).max()
        raise FloatingPointError(
            f"probability flow: {self.max_steps} steps were not enough (t = {float(t):.3g}): "
            "raise rtol and atol, or max_steps"
        )

    def _error_norm(self, error: Tensor, y: Tensor, y_next: Tensor) -> Tensor:
        """Root mean square of the error in units of what is tolerated, per example."""
        scale = self.atol + self.rtol * torch.maximum(y.abs(), y_next.abs())
        return (error / scale).flatten(1).square().mean(1).sqrt()

    def _first_size(self, y: Tensor, slope: Tensor) -> Tensor:
        """The angle over which y moves by about a hundredth of its size (Hairer et al., II.4)."""
        moved = self._error_norm(slope, y, y)
        size = 0.01 * self._error_norm(y, y, y) / moved
        return torch.where(torch.isfinite(size), size, 1e-3).clamp(1e-6, 0.1)


_SMALLEST_STEP = 1e-11
"""In radians. RVE's flow ends at an angle of 1e-3, so nothing sensible gets near it."""


class _Trial(NamedTuple):
    """The end of an attempted step, the slope there and the estimated error."""

    y: Tensor
    slope: Tensor
    error: Tensor


# Dormand and Prince 1980, RK5(4)7M: nodes, stages, and the difference of the two solutions. The
# last stage is the solution of order 5 itself, so its slope is the next step's first.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _dormand_prince(call: Call, y: Tensor, theta: Tensor, slope: Tensor, step: Tensor) -> _Trial:
    slopes = [slope]
    h = expand_to(step, y)
    y_next = y
    for node, weights in zip(_NODES, _STAGES, strict=True):
        y_next = y + h * _combine(weights, slopes)
        slopes.append(_velocity(call, y_next, theta + node * step))
    return _Trial(y_next, slopes[-1], h * _combine(_ERROR, slopes))


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = total + weight * slope
    return total


def _velocity(call: Call, y: Tensor, theta: Tensor) -> Tensor:
    """`dy/dtheta` at angles of shape `(B,)`."""
    t = _time_of_angle(call.sde, theta)
    alpha, sigma = call.sde.marginal(t)
    scale = torch.hypot(alpha, sigma)
    noise = -expand_to(sigma, y) * call.score(expand_to(scale, y) * y, t)
    # cos z - sin D with D = (y - sin z) / cos put in: one rounding less.
    return (noise - expand_to(theta.sin(), y) * y) / expand_to(theta.cos(), y)


def _angle(at: Point) -> float:
    return math.atan2(at.sigma, at.alpha)


def _time_of_angle(sde: SDE, theta: Tensor) -> Tensor:
    # The clamp takes up the last bit lost on the way through the angle and back.
    return sde.time_of_log_snr(-2.0 * theta.tan().log()).clamp(max=sde.t_max)


def _report(call: Call, y: Tensor, theta: Tensor, slope: Tensor, start: float, goal: float) -> None:
    t = _time_of_angle(call.sde, theta)
    scale = torch.hypot(*call.sde.marginal(t))
    denoised = expand_to(theta.cos(), y) * y - expand_to(theta.sin(), y) * slope
    done = ((theta - start) / (goal - start)).min()
    call.report(float(done), float(t.max()), expand_to(scale, y) * y, denoised)


def _complaint(sde: SDE, theta: Tensor, error: Tensor) -> str:
    t = float(_time_of_angle(sde, theta)[0])
    if not bool(torch.isfinite(error).all()):
        return f"probability flow: the score is not finite near t = {t:.3g}: check the model there"
    return (
        f"probability flow: the step became too small at t = {t:.3g}: the score is rougher than "
        "the tolerance allows; raise rtol and atol, or stop at a larger t_end"
    )
