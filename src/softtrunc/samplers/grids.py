"""Where a fixed-step sampler stops on its way from T to the end.

Schedules are float64 numbers on the host: they cost nothing next to a network call, span many
decades, and keep the device from being waited for.

A `Grid` says what is equally spaced: t, 1/t, the log-SNR, `(sigma / alpha)^(1/7)`, or `asinh(l)`.
"edm" is the grid of Karras et al. 2022 (arXiv 2206.00364, eq. 5) with rho = 7. In "asinh"
`l = (log(alpha / sigma) + 1/4) / 2`: near the time at which signal and noise are alike, and
images are decided, points are as dense as in "log_snr"; to both sides they thin out as 1 / |l|.
Our own, with constants from benchmarks/samplers.py (docs/samplers.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from softtrunc.sde import SDE, Grid

__all__ = [
    "Grid",
    "Point",
    "check_grid",
    "early_end",
    "point_at",
    "resolve_t_end",
    "schedule",
    "step_length",
]

_EDM_RHO = 7.0
_ASINH_CENTRE, _ASINH_WIDTH = -0.25, 2.0


class Point(NamedTuple):
    """A time and the marginal there: `x_t = alpha x_0 + sigma z`."""

    t: float
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """`log(alpha / sigma)`, the lambda of the DPM-Solver papers."""
        return math.log(self.alpha / self.sigma)

    @property
    def noise_ratio(self) -> float:
        """`sigma / alpha`, the noise level in units of the data."""
        return self.sigma / self.alpha


def point_at(sde: SDE, t: float) -> Point:
    """The schedule at one time in (0, T]."""
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    return Point(t, float(alpha), float(sigma))


def resolve_t_end(sde: SDE, t_end: float | None) -> float:
    """The time to stop at: the SDE's own where none is asked for.

    Raises:
        ValueError: if nothing can end there.
    """
    end = sde.t_end if t_end is None else t_end
    try:
        sde.check_smallest_time(end)
    except ValueError as error:
        raise ValueError(f"t_end={error}; null is {sde.t_end}") from error
    return end


def early_end(sde: SDE, moves: int, error_scale: float) -> float:
    """A time to stop at for a method of few steps.

    Where `sigma / alpha = error_scale h^2`, h the mean length of `moves` steps from T in
    `log(alpha / sigma)`: there the noise that is left to the final denoising is about as large as
    the error of the steps, and steps spent on less of it are missing before. Never nearer
    to 0 than the SDE's own time.
    """
    start, own = (point_at(sde, t) for t in (sde.t_max, sde.t_end))
    low, high = start.half_log_snr, own.half_log_snr

    def too_noisy(half_log_snr: float) -> bool:
        h = (half_log_snr - start.half_log_snr) / moves
        return math.exp(-half_log_snr) > error_scale * h**2

    if too_noisy(high):
        return own.t
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if too_noisy(middle) else (low, middle)
    return float(sde.time_of_log_snr(torch.tensor(2.0 * low, dtype=torch.float64)))


def check_grid(grid: Grid | None) -> None:
    """Refuse an unknown grid with a ValueError."""
    if grid is not None and grid not in get_args(Grid):
        raise ValueError(f"grid {grid!r} is unknown: write one of {', '.join(get_args(Grid))}")


def _to_variable(sde: SDE, grid: Grid, t: Tensor) -> Tensor:
    if grid == "uniform":
        return t
    if grid == "reciprocal":
        return 1.0 / t
    log_snr = sde.log_snr(t)
    if grid == "log_snr":
        return log_snr
    if grid == "edm":
        return (-0.5 / _EDM_RHO * log_snr).exp()
    return ((0.5 * log_snr - _ASINH_CENTRE) / _ASINH_WIDTH).asinh()


def _from_variable(sde: SDE, grid: Grid, v: Tensor) -> Tensor:
    if grid == "uniform":
        return v
    if grid == "reciprocal":
        return 1.0 / v
    if grid == "edm":
        v = -2.0 * _EDM_RHO * v.log()
    elif grid == "asinh":
        v = 2.0 * (_ASINH_CENTRE + _ASINH_WIDTH * v.sinh())
    return sde.time_of_log_snr(v)


def schedule(sde: SDE, grid: Grid | None, moves: int, t_end: float | None) -> tuple[Point, ...]:
    """The `moves + 1` points from T down to `t_end`, equally spaced in the grid's variable.

    Args:
        sde: the forward diffusion.
        grid: the variable; None takes the SDE's default.
        moves: how many intervals, >= 1, or 0 for T alone.
        t_end: the last time, in (0, T); None takes the SDE's default.

    Raises:
        ValueError: if `t_end` is out of range, or the points are too many to be told apart.
    """
    grid = grid or sde.default_grid
    ends = torch.tensor([sde.t_max, resolve_t_end(sde, t_end)], dtype=torch.float64)
    if moves == 0:
        return (point_at(sde, sde.t_max),)
    first, last = _to_variable(sde, grid, ends)
    share = torch.linspace(0.0, 1.0, moves + 1, dtype=torch.float64)
    t = _from_variable(sde, grid, first + (last - first) * share)
    # The way through the variable and back may cost the last bit; the ends are known.
    t[0], t[-1] = ends
    alpha, sigma = sde.marginal(t)
    if not bool(((sigma / alpha).diff() < 0.0).all()):
        raise ValueError(
            f"{moves} moves from T to t_end={t_end or sde.t_end}: some would be of no length: take "
            "fewer steps, a smaller t_end or another grid"
        )
    return tuple(map(Point, t.tolist(), alpha.tolist(), sigma.tolist()))


def step_length(sde: SDE, grid: Grid | None, here: Point, there: Point) -> float:
    """The length in t of an Euler step that is taken in the grid's variable `v`.

    That is `(v(there) - v(here)) / v'(t)`, which tends to `t - t_next` on fine grids. On an RVE
    grid g^2 changes by orders of magnitude within one interval of t, and an Euler step in t itself
    would be far off.
    """
    grid = grid or sde.default_grid
    t, t_next = here.t, there.t
    if grid == "uniform":
        return t - t_next
    if grid == "reciprocal":
        return t * (t - t_next) / t_next
    g = float(sde.diffusion(torch.tensor(t, dtype=torch.float64)))
    slope = (g / here.sigma) ** 2  # -d log_snr / dt
    distance = 2.0 * (there.half_log_snr - here.half_log_snr)
    if grid == "log_snr":
        return distance / slope
    if grid == "asinh":
        a, b = ((p.half_log_snr - _ASINH_CENTRE) / _ASINH_WIDTH for p in (here, there))
        return 2.0 * _ASINH_WIDTH * math.hypot(1.0, a) * (math.asinh(b) - math.asinh(a)) / slope
    return -math.expm1(-0.5 / _EDM_RHO * distance) * 2.0 * _EDM_RHO / slope
