"""Exponential multistep solvers in log-SNR: DPM-Solver++ for the flow and for the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softtrunc.samplers.base import Call, FixedStepSampler, State
from softtrunc.samplers.grids import Point, early_end, schedule
from softtrunc.sde import SDE

_ERROR_SCALE = 0.04
"""Of a step, for `early_end`, by benchmarks/samplers.py: VP ends at its own time from 20 steps on.

For the reverse SDE, whose decay is doubled, twice that: from 28 steps on. SDEs that go down to much
less noise need more of them: RVE 70 and 98, sub-VP 271 and more.
"""


@dataclass(frozen=True)
class DPMSolver(FixedStepSampler):
    """DPM-Solver++: the linear part exactly, the denoised estimate D by interpolation.

    In `lambda = log(alpha / sigma)` the flow from s to t has the solution
    `x_t = (sigma_t / sigma_s) x_s + sigma_t int e^lambda D dlambda`, and the reverse SDE the same
    with the decay doubled and noise of variance `sigma_t^2 (1 - e^(-2h))`. D is replaced by the
    polynomial through its last `order` values ("2M": its slope integrated by the midpoint rule,
    algorithm 2 of the source). One network call a step: `steps` in all.
    Order 1 is DDIM, its stochastic form ancestral sampling. Source: Lu et al. 2022
    (arXiv 2211.01095), sections 4 and 5. `steps` and `denoise_final` are those of
    `FixedStepSampler`.

    Args:
        order: 1, 2 ("2M") or 3 ("3M").
        stochastic: solve the reverse SDE instead of the probability flow.
        t_end: see `FixedStepSampler`; None ends earlier than the SDE's own time where the steps
            are so few that noise would be followed below their own error (`early_end`), unless
            `denoise_final` is False.
        grid: None takes "asinh", for order 3, which extrapolates further and wants even steps,
            "log_snr".

    Raises:
        ValueError: if an option is out of range.
    """

    steps: int = 20
    order: int = 2
    stochastic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMSolver: order={self.order}: write 1, 2 or 3")

    def _points(self, sde: SDE, moves: int) -> tuple[Point, ...]:
        grid = self.grid or ("log_snr" if self.order == 3 else "asinh")
        end = self.t_end
        if end is None and self.denoise_final and moves > 0:
            end = early_end(sde, moves, self._rate * _ERROR_SCALE)
        return schedule(sde, grid, moves, end)

    @property
    def _rate(self) -> float:
        """Of the decay: 1 for the probability flow, 2 for the reverse SDE."""
        return 2.0 if self.stochastic else 1.0

    def _step(self, call: Call, state: State, here: Point, there: Point) -> State:
        x, past = state.x, state.history
        denoised = call.denoise(x, here)
        if self.order == 3 and not self.stochastic and len(past) == 1:
            # Order 3 needs a start of order 2. Now that the end of the first step has been
            # evaluated, take that step again over both values: no network call is added.
            x = _correct(x, past[0], (here, denoised))
        past = ((here, denoised), *past)[: self.order]
        rate = self._rate
        h = there.half_log_snr - here.half_log_snr
        x = (there.alpha / here.alpha) * math.exp(-rate * h) * x
        x = x + there.alpha * _integral(past, h, rate, damped=self.order == 2)
        if self.stochastic:
            x = x + there.sigma * math.sqrt(-math.expm1(-2.0 * h)) * call.noise.like(x)
        return State(x, denoised, past)


def _moments(z: float, n: int) -> list[float]:
    """`J_k = z int_0^1 e^(-z (1 - u)) u^k du`, k < n: `J_0 = 1 - e^-z, J_k = 1 - k J_(k-1) / z`."""
    if z < 0.5:
        # The recursion loses digits to cancellation at small z; the series does not:
        # J_k = sum_j (-1)^j z^(j+1) k! / (k+j+1)!.
        moments = []
        for k in range(n):
            term, total = z / (k + 1), 0.0
            for j in range(16):
                total += term
                term *= -z / (k + j + 2)
            moments.append(total)
        return moments
    moments = [-math.expm1(-z)]
    for k in range(1, n):
        moments.append(1.0 - k * moments[-1] / z)
    return moments


def _integral(
    past: tuple[tuple[Point, Tensor], ...], h: float, rate: float, *, damped: bool
) -> Tensor:
    """`rate int_0^h e^(-rate (h - v)) P(v) dv`, P the polynomial through the estimates in `past`.

    The newest lies at v = 0. Lagrange's form gives one host scalar per estimate. `damped` takes the
    first moment as half of the zeroth, as "2M" does: the same to the order of the method, and half
    as much extrapolation where steps are long.
    """
    moments = _moments(rate * h, len(past))
    if damped and len(moments) == 2:
        moments[1] = 0.5 * moments[0]
    origin = past[0][0].half_log_snr
    nodes = [(point.half_log_snr - origin) / h for point, _ in past]
    total = torch.zeros_like(past[0][1])
    for j, (_, denoised) in enumerate(past):
        basis = [1.0]
        for m, node in enumerate(nodes):
            if m != j:
                shifted = [0.0, *basis]
                scaled = [*(node * c for c in basis), 0.0]
                basis = [(a - b) / (nodes[j] - node) for a, b in zip(shifted, scaled, strict=True)]
        weight = math.fsum(c * moment for c, moment in zip(basis, moments, strict=True))
        total = total + weight * denoised
    return total


def _correct(x: Tensor, start: tuple[Point, Tensor], end: tuple[Point, Tensor]) -> Tensor:
    """Turn the end of a first-order step into that of the step over both its estimates."""
    h = end[0].half_log_snr - start[0].half_log_snr
    return x + end[0].alpha * _moments(h, 2)[1] * (end[1] - start[1])
