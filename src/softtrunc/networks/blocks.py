"""What the score U-Net is made of: residual blocks, attention, pyramids and the output head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from softtrunc.networks.dropout import dropout
from softtrunc.networks.group_norm import GroupNorm
from softtrunc.networks.initial import Initialisable, fan_avg_uniform_
from softtrunc.networks.resample import ConvDownsample, downsampler

Nonlinearity = Literal["silu", "elu", "relu", "leaky_relu"]


_NONLINEARITIES: dict[Nonlinearity, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
}


def activation(name: Nonlinearity) -> nn.Module:
    """Nonlinearity of this name."""
    return _NONLINEARITIES[name]()


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation over min(channels/4, 32) groups, or the next number that divides."""
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return GroupNorm(groups, channels, eps=1e-6)


def add_residual(x: Tensor, h: Tensor, *, rescale: bool) -> Tensor:
    """Sum of the two branches, divided by sqrt(2) where the variance is to be kept."""
    total = x + h
    # In place: nothing keeps the sum for the backward pass.
    return total.mul_(math.sqrt(0.5)) if rescale else total


class ResidualBlock(Initialisable):
    """Norm, activation, [resample], convolution, + noise level, norm, activation, convolution.

    The pre-activation block of DDPM; with `resample` the BigGAN form, where both the branch and
    the skip are halved or doubled inside the block (arXiv 2011.13456, appendix H).

    Args:
        embedding_width: size of the noise embedding, or None for a block that does not see it.
        resample: parameter-free halving or doubling, or None.
        dropout: probability of dropping a channel's pixel before the last convolution.
        init_scale: of the last convolution; 0 makes the branch start at (almost) nothing.
        shortcut_init_scale: of the 1x1 convolution on the skip.
        rescale: divide the sum of branch and skip by sqrt(2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int | None,
        *,
        resample: nn.Module | None = None,
        nonlinearity: Nonlinearity = "silu",
        dropout: float = 0.0,
        init_scale: float = 0.0,
        shortcut_init_scale: float = 1.0,
        rescale: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.noise = None if embedding_width is None else nn.Linear(embedding_width, out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes = resample is not None or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else None
        self.resample = resample
        self.activation = activation(nonlinearity)
        self.dropout = dropout
        self.init_scale = init_scale
        self.shortcut_init_scale = shortcut_init_scale
        self.rescale = rescale

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.conv1, generator=generator)
        if self.noise is not None:
            fan_avg_uniform_(self.noise, generator=generator)
        fan_avg_uniform_(self.conv2, self.init_scale, generator=generator)
        if self.shortcut is not None:
            fan_avg_uniform_(self.shortcut, self.shortcut_init_scale, generator=generator)

    def forward(
        self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b d h2 w2"]:
        """Result of the block; `embedding` is the activated noise embedding."""
        h = self.activation(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.noise is not None:
            h = h + self.noise(embedding)[:, :, None, None]
        h = self.activation(self.norm2(h))
        if self.dropout and self.training:
            h = dropout(h, self.dropout)
        h = self.conv2(h)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return add_residual(x, h, rescale=self.rescale)


class AttentionBlock(Initialisable):
    """Single-head self-attention over all pixels, with its own norm and skip.

    `init_scale` is that of the output projection; 0 makes the branch start at (almost) nothing.
    """

    def __init__(self, channels: int, *, init_scale: float = 0.0, rescale: bool = True) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)  # queries, keys, values: one product
        self.out = nn.Linear(channels, channels)
        self.init_scale = init_scale
        self.rescale = rescale

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.qkv, 0.1, parts=3, generator=generator)
        fan_avg_uniform_(self.out, self.init_scale, generator=generator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Attend over the h*w pixels of each image."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (b, h*w, c): a view when channels-last
        query, key, value = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        h = self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])
        return add_residual(x, h, rescale=self.rescale)


class PyramidStep(NamedTuple):
    """What the next level of the pyramid starts from, and the main path with it merged in."""

    pyramid: Tensor
    h: Tensor


class ResidualPyramid(nn.Module):
    """Input pyramid "residual": a learned halving of the pyramid, averaged into the main path."""

    def __init__(
        self, in_channels: int, out_channels: int, taps: Sequence[float] | None, *, rescale: bool
    ) -> None:
        super().__init__()
        self.down = ConvDownsample(in_channels, out_channels, taps)
        self.rescale = rescale

    def forward(
        self, pyramid: Float[Tensor, "b p h w"], h: Float[Tensor, "b c h//2 w//2"]
    ) -> PyramidStep:
        """Halve the pyramid and merge; the merged path is the next pyramid as well."""
        merged = add_residual(self.down(pyramid), h, rescale=self.rescale)
        return PyramidStep(merged, merged)


class InputSkip(Initialisable):
    """Input pyramid "input_skip": the halved image itself, through a 1x1 convolution.

    It is added to the main path (combine "sum") or put beside it ("cat": twice the channels).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: Sequence[float] | None,
        *,
        combine: Literal["sum", "cat"],
    ) -> None:
        super().__init__()
        self.resample = downsampler(taps)
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.combine = combine

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.conv, generator=generator)

    def forward(
        self, pyramid: Float[Tensor, "b p h w"], h: Float[Tensor, "b c h//2 w//2"]
    ) -> PyramidStep:
        """Halve the image and merge its projection."""
        pyramid = self.resample(pyramid)
        image = self.conv(pyramid)
        merged = image + h if self.combine == "sum" else torch.cat([image, h], dim=1)
        return PyramidStep(pyramid, merged)


class OutputSkip(nn.Module):
    """Output pyramid "output_skip": a level's own image, added to the doubled one from below."""

    def __init__(self, head: ImageHead, resample: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.resample = resample

    def forward(
        self, h: Float[Tensor, "b c h w"], coarser: Float[Tensor, "b d h//2 w//2"] | None
    ) -> Float[Tensor, "b d h w"]:
        """Image at this level; `coarser` is the level below, None at the lowest."""
        image: Tensor = self.head(h)
        return image if coarser is None else self.resample(coarser) + image


class ImageHead(Initialisable):
    """Norm, activation and a 3x3 convolution to the channels of the image.

    With `init_scale` 0 the network's first output is (almost) zero.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, nonlinearity: Nonlinearity, init_scale: float
    ) -> None:
        super().__init__()
        self.norm = group_norm(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.activation = activation(nonlinearity)
        self.init_scale = init_scale

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.conv, self.init_scale, generator=generator)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Image of the features."""
        out: Tensor = self.conv(self.activation(self.norm(h)))
        return out
