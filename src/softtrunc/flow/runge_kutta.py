"""Explicit Runge-Kutta pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from softtrunc.flow.steps import Attempt, Field, Place, Slope, StepMethod
from softtrunc.sde import expand_to

__all__ = ["BOGACKI_SHAMPINE_32", "DORMAND_PRINCE_54", "RungeKutta"]


@dataclass(frozen=True, kw_only=True)
class RungeKutta(StepMethod):
    """An embedded explicit pair whose last stage is the first of the next step.

    - `order`: of the solution that is propagated.
    - `nodes`: c_2 ... c_s.
    - `stages`: rows of a_ij, i = 2 ... s; the last row is the solution itself (FSAL).
    - `error`: solution minus embedded solution, one weight for each of the s stages.
    """

    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    first_step: float = 0.1
    shrink: float = 0.2
    grow: float = 6.0

    def begin(self, *_: object) -> tuple[Tensor, ...]:
        """Nothing is remembered but the slope."""
        return ()

    def attempt(self, field: Field, here: Place, h: Tensor, rows: Tensor) -> Attempt:
        """One step of length `h` for every example."""
        step = expand_to(h, here.state)
        slopes, change = [here.slope], here.slope
        for node, weights in zip(self.nodes, self.stages, strict=True):
            change = _combine(weights, slopes)
            after = here.state + step * change.state
            slopes.append(field(after, here.u + node * h, rows))
        log_volume = here.log_volume + h * change.log_volume
        there = Place(here.u + h, after, log_volume, slopes[-1], ())
        return Attempt(there, _combine(self.error, slopes), self.order)


def _combine(weights: Sequence[float], slopes: list[Slope]) -> Slope:
    (w0, k0), *rest = [(w, k) for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    state, log_volume = w0 * k0.state, w0 * k0.log_volume
    for w, k in rest:
        state = state.add(k.state, alpha=w)
        log_volume = log_volume.add(k.log_volume, alpha=w)
    return Slope(state, log_volume)


BOGACKI_SHAMPINE_32 = RungeKutta(
    cost=3,
    order=3,
    nodes=(1 / 2, 3 / 4, 1.0),
    stages=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
"""Bogacki & Shampine 1989, "A 3(2) pair of Runge-Kutta formulas": three evaluations a step."""

DORMAND_PRINCE_54 = RungeKutta(
    cost=6,
    order=5,
    nodes=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    stages=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
"""Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae": six evaluations a step."""
