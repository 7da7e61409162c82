"""Adams' method with a step length of every example's own.

A Runge-Kutta step throws its slopes away; Adams' method integrates the polynomial through the last
ones and asks for a single new evaluation a step (Hairer, Norsett & Wanner, "Solving Ordinary
Differential Equations I", III.5). A learned score oscillates in t with the features of its noise
label, so that high orders at long steps promise accuracy that is not there, and evaluations that
are spread evenly count for more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.flow.runge_kutta import Field, Slope, Solution, check_steps, error_norm
from softtrunc.sde import expand_to, wide_dtype

__all__ = ["integrate_adams", "integration_weights"]

_HISTORY = 3
"""Slopes behind the predictor (order 3); with the new one the corrector has order 4."""

_SAFETY = 0.9
_SHRINK = 0.3
_GROW = 2.0
"""Longer steps after short ones magnify errors of the past ones."""

_GAUSS = 0.5 / math.sqrt(3.0)


class _Point(NamedTuple):
    """Where a slope was taken, (n,), and the slope."""

    u: Tensor
    slope: Slope


def integration_weights(nodes: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Weights of values at the nodes in the integral over [0, 1] of the polynomial through them.

    Args:
        nodes: at most four different ones a row. (Two Gauss points are exact up to cubics.)
    """
    k = nodes.shape[1]
    itself = torch.eye(k, dtype=torch.bool, device=nodes.device)
    apart = nodes[:, :, None] - nodes[:, None, :]
    points = nodes.new_tensor([0.5 - _GAUSS, 0.5 + _GAUSS])
    factors = (points[:, None, None] - nodes[:, None, None, :]) / apart[:, None]
    return torch.where(itself, 1.0, factors).prod(3).mean(1)


def _weights(nodes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Predictor's and corrector's weights, `(n, K + 1)` both, from the newest `known` (n,) nodes.

    The last column is that of the new slope, at the end of the step.
    """
    n, history = nodes.shape
    predictor = nodes.new_zeros(n, history + 1)
    corrector = torch.zeros_like(predictor)
    for k in range(1, history + 1):
        rows = (known == k).nonzero().squeeze(1)
        if not rows.numel():
            continue
        old = nodes[rows, :k]
        predictor[rows, :k] = integration_weights(old)
        full = integration_weights(torch.cat([old, torch.ones_like(old[:, :1])], 1))
        corrector[rows, :k] = full[:, :k]
        corrector[rows, history] = full[:, k]
    return predictor, corrector


def _combine(weights: Tensor, slopes: list[Slope]) -> Slope:
    """Sum of slopes, weighted for each example on its own."""
    state = torch.zeros_like(slopes[0].state)
    log_volume = torch.zeros_like(slopes[0].log_volume)
    for w, slope in zip(weights.unbind(1), slopes, strict=True):
        state = state + expand_to(w, state) * slope.state
        log_volume = log_volume + w * slope.log_volume
    return Slope(state, log_volume)


def _choose(mask: Tensor, yes: Slope, no: Slope) -> Slope:
    keep = mask.reshape(-1, *([1] * (yes.state.ndim - 1)))
    return Slope(
        torch.where(keep, yes.state, no.state), torch.where(mask, yes.log_volume, no.log_volume)
    )


def integrate_adams(
    field: Field,
    state: Float[Tensor, "b *event"],
    start: Float[Tensor, ""],
    stop: Float[Tensor, ""],
    *,
    rtol: float,
    atol: float,
    slope: Slope | None = None,
    first_step: float | None = None,
    describe: Callable[[float], str] = "u = {:.3g}".format,
) -> Solution:
    """Carry `state` and a logarithm that starts at 0 from `start` to `stop` > `start`.

    The Adams-Bashforth predictor of order 3 says where to evaluate, the Adams-Moulton corrector of
    order 4 is the result; the slope at the predicted point serves the next steps (PEC: one
    evaluation a step). The first two steps are of lower order. Predictor minus corrector is held
    to the tolerance as in `runge_kutta.integrate`; the result is far closer than that.

    Args:
        field: right-hand side of both.
        state: where to begin.
        start: first position.
        stop: last position.
        rtol: relative tolerance of the state.
        atol: absolute tolerance of the state and, per dimension, of the logarithm.
        slope: the field at the start, if it is known.
        first_step: length of the first step; None takes a fiftieth of the interval.
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
    h = (span * 0.02 if first_step is None else torch.as_tensor(first_step)).to(u).expand(count)
    total = torch.zeros_like(u)
    rejected = torch.zeros_like(rows, dtype=torch.bool)
    if slope is None:
        slope = field(state, u, rows)
    spent, known = torch.ones_like(rows), torch.ones_like(rows)
    past = [_Point(u, slope)] * _HISTORY  # newest first; the oldest count once they are known
    while rows.numel():
        # A remainder that is a hair longer than the step is taken along with it.
        left = stop - u
        h = torch.where(h * 1.01 >= left, left, h)
        nodes = torch.stack([(point.u - u) / h for point in past], 1)
        predictor, corrector = _weights(nodes, known)
        slopes = [point.slope for point in past]
        step = expand_to(h, state)
        guess = _combine(predictor[:, :-1], slopes)
        slopes.append(field(state + step * guess.state, u + h, rows))
        spent = spent + 1
        change = _combine(corrector, slopes)
        after = state + step * change.state
        gap = Slope(change.state - guess.state, change.log_volume - guess.log_volume)
        norm = error_norm(gap, state, after, h, rtol=rtol, atol=atol)

        accept = norm <= 1.0
        arrived = accept & (h >= left)
        newest = _Point(u + h, slopes[-1])
        u = torch.where(accept, u + h, u)
        total = torch.where(accept, total + h * change.log_volume, total)
        state = _choose(accept, Slope(after, total), Slope(state, total)).state
        past = [
            _Point(torch.where(accept, new.u, old.u), _choose(accept, new.slope, old.slope))
            for new, old in zip([newest, *past[:-1]], past, strict=True)
        ]
        factor = _SAFETY * norm.clamp(min=1e-10) ** (-1.0 / (known + 1))
        known = (known + accept.to(known.dtype)).clamp(max=_HISTORY)
        # After a rejection the step may not grow at once: it would be rejected again.
        limit = torch.where(rejected | ~accept, 1.0, _GROW)
        h = h * factor.clamp(min=_SHRINK).minimum(limit)
        rejected = ~accept

        if bool(arrived.any()):
            gone, stay = rows[arrived], ~arrived
            final[gone] = state[arrived]
            log_volume[gone] = total[arrived]
            nfe[gone] = spent[arrived]
            rows, u, h, total, spent = rows[stay], u[stay], h[stay], total[stay], spent[stay]
            rejected, known, state, norm = rejected[stay], known[stay], state[stay], norm[stay]
            past = [
                _Point(p.u[stay], Slope(p.slope.state[stay], p.slope.log_volume[stay]))
                for p in past
            ]
        check_steps(h, span, u, rows, past[0].slope, norm, describe)
    return Solution(final, log_volume, nfe)
