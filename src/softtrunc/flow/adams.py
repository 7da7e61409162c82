"""Adams' method with a step length of every example's own.

A Runge-Kutta step throws its slopes away; Adams' method integrates the polynomial through the last
ones and asks for a single new evaluation a step (Hairer, Norsett & Wanner, "Solving Ordinary
Differential Equations I", III.5). A learned score oscillates in t with the features of its noise
label, so that high orders at long steps promise accuracy that is not there, and evaluations that
are spread evenly count for more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.flow.steps import Attempt, Field, Place, Slope, StepMethod
from softtrunc.sde import expand_to

_HISTORY = 3
"""Slopes behind the predictor (order 3); with the new one the corrector has order 4."""

_GAUSS = 0.5 / math.sqrt(3.0)


def integration_weights(nodes: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Weights of values at the nodes in the integral over [0, 1] of the polynomial through them.

    Args:
        nodes: at most four different ones a row. (Two Gauss points are exact up to cubics.)
    """
    k = nodes.shape[1]
    itself = torch.eye(k, dtype=torch.bool, device=nodes.device)
    apart = nodes[:, :, None] - nodes[:, None, :]
    total = torch.zeros_like(nodes)
    for point in (0.5 - _GAUSS, 0.5 + _GAUSS):
        total += torch.where(itself, 1.0, (point - nodes[:, None, :]) / apart).prod(2)
    return total / 2


def _weights(nodes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Predictor's and corrector's weights, `(n, K + 1)` both, from the newest `known` (n,) nodes.

    The first column is that of the new slope, at the end of the step.
    """
    predictor = nodes.new_zeros(len(nodes), _HISTORY + 1)
    corrector = torch.zeros_like(predictor)
    end = torch.ones_like(nodes[:, :1])
    # Of every example at every order, to choose from: asking which are needed would wait for the
    # device. Nodes that are not known stand twice and give nan.
    for k in range(1, _HISTORY + 1):
        old, mine = nodes[:, :k], (known == k)[:, None]
        for weights, first, found in (
            (predictor, 1, integration_weights(old)),
            (corrector, 0, integration_weights(torch.cat([end, old], 1))),
        ):
            place = weights[:, first : k + 1]
            place.copy_(torch.where(mine, found, place))
    return predictor, corrector


def _combine(weights: Tensor, states: Tensor, logs: Tensor) -> Slope:
    """Sum of slopes, weighted for each example on its own; column by column, as in any batch."""
    slope = Slope(torch.zeros_like(states[:, 0]), torch.zeros_like(logs[:, 0]))
    for w, state, log in zip(weights.unbind(1), states.unbind(1), logs.unbind(1), strict=True):
        slope = Slope(slope.state + expand_to(w, state) * state, slope.log_volume + w * log)
    return slope


@dataclass(frozen=True, kw_only=True)
class Adams(StepMethod):
    """Predictor of order 3 (Bashforth), corrector of order 4 (Moulton).

    The predictor says where to evaluate, the corrector is the result; the slope at the predicted
    point serves the next steps (PEC: one evaluation a step). The first two steps are of lower
    order. Predictor minus corrector is held to the tolerance; the result is far closer than that.
    """

    cost: int = 1
    first_step: float = 0.02
    shrink: float = 0.3
    grow: float = 2.0
    """Longer steps after short ones magnify errors of the past ones."""

    def begin(self, u: Tensor, slope: Slope, /) -> tuple[Tensor, ...]:
        """How many slopes are known, where they were taken, and they; the newest first."""
        past = (torch.stack([v] * _HISTORY, 1) for v in (u, *slope))
        return torch.ones_like(u, dtype=torch.int64), *past

    def attempt(self, field: Field, here: Place, h: Tensor, rows: Tensor) -> Attempt:
        """One step of length `h` for every example."""
        known, nodes, states, logs = here.past
        predictor, corrector = _weights((nodes - here.u[:, None]) / h[:, None], known)
        step = expand_to(h, here.state)
        guess = _combine(predictor[:, 1:], states, logs)
        u = here.u + h
        slope = field(here.state + step * guess.state, u, rows)
        nodes, states, logs = (
            torch.cat([new[:, None], old], 1)
            for new, old in ((u, nodes), (slope.state, states), (slope.log_volume, logs))
        )
        change = _combine(corrector, states, logs)
        there = Place(
            u,
            here.state + step * change.state,
            here.log_volume + h * change.log_volume,
            slope,
            ((known + 1).clamp(max=_HISTORY), nodes[:, :-1], states[:, :-1], logs[:, :-1]),
        )
        gap = Slope(change.state - guess.state, change.log_volume - guess.log_volume)
        return Attempt(there, gap, known + 1)


ADAMS = Adams()
