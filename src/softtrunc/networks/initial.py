"""Initial weights: the uniform fan-average rule of DDPM (arXiv 2006.11239)."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn


class Initialisable(nn.Module, abc.ABC):
    """A module that knows how its own weights (not its submodules') start."""

    @abc.abstractmethod
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fill the weights in place, drawing from `generator` (default: the global one)."""


def fan_avg_uniform_(
    layer: nn.Conv2d | nn.Linear,
    scale: float = 1.0,
    *,
    parts: int = 1,
    generator: torch.Generator | None = None,
) -> None:
    """Fill `layer` in place: weights uniform with variance `scale / mean(fan_in, fan_out)`, bias 0.

    A `scale` of 1 keeps variances; 0 means "almost zero" (1e-10), so that a residual branch starts
    as nothing yet passes gradients. The layer may be `parts` layers stacked along the output.
    """
    out_features, in_features = layer.weight.shape[:2]
    window = math.prod(layer.weight.shape[2:])
    fan_avg = window * (in_features + out_features // parts) / 2
    bound = math.sqrt(3 * (scale or 1e-10) / fan_avg)
    uniform_(layer.weight, bound, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def uniform_(tensor: Tensor, bound: float, generator: torch.Generator | None) -> None:
    """Fill with U[-bound, bound], drawn on the generator's device."""
    if generator is None or generator.device == tensor.device or tensor.is_meta:
        tensor.uniform_(-bound, bound, generator=None if tensor.is_meta else generator)
    else:
        drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
        tensor.copy_(drawn.uniform_(-bound, bound, generator=generator))
