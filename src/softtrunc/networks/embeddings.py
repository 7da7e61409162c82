"""How the network reads the noise level: sinusoids or random Fourier features, then an MLP."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softtrunc.networks.initial import Initialisable, fan_avg_uniform_, uniform_


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

    def forward(
        self, c: Float[Tensor, " b"], told: Float[Tensor, "b width"] | None = None
    ) -> Float[Tensor, "b width"]:
        """Embedding of the noise label c; `told` is added before the last nonlinearity."""
        # Angles go up to about 1000 radians: half precision would lose them altogether.
        label = c if c.dtype == torch.float64 else c.float()
        features = self.features(label).to(self.linear1.weight.dtype)
        h = self.linear2(self.activation(self.linear1(features)))
        out: Tensor = self.activation(h if told is None else h + told.to(h.dtype))
        return out


class ConditionEmbedding(Initialisable):
    """What a network is told beside the noise level: class labels, vectors, or nothing.

    Args:
        num_classes: of the labels; the label `num_classes` says that there is none.
        vector_size: of the vectors.
        width: of the embedding.
    """

    def __init__(self, num_classes: int, vector_size: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.vector = nn.Linear(vector_size, width, bias=False) if vector_size else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights: at first the network hardly sees what it is told."""
        if self.classes is not None:
            uniform_(self.classes.weight, 0.02, generator)
        if self.vector is not None:
            fan_avg_uniform_(self.vector, generator=generator)

    def forward(
        self,
        batch: int,
        y: Int[Tensor, " b"] | None,
        vector: Float[Tensor, "b size"] | None,
    ) -> Float[Tensor, "b width"] | None:
        """The embedding of a batch; None where there is nothing to add.

        Raises:
            ValueError: if y or vector is not one for each of the batch.
        """
        total: Tensor | None = None
        if self.classes is not None:
            if y is None:
                weight = self.classes.weight
                y = torch.full((batch,), self.num_classes, device=weight.device)
            _check_told("y", y, (batch,))
            total = self.classes(y)
        if self.vector is not None and vector is not None:
            _check_told("vector", vector, (batch, self.vector.in_features))
            added = self.vector(vector)
            total = added if total is None else total + added
        return total


def _check_told(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; this batch needs {shape}")
