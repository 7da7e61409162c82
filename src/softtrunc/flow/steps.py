"""Step control for every example on its own: the loop in which all methods run.

Each example of a batch carries its own position, step length and slopes; a step that is too long
for one example is taken again for that one only, and examples that have arrived leave the batch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.sde import send, wide_dtype

_SHORTEST = 1e-9
"""The shortest step, as a share of the whole interval, that float32 states can still feel."""

_LENGTHS_PER_OCTAVE = 2
"""Steps are as long as the interval over a power of the root of 2, and nothing between."""


class StepUnderflowError(FloatingPointError):
    """The step length fell to nothing: the field is too rough, or not finite, `where` it says."""

    def __init__(self, where: str, example: int, finite: bool) -> None:
        cause = (
            "the score is too rough there for this precision: raise rtol and atol or eps, "
            "or pass x in float64"
            if finite
            else "the score is not finite there: raise eps, or evaluate the network in float32"
        )
        super().__init__(f"step underflow at {where} (example {example}): {cause}")
        self.where, self.finite = where, finite


class Slope(NamedTuple):
    """The right-hand side at `n` points: of the state `(n, *event)` and of the logarithm `(n,)`."""

    state: Float[Tensor, "n *event"]
    log_volume: Float[Tensor, " n"]


Field = Callable[[Tensor, Tensor, Tensor], Slope]
"""`field(state (n, *event), u (n,), rows (n,))`; `rows` are the examples' places in the batch."""


class Place(NamedTuple):
    """Where `n` examples stand: position, state, logarithm, and the slope there.

    `past` is what the method remembers of the way, tensors with one row an example.
    """

    u: Float[Tensor, " n"]
    state: Float[Tensor, "n *event"]
    log_volume: Float[Tensor, " n"]
    slope: Slope
    past: tuple[Tensor, ...]


class Attempt(NamedTuple):
    """Where a step leads, its estimated error over its length h, which shrinks as h^order."""

    place: Place
    error: Slope
    order: Tensor | int


@dataclass(frozen=True, kw_only=True)
class StepMethod(abc.ABC):
    """The formulas of one method.

    - `cost`: evaluations of the field in a step.
    - `first_step`: length of the first step as a share of the interval.
    - `shrink`, `grow`: how much shorter or longer the next step may be.
    """

    cost: int
    first_step: float
    shrink: float
    grow: float

    @abc.abstractmethod
    def begin(self, u: Tensor, slope: Slope, /) -> tuple[Tensor, ...]:
        """What is remembered at the start beside the slope."""

    @abc.abstractmethod
    def attempt(self, field: Field, here: Place, h: Tensor, rows: Tensor) -> Attempt:
        """One step of length `h` (n,) for every example."""


class Solution(NamedTuple):
    """Final states `(B, *event)`, accumulated logarithms (B,) and evaluations (B,) of the field."""

    state: Float[Tensor, "b *event"]
    log_volume: Float[Tensor, " b"]
    nfe: Int[Tensor, " b"]


def _each(change: Callable[..., Tensor], *places: Place) -> Place:
    """`change` of every tensor of a place, or of the tensors of several places side by side."""
    flat = ((p.u, p.state, p.log_volume, *p.slope, *p.past) for p in places)
    u, state, log_volume, slope, log_slope, *past = map(change, *flat)
    return Place(u, state, log_volume, Slope(slope, log_slope), tuple(past))


def _choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _error_norm(attempt: Attempt, before: Tensor, h: Tensor, rtol: float, atol: float) -> Tensor:
    """Estimated error of a step in units of what is allowed, (n,); infinite if not finite."""
    error = attempt.error
    scale = atol + rtol * torch.maximum(before.abs(), attempt.place.state.abs())
    wide = error.log_volume.dtype
    state = h * (error.state / scale).to(wide).flatten(1).square().mean(1).sqrt()
    volume = h * error.log_volume.abs() / (before[0].numel() * atol)
    return torch.maximum(state, volume).nan_to_num(nan=torch.inf)


def _snap(h: Tensor, span: Tensor) -> Tensor:
    """The next shorter of the lengths that steps may have: a sixth shorter on average.

    That is the margin of safety. And a network rounds differently in every batch size: a length
    that followed the error estimate to its last digit would carry it on from step to step, until an
    example stops at other points, with another error of the solver, than it does alone.
    """
    # The hundredth keeps a length that is allowed in spite of rounding.
    steps = ((h / span).log2() * _LENGTHS_PER_OCTAVE + 0.01).floor()
    return span * torch.exp2(steps / _LENGTHS_PER_OCTAVE)


def integrate(
    field: Field,
    state: Float[Tensor, "b *event"],
    start: Float[Tensor, ""],
    stop: Float[Tensor, ""],
    *,
    method: StepMethod,
    rtol: float,
    atol: float,
    slope: Slope | None = None,
    first_step: float | None = None,
    max_steps: int | None = None,
    watch: Callable[[Tensor, Place], None] | None = None,
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
        method: the formulas of a step.
        rtol: relative tolerance of the state.
        atol: absolute tolerance of the state and, per dimension, of the logarithm.
        slope: the field at the start, if it is known.
        first_step: length of the first step; None takes the method's own.
        max_steps: attempted steps after which to give up; None never does.
        watch: told after every attempted step of the examples under way, by their places in the
            batch (n,), and of where they stand.
        describe: names a position for the error message.

    Raises:
        StepUnderflowError: if an example's step shrinks below 1e-9 of the interval.
        FloatingPointError: if there are more than `max_steps`.
    """
    span = stop - start
    rows = torch.arange(len(state), device=state.device)
    u = start.to(wide_dtype(state.device)).expand(len(state)).clone()
    first = method.first_step * span if first_step is None else first_step
    h = torch.zeros_like(u) + first
    slope = field(state, u, rows) if slope is None else slope
    final, log_volume, nfe = state.clone(), torch.zeros_like(u), torch.ones_like(rows)
    here = Place(u, state, log_volume, slope, method.begin(u, slope))
    rejected = torch.zeros_like(rows, dtype=torch.bool)
    attempts = 0
    while rows.numel():
        if attempts == max_steps:
            raise FloatingPointError(
                f"probability flow: {max_steps} steps were not enough "
                f"({describe(float(here.u.min()))}): raise rtol and atol, or max_steps"
            )
        attempts += 1
        # A remainder that is a hair longer than the step is taken along with it.
        left = stop - here.u
        h = torch.where(h * 1.01 >= left, left, h)
        attempt = method.attempt(field, here, h, rows)
        nfe[rows] += method.cost
        norm = _error_norm(attempt, here.state, h, rtol, atol)
        accept = norm <= 1.0
        arrived = accept & (h >= left)
        here = _each(partial(_choose, accept), attempt.place, here)
        factor = norm.clamp(min=1e-10) ** (-1.0 / attempt.order)
        # A rejected step gets shorter; the next may not grow at once, it would be rejected again.
        limit = torch.where(accept, torch.where(rejected, 1.0, method.grow), 0.9)
        h = _snap(h * factor.clamp(min=method.shrink).minimum(limit), span)
        rejected = ~accept
        if watch is not None:
            watch(rows, here)
        # The one thing of a step that the host waits for.
        done, stuck = torch.stack([arrived, h < _SHORTEST * span]).cpu()
        if bool(done.any()):
            gone, stay = (send(mask.nonzero().squeeze(1), h.device) for mask in (done, ~done))
            final[rows[gone]] = here.state[gone]
            log_volume[rows[gone]] = here.log_volume[gone]
            rows, h, norm, rejected = rows[stay], h[stay], norm[stay], rejected[stay]
            here = _each(itemgetter(stay), here)
        stuck = stuck[~done].nonzero()
        if stuck.numel():
            i = int(stuck[0])
            finite = bool(here.slope.state[i].isfinite().all()) and bool(norm[i].isfinite())
            raise StepUnderflowError(describe(float(here.u[i])), int(rows[i]), finite)
    return Solution(final, log_volume, nfe)
