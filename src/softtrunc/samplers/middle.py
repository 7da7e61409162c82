"""A sampler started in the middle: from x_t, at any t, to data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.noise import Noise
from softtrunc.samplers.base import (
    Call,
    FixedStepSampler,
    Sampler,
    Samples,
    ScoreHook,
    State,
    check_state,
    evaluation_mode,
)
from softtrunc.samplers.grids import point_at, resolve_t_end
from softtrunc.samplers.probability_flow import ProbabilityFlow
from softtrunc.score import ScoreFunction


def sample_from(
    sampler: Sampler,
    model: ScoreFunction,
    x: Float[Tensor, " b *event"],
    t: float,
    *,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    score_fn: ScoreHook | None = None,
) -> Samples:
    """Go on from states at time `t` as the sampler would have done.

    A fixed-step sampler goes straight to the next of its own times and on from there: the smaller
    `t`, the fewer its steps. From T it is `sampler.sample(..., x_init=x)`.

    Args:
        sampler: `ProbabilityFlow` or any fixed-step sampler.
        model: anything with `.sde` and `.score(x, t)`.
        x: x_t, `(B, *event)`; computed where they lie, in their precision.
        t: their time, in (0, T].
        seeds: see `Sampler.sample`; for samplers that draw noise.
        generator: see `Sampler.sample`.
        score_fn: see `Sampler.sample`.

    Raises:
        ValueError: if `t` or `x` is out of what is allowed, or the sampler is of another kind.
        FloatingPointError: if a sample is not finite.
    """
    check_state(x.shape, x.dtype)
    if not 0.0 < t <= model.sde.t_max:
        raise ValueError(f"sample_from: t={t}: need 0 < t <= {model.sde.t_max}")
    call = Call(model, len(x), Noise(len(x), seeds, generator), score_fn)
    with torch.no_grad(), evaluation_mode(model):
        if isinstance(sampler, ProbabilityFlow):
            x = _flow(sampler, call, x, t)
        elif isinstance(sampler, FixedStepSampler):
            x = _steps(sampler, call, x, t)
        else:
            raise ValueError(
                f"{type(sampler).__name__} cannot start in the middle: use ProbabilityFlow or a "
                "fixed-step sampler"
            )
    return call.finished(x)


def _flow(flow: ProbabilityFlow, call: Call, x: Tensor, t: float) -> Tensor:
    end = point_at(call.sde, min(t, resolve_t_end(call.sde, flow.t_end)))
    if end.t < t:
        x = flow.transport(call, x, point_at(call.sde, t), end)
    return call.denoise(x, end) if flow.denoise_final else x


def _steps(sampler: FixedStepSampler, call: Call, x: Tensor, t: float) -> Tensor:
    moves = sampler.steps - 1 if sampler.denoise_final else sampler.steps
    start = point_at(call.sde, t)
    # A step of almost no length would divide by what rounding left of it.
    nearest = start.half_log_snr + 1e-6
    rest = [p for p in sampler._points(call.sde, moves) if p.half_log_snr > nearest]
    points = [start, *rest]
    state = State(x)
    for here, there in pairwise(points):
        state = sampler._step(call, state, here, there)
    if sampler.denoise_final:
        state = sampler._last_step(call, state, points[-1])
    return state.x
