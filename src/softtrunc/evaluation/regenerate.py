"""Which times decide samples: images noised up to a time, and what a model makes of them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.samplers import Sampler, sample_from
from softtrunc.score import ScoreFunction
from softtrunc.sde import random_normal


class Regeneration(NamedTuple):
    """Images that went up to each of several times and came back.

    - `t` (times,): the times, as given.
    - `x` (times, B, *event): what came back.
    - `squared_error` (times, B): of it from the image, the mean over dimensions. CPU.
    - `correlation` (times, B): with the image, over its dimensions; 1 where it is the image. CPU.
    """

    t: Float[Tensor, " times"]
    x: Tensor
    squared_error: Float[Tensor, "times b"]
    correlation: Float[Tensor, "times b"]


def regenerate(
    model: ScoreFunction,
    x: Float[Tensor, "b *event"],
    times: Sequence[float],
    *,
    sampler: Sampler,
    noise: Float[Tensor, "b *event"] | None = None,
    generator: torch.Generator | None = None,
) -> Regeneration:
    """Diffuse images to each time, with the same noise, and sample from there back to data.

    What a sample shares with the image that it was noised from was decided above that time, and
    what differs below it.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        x: images in the model's data range.
        times: in (0, T].
        sampler: what brings them back; `ProbabilityFlow` or a fixed-step sampler.
        noise: standard normal noise of the shape of `x`; None draws it.
        generator: source of the noise, and of that of a stochastic sampler.

    Raises:
        ValueError: if there are no times, one is out of range, or the sampler cannot start there.
    """
    if not times:
        raise ValueError("regenerate: no times: give at least one in (0, T]")
    if noise is None:
        noise = random_normal(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    found = []
    for t in times:
        x_t = model.sde.perturb(x, torch.tensor(t, dtype=torch.float64), noise)
        found.append(sample_from(sampler, model, x_t, t, generator=generator).x)
    back = torch.stack(found)
    ours, theirs = back.flatten(2).cpu().double(), x.flatten(1).cpu().double()
    return Regeneration(
        torch.tensor(times, dtype=torch.float64),
        back,
        (ours - theirs).square().mean(2),
        torch.cosine_similarity(
            ours - ours.mean(2, keepdim=True), theirs - theirs.mean(1, keepdim=True), dim=2
        ),
    )
