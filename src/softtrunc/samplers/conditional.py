"""Inpainting and colourisation with an unconditional model, by holding the known part in place.

After every step the known part of the state is replaced by the known data, brought to the noise
level that the step has reached. Source: Song et al. 2021 (arXiv 2011.13456), appendix I.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softtrunc.noise import Noise
from softtrunc.samplers.base import FixedStepSampler, SampleOptions, Samples
from softtrunc.samplers.grids import Point
from softtrunc.score import ScoreFunction


def inpaint(
    sampler: FixedStepSampler,
    model: ScoreFunction,
    known: Float[Tensor, " b *event"],
    mask: Bool[Tensor, " *mask"],
    **options: Unpack[SampleOptions],
) -> Samples:
    """Fill in what is missing.

    With `denoise_final` the known values come back unchanged.

    Args:
        sampler: any fixed-step sampler; the source used `PredictorCorrector`.
        model: anything with `.sde` and `.score(x, t)`.
        known: `(B, *event)` in the model's data range; what lies outside the mask is not read.
        mask: True where `known` is known; broadcastable to `known`.
        options: `seeds`, `generator`, `score_fn` and `callback` of `Sampler.sample`.

    Raises:
        ValueError: if the mask does not fit or holds anything but True and False.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: give a bool tensor, True where known")
    try:
        mask = mask.to(known.device).expand(known.shape)
    except RuntimeError:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not fit data of shape {tuple(known.shape)}"
        ) from None

    def hold(x: Tensor, where: Point | None, noise: Noise) -> Tensor:
        target = known.to(x)
        if where is not None:
            target = where.alpha * target + where.sigma * noise.like(x)
        return torch.where(mask, target, x)

    return sampler.sample(
        model,
        known.shape,
        device=known.device,
        dtype=torch.promote_types(known.dtype, torch.float32),
        constraint=hold,
        **options,
    )


def colorize(
    sampler: FixedStepSampler,
    model: ScoreFunction,
    gray: Float[Tensor, " b 1 *space"],
    *,
    channels: int = 3,
    **options: Unpack[SampleOptions],
) -> Samples:
    """Find colours whose mean over the channels is `gray`.

    In an orthonormal basis of the channels whose first vector is constant, the grey value is one
    coordinate, and its noise is independent of the others: holding the mean in place is
    inpainting there.

    Args:
        sampler: any fixed-step sampler; the source used `PredictorCorrector`.
        model: anything with `.sde` and `.score(x, t)` for `(B, channels, *space)`.
        gray: `(B, 1, *space)` in the model's data range.
        channels: how many channels the model has, >= 2.
        options: `seeds`, `generator`, `score_fn` and `callback` of `Sampler.sample`.

    Raises:
        ValueError: if `gray` does not have one channel or `channels` is below 2.
    """
    if gray.ndim < 3 or gray.shape[1] != 1:
        raise ValueError(f"gray has shape {tuple(gray.shape)}: write (batch, 1, height, width)")
    if channels < 2:
        raise ValueError(f"channels={channels}: colourisation needs at least 2, usually 3")

    def hold(x: Tensor, where: Point | None, noise: Noise) -> Tensor:
        target = gray.to(x)
        if where is not None:
            spread = where.sigma / math.sqrt(channels)
            target = where.alpha * target + spread * noise.like(target)
        return x + (target - x.mean(1, keepdim=True))

    return sampler.sample(
        model,
        (gray.shape[0], channels, *gray.shape[2:]),
        device=gray.device,
        dtype=torch.promote_types(gray.dtype, torch.float32),
        constraint=hold,
        **options,
    )
