"""The probability flow as a code: data to latent, latent to data, and ways between latents."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.noise import Noise
from softtrunc.samplers.base import (
    Call,
    Callback,
    Samples,
    ScoreHook,
    check_state,
    evaluation_mode,
)
from softtrunc.samplers.grids import point_at, resolve_t_end
from softtrunc.samplers.probability_flow import ProbabilityFlow
from softtrunc.score import ScoreFunction


def encode(
    model: ScoreFunction,
    x: Float[Tensor, " b *event"],
    *,
    flow: ProbabilityFlow | None = None,
    score_fn: ScoreHook | None = None,
    callback: Callback | None = None,
) -> Samples:
    """Carry data up the flow to their latents: deterministic, and undone by `decode`.

    `x` is taken for the state at the flow's `t_end`. Under the model's own density latents are
    about N(0, prior_std^2 I). `score_fn` and `callback` are those of `Sampler.sample`. Source: Song
    et al. 2021 (arXiv 2011.13456), appendix D.4.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        x: the data `(B, *event)`; computed where they lie, in their precision.
        flow: the solver; None takes `ProbabilityFlow()`.

    Raises:
        ValueError: if `x` has no event dimension or less than single precision.
    """
    flow = flow or ProbabilityFlow()
    check_state(x.shape, x.dtype)
    call = Call(model, len(x), Noise(len(x), None, None), score_fn, callback)
    start = point_at(model.sde, resolve_t_end(model.sde, flow.t_end))
    with torch.no_grad(), evaluation_mode(model):
        latent = flow.transport(call, x, start, point_at(model.sde, model.sde.t_max))
    return Samples(latent, call.nfe)


def decode(
    model: ScoreFunction,
    latent: Float[Tensor, " b *event"],
    *,
    flow: ProbabilityFlow | None = None,
    score_fn: ScoreHook | None = None,
    callback: Callback | None = None,
) -> Samples:
    """Carry latents down the flow to `t_end`: the inverse of `encode`.

    There is no final denoising, whatever `flow` says: it has no inverse. For the cleanest pictures
    use `flow.sample(..., x_init=latent)`. `score_fn` and `callback` are those of `Sampler.sample`.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        latent: `(B, *event)`; computed where they lie, in their precision.
        flow: the solver; None takes `ProbabilityFlow()`.

    Raises:
        ValueError: if `latent` has no event dimension or less than single precision.
    """
    return replace(flow or ProbabilityFlow(), denoise_final=False).sample(
        model,
        latent.shape,
        x_init=latent,
        device=latent.device,
        dtype=latent.dtype,
        score_fn=score_fn,
        callback=callback,
    )


def slerp(
    first: Float[Tensor, " b *event"], second: Float[Tensor, " b *event"], weight: float
) -> Float[Tensor, " b *event"]:
    """Spherical interpolation, example by example: `first` at weight 0, `second` at 1.

    Latents lie near a sphere, and so do the points between them on a great arc, while a straight
    line cuts through the middle. Where the two are nearly parallel the line is taken.
    """
    a, b = first.flatten(1), second.flatten(1)
    unit = (a / a.norm(dim=1, keepdim=True) * b / b.norm(dim=1, keepdim=True)).sum(1, keepdim=True)
    angle = unit.clamp(-1.0, 1.0).acos()
    parallel = angle.sin().abs() < 1e-4
    safe = torch.where(parallel, torch.ones_like(angle), angle)
    share_a = torch.where(parallel, 1.0 - weight, ((1.0 - weight) * safe).sin() / safe.sin())
    share_b = torch.where(parallel, weight, (weight * safe).sin() / safe.sin())
    return (share_a * a + share_b * b).reshape(first.shape)
