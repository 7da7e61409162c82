"""Halving and doubling of feature maps: block averages or a FIR low-pass filter, in pure PyTorch.

A filter followed by a resampling is one linear map, so each is a single depthwise convolution:
strided on the way down, transposed on the way up (StyleGAN2, arXiv 1912.04958, as used by
arXiv 2011.13456). The images are taken to be zero outside their frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from softtrunc.networks.initial import Initialisable, fan_avg_uniform_


def fir_kernel_2d(taps: Sequence[float]) -> Float[Tensor, "1 1 k k"]:
    """Two-dimensional separable filter `taps x taps`, normalised to sum 1."""
    # In plain Python: networks are built on the meta device, where a product imports PyTorch's
    # compiler, a second of every start.
    total = sum(taps)
    row = [tap / total for tap in taps]
    return torch.tensor([[[[first * second for second in row] for first in row]]])


class FIRFilter(Initialisable):
    """Base of the FIR layers.

    Args:
        taps: the one-dimensional filter, of even length, for instance (1, 3, 3, 1).
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        # Derived from `taps`, hence not part of the checkpoint.
        self.register_buffer("kernel", fir_kernel_2d(self.taps), persistent=False)

    def initialise(self, generator: torch.Generator | None = None) -> None:  # noqa: ARG002
        """Restore the filter from its taps; nothing is drawn."""
        self.kernel.copy_(fir_kernel_2d(self.taps))

    def filter(self, x: Tensor, *, stride: int, padding: int) -> Tensor:
        """Filter each channel, at every pixel or every second one."""
        # A convolution is a correlation with the flipped filter.
        weight = self.kernel.flip(-1, -2).expand(x.shape[1], -1, -1, -1)
        return functional.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])


class FIRDownsample(FIRFilter):
    """Filter, then keep every second row and column."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h//2 w//2"]:
        """Halve height and width (both even)."""
        return self.filter(x, stride=2, padding=(len(self.taps) - 2) // 2)


class FIRBlur(FIRFilter):
    """Filter at full resolution, keeping what the border of a strided 3x3 convolution needs."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h+1 w+1"]:
        """Low-pass the image; the result is one row and one column larger."""
        return self.filter(x, stride=1, padding=len(self.taps) // 2)


class FIRUpsample(FIRFilter):
    """Insert zeros between rows and columns, then filter; the gain of 4 keeps the mean.

    Args:
        taps: the one-dimensional filter, of even length.
        margin: extra rows and columns computed on each side, for a convolution that follows.
    """

    def __init__(self, taps: Sequence[float], *, margin: int = 0) -> None:
        super().__init__(taps)
        self.padding = (len(self.taps) - 2) // 2 - margin

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Double height and width (and add the margin `m` on each side)."""
        weight = 4 * self.kernel.expand(x.shape[1], -1, -1, -1)
        return functional.conv_transpose2d(
            x, weight, stride=2, padding=self.padding, groups=x.shape[1]
        )


class AverageDownsample(nn.Module):
    """Mean of each 2x2 block."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h//2 w//2"]:
        """Halve height and width (both even)."""
        return functional.avg_pool2d(x, 2)


class NearestUpsample(nn.Module):
    """Repeat each pixel in a 2x2 block."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """Double height and width."""
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def downsampler(taps: Sequence[float] | None) -> nn.Module:
    """Parameter-free halving: FIR with these taps, or block averages for None."""
    return AverageDownsample() if taps is None else FIRDownsample(taps)


def upsampler(taps: Sequence[float] | None) -> nn.Module:
    """Parameter-free doubling: FIR with these taps, or pixel repetition for None."""
    return NearestUpsample() if taps is None else FIRUpsample(taps)


class ConvDownsample(Initialisable):
    """Learned halving: a 3x3 convolution of stride 2, after a FIR filter where one is given."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float] | None) -> None:
        super().__init__()
        # Without a filter the window starts at the pixel itself, so one row of zeros is
        # missing at the bottom and one column at the right.
        self.filter: nn.Module = nn.ZeroPad2d((0, 1, 0, 1)) if taps is None else FIRBlur(taps)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.conv, generator=generator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h//2 w//2"]:
        """Halve height and width (both even)."""
        out: Tensor = self.conv(self.filter(x))
        return out


class ConvUpsample(Initialisable):
    """Learned doubling: upsample by repetition or FIR, then a 3x3 convolution."""

    def __init__(self, channels: int, taps: Sequence[float] | None) -> None:
        super().__init__()
        # Under FIR the convolution sees the filter's tail beyond the frame rather than zeros:
        # that makes the pair one linear map, whichever of the two is taken first.
        self.resample: nn.Module = (
            NearestUpsample() if taps is None else FIRUpsample(taps, margin=1)
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1 if taps is None else 0)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights."""
        fan_avg_uniform_(self.conv, generator=generator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """Double height and width."""
        out: Tensor = self.conv(self.resample(x))
        return out
