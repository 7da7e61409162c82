"""How the network reads the noise level: sinusoids or random Fourier features, then an MLP."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.networks.initial import Initialisable, fan_avg_uniform_


class SinusoidalFeatures(nn.Module):
    """`size` (even, >= 4) sines and cosines of c, frequencies 1 to 1e-4 (arXiv 1706.03762)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, c: Float[Tensor, " b"]) -> Float[Tensor, "b features"]:
        """Features of the noise label c (of order 0 to 1000)."""
        half = self.size // 2
        index = torch.arange(half, dtype=c.dtype, device=c.device)
        angle = c[:, None] * torch.exp(index * (-math.log(10_000) / (half - 1)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class FourierFeatures(Initialisable):
    """Sines and cosines of c at frozen random frequencies (arXiv 2006.10739).

    The frequencies are drawn once, N(0, scale^2). They are a parameter that needs no gradient:
    part of the checkpoint and of the parameter count, and never trained. There are `2 size`
    features.
    """

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.frequencies = nn.Parameter(torch.empty(size), requires_grad=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the frequencies."""
        if self.frequencies.is_meta:
            return
        device = self.frequencies.device if generator is None else generator.device
        drawn = torch.randn(self.frequencies.shape, device=device, generator=generator)
        self.frequencies.copy_(self.scale * drawn)

    def forward(self, c: Float[Tensor, " b"]) -> Float[Tensor, "b features"]:
        """Features of the noise label c (of order -10 to 10, for instance log sigma)."""
        angle = c[:, None] * self.frequencies.to(c.dtype) * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class NoiseEmbedding(Initialisable):
    """Features of the noise label and a two-layer MLP; what every residual block is told.

    The nonlinearity is applied to the result as well: each block would apply it anyway.
    """

    def __init__(
        self, features: nn.Module, in_features: int, width: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.features = features
        self.linear1 = nn.Linear(in_features, width)
        self.linear2 = nn.Linear(width, width)
        self.activation = activation

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.linear1, generator=generator)
        fan_avg_uniform_(self.linear2, generator=generator)

    def forward(self, c: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        """Embedding of the noise label c."""
        # Angles go up to about 1000 radians: half precision would lose them altogether.
        label = c if c.dtype == torch.float64 else c.float()
        features = self.features(label).to(self.linear1.weight.dtype)
        out: Tensor = self.activation(self.linear2(self.activation(self.linear1(features))))
        return out
