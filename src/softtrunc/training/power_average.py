"""Averages of weights whose length is chosen after training.

While a model trains, two averages with power-function profiles are followed, and stored now and
then. Any other profile is approximated by a combination of what was stored.

Source: Karras et al. 2023 (arXiv 2312.02696), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.training.sharding import local

LENGTHS = (0.05, 0.10)
"""The lengths that are followed: standard deviations of the profiles over the training time."""

LONGEST = 12.0**-0.5
"""The length of the plain mean over all steps, which no profile here exceeds."""

_SHORTEST = 1e-4
"""Beyond what steps tell apart in any training."""

_WORST_FIT = 0.5
"""Of a profile's square, what a combination may miss and still be called by its name."""


class Profile(NamedTuple):
    """The weight of each past moment in an average: `tau^exponent` on (0, steps].

    After n steps the weights of step i, its parameters taken to hold on (i - 1, i], are the
    integral of the profile over that interval.
    """

    exponent: float
    steps: float


def exponent_of(length: float) -> float:
    """The exponent gamma of the profile whose standard deviation is `length` times its end.

    `length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`, solved for its largest root.

    Raises:
        ValueError: if `length` is not in [1e-4, 12^-1/2].
    """
    if not _SHORTEST <= length <= LONGEST:
        raise ValueError(
            f"an average of length {length:g}: need {_SHORTEST:g} to {LONGEST:.4f}, e.g. 0.05"
        )
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(0.0, float(roots.real.max()))


def inner_products(ours: Sequence[Profile], theirs: Sequence[Profile]) -> Float[np.ndarray, "n m"]:
    """The integrals over time of the products of two profiles, each of integral 1."""
    a, s = np.array(ours, dtype=np.float64).T[:, :, None]
    b, t = np.array(theirs, dtype=np.float64).T[:, None, :]
    common = np.minimum(s, t)
    scale = (a + 1.0) * (b + 1.0) / (a + b + 1.0)
    product: np.ndarray = scale * (common / s) ** a * (common / t) ** b * common / (s * t)
    return product


def coefficients(stored: Sequence[Profile], wanted: Profile) -> Float[np.ndarray, " n"]:
    """The combination of stored profiles that is nearest to the wanted one in mean square.

    Other than in the paper it sums to 1, so that weights that stand still come out as they are;
    with few stored profiles a free fit falls short of that by some per cent.

    Raises:
        ValueError: if what is nearest is still another profile.
    """
    gram, right = inner_products(stored, stored), inner_products(stored, [wanted])
    # Short profiles are tall: brought to one norm, the equations are better conditioned.
    norm = np.sqrt(np.diagonal(gram))[:, None]
    sides = np.concatenate([right, np.ones_like(right)], axis=1)
    solved = np.linalg.lstsq(gram / (norm * norm.T), sides / norm, rcond=1e-14)[0] / norm
    free, along = solved.T
    found: np.ndarray = free + along * (1.0 - free.sum()) / along.sum()
    square = inner_products([wanted], [wanted]).item()
    missed = square - 2.0 * found @ right[:, 0] + found @ gram @ found
    if missed > _WORST_FIT * square:
        raise ValueError(
            f"an average with the profile tau^{wanted.exponent:.3g} cannot be made of the "
            f"{len(stored)} that are stored: choose a length nearer to "
            f"{' or '.join(f'{length:g}' for length in LENGTHS)}"
        )
    return found


class PowerAverages:
    """Averages of a module's trainable parameters, one for each length.

    Of parameters that are spread over processes each averages its own part.

    Args:
        module: whose parameters to follow.
        lengths: of the averages, see `exponent_of`.
    """

    def __init__(self, module: nn.Module, lengths: Sequence[float] = LENGTHS) -> None:
        self._exponents = {length: exponent_of(length) for length in lengths}
        self.shadows: dict[float, dict[str, Tensor]] = {
            length: {
                name: local(p.detach()).clone()
                for name, p in module.named_parameters()
                if p.requires_grad
            }
            for length in lengths
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after `step` steps, 1 being the first; none may be left out."""
        parameters = dict(module.named_parameters())
        for length, shadow in self.shadows.items():
            # The share of the past, (1 - 1 / step)^(exponent + 1), without loss at large steps.
            logarithm = math.log1p(-1.0 / step) if step > 1 else -math.inf
            share = -math.expm1((self._exponents[length] + 1.0) * logarithm)
            current: list[Tensor] = [local(parameters[name]) for name in shadow]
            torch._foreach_lerp_(list(shadow.values()), current, share)
