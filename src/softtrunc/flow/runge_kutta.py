"""Explicit Runge-Kutta with step control for every example on its own.

Each example of a batch carries its own position, step length and slopes; a step that is too long
for one example is taken again for that one only, and examples that have arrived leave the batch.
So an example's path, and what it costs, does not depend on the company it is solved in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.sde import expand_to, wide_dtype

__all__ = [
    "BOGACKI_SHAMPINE_32",
    "DORMAND_PRINCE_54",
    "Field",
    "Slope",
    "Solution",
    "StepUnderflowError",
    "Tableau",
    "check_steps",
    "error_norm",
    "integrate",
]

_SAFETY = 0.9
_SHRINK = 0.2
_GROW = 6.0
_SHORTEST = 1e-9
"""The shortest step, as a share of the whole interval, that float32 states can still feel."""


class StepUnderflowError(ArithmeticError):
    """The step length fell to nothing: the field is too rough, or not finite, at some point."""


class Slope(NamedTuple):
    """The right-hand side at `n` points: of the state `(n, *event)` and of the logarithm `(n,)`."""

    state: Float[Tensor, "n *event"]
    log_volume: Float[Tensor, " n"]


class Solution(NamedTuple):
    """Final states `(B, *event)`, accumulated logarithms (B,) and evaluations (B,) of the field."""

    state: Float[Tensor, "b *event"]
    log_volume: Float[Tensor, " b"]
    nfe: Int[Tensor, " b"]


Field = Callable[[Tensor, Tensor, Tensor], Slope]
"""`field(state (n, *event), u (n,), rows (n,))`; `rows` are the examples' places in the batch."""


@dataclass(frozen=True)
class Tableau:
    """An embedded explicit Runge-Kutta pair whose last stage is the first of the next step.

    - `order`: of the solution that is propagated.
    - `nodes`: c_2 ... c_s.
    - `stages`: rows of a_ij, i = 2 ... s; the last row is the solution itself (FSAL).
    - `error`: solution minus embedded solution, one weight for each of the s stages.
    """

    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]


BOGACKI_SHAMPINE_32 = Tableau(
    order=3,
    nodes=(1 / 2, 3 / 4, 1.0),
    stages=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
"""Bogacki & Shampine 1989, "A 3(2) pair of Runge-Kutta formulas": three evaluations a step."""

DORMAND_PRINCE_54 = Tableau(
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
    error=(
        71 / 57600,
        0.0,
        -71 / 16695,
        71 / 1920,
        -17253 / 339200,
        22 / 525,
        -1 / 40,
    ),
)
"""Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae": six evaluations a step."""


def _combine(weights: tuple[float, ...], slopes: list[Slope]) -> Slope:
    pairs = [(w, k) for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    (w0, k0), *rest = pairs
    state, log_volume = w0 * k0.state, w0 * k0.log_volume
    for w, k in rest:
        state = state.add(k.state, alpha=w)
        log_volume = log_volume.add(k.log_volume, alpha=w)
    return Slope(state, log_volume)


def error_norm(
    error: Slope, before: Tensor, after: Tensor, h: Tensor, *, rtol: float, atol: float
) -> Tensor:
    """Estimated error of a step in units of what is allowed, (n,); infinite if not finite."""
    scale = atol + rtol * torch.maximum(before.abs(), after.abs())
    wide = error.log_volume.dtype
    state = h * (error.state / scale).to(wide).flatten(1).square().mean(1).sqrt()
    dim = before[0].numel()
    volume = h * error.log_volume.abs() / (dim * atol)
    return torch.maximum(state, volume).nan_to_num(nan=torch.inf)


def check_steps(
    h: Tensor,
    span: Tensor,
    u: Tensor,
    rows: Tensor,
    slope: Slope,
    norm: Tensor,
    describe: Callable[[float], str],
) -> None:
    """Give up on an example whose step has become too short to be felt.

    Args:
        h: the next steps, (n,).
        span: length of the interval.
        u: positions, (n,).
        rows: the examples' places in the batch, (n,).
        slope: at `u`.
        norm: of the last steps' errors, (n,).
        describe: names a position.

    Raises:
        StepUnderflowError: naming the first such example and where it stands.
    """
    stuck = h < _SHORTEST * span
    if not (rows.numel() and bool(stuck.any())):
        return
    i = int(stuck.nonzero()[0])
    finite = bool(slope.state[i].isfinite().all()) and bool(norm[i].isfinite())
    cause = (
        "the score is too rough there for this precision: raise rtol and atol or eps, "
        "or pass x in float64"
        if finite
        else "the score is not finite there: raise eps, or evaluate the network in float32"
    )
    raise StepUnderflowError(
        f"step underflow at {describe(float(u[i]))} (example {int(rows[i])}): {cause}"
    )


def integrate(
    field: Field,
    state: Float[Tensor, "b *event"],
    start: Float[Tensor, ""],
    stop: Float[Tensor, ""],
    *,
    rtol: float,
    atol: float,
    tableau: Tableau = DORMAND_PRINCE_54,
    slope: Slope | None = None,
    first_step: float | None = None,
    describe: Callable[[float], str] = "u = {:.3g}".format,
) -> Solution:
    """Carry `state` and a logarithm that starts at 0 from `start` to `stop` > `start`.

    A step is accepted when the RMS over the event of `error / (atol + rtol |state|)` and the
    error of the logarithm, as a share of `atol` times the number of dimensions, are both at most 1.

    Args:
        field: right-hand side of both.
        state: where to begin.
        start: first position.
        stop: last position.
        rtol: relative tolerance of the state.
        atol: absolute tolerance of the state and, per dimension, of the logarithm.
        tableau: the method.
        slope: the field at the start, if it is known.
        first_step: length of the first step; None takes a tenth of the interval.
        describe: names a position for the error message.

    Raises:
        StepUnderflowError: if an example's step shrinks below 1e-9 of the interval.
    """
    count, device = state.shape[0], state.device
    wide = wide_dtype(device)
    span = stop - start
    final = state.clone()
    log_volume = torch.zeros(count, dtype=wide, device=device)
    nfe = torch.zeros(count, dtype=torch.int64, device=device)

    rows = torch.arange(count, device=device)
    u = start.to(wide).expand(count).clone()
    h = (span * 0.1 if first_step is None else torch.as_tensor(first_step)).to(u).expand(count)
    total = torch.zeros_like(u)
    rejected = torch.zeros_like(rows, dtype=torch.bool)
    if slope is None:
        slope = field(state, u, rows)
    spent = torch.ones_like(rows)
    while rows.numel():
        # A remainder that is a hair longer than the step is taken along with it.
        left = stop - u
        h = torch.where(h * 1.01 >= left, left, h)
        step = expand_to(h, state)
        slopes = [slope]
        change = slope
        for node, weights in zip(tableau.nodes, tableau.stages, strict=True):
            change = _combine(weights, slopes)
            slopes.append(field(state + step * change.state, u + node * h, rows))
        after = state + step * change.state
        spent = spent + len(tableau.nodes)
        norm = error_norm(_combine(tableau.error, slopes), state, after, h, rtol=rtol, atol=atol)

        accept = norm <= 1.0
        arrived = accept & (h >= left)
        u = torch.where(accept, u + h, u)
        total = torch.where(accept, total + h * change.log_volume, total)
        keep = accept.reshape(-1, *([1] * (state.ndim - 1)))
        state = torch.where(keep, after, state)
        slope = Slope(
            torch.where(keep, slopes[-1].state, slope.state),
            torch.where(accept, slopes[-1].log_volume, slope.log_volume),
        )
        factor = _SAFETY * norm.clamp(min=1e-10) ** (-1.0 / tableau.order)
        # After a rejection the step may not grow at once: it would be rejected again.
        limit = torch.where(rejected | ~accept, 1.0, _GROW)
        h = h * factor.clamp(min=_SHRINK).minimum(limit)
        rejected = ~accept

        if bool(arrived.any()):
            gone = rows[arrived]
            final[gone] = state[arrived]
            log_volume[gone] = total[arrived]
            nfe[gone] = spent[arrived]
            stay = ~arrived
            rows, u, h, total, spent = rows[stay], u[stay], h[stay], total[stay], spent[stay]
            rejected, state, norm = rejected[stay], state[stay], norm[stay]
            slope = Slope(slope.state[stay], slope.log_volume[stay])
        check_steps(h, span, u, rows, slope, norm, describe)
    return Solution(final, log_volume, nfe)
