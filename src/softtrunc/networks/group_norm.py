"""Group normalisation that is quick in half precision too, channels as the last axis, on a CPU.

PyTorch's kernels for that case handle a group's channels one by one where they are fewer than a
vector register holds: they took a sixth of a training step of DDPM++ (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_VECTOR = 16  # channels of a group from which on PyTorch's kernels are quick
_MANY_PIXELS = 1024  # from which on its forward kernel is


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, by the quickest way on the device at hand."""

    def forward(self, input: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """Normalise every group of channels of every example."""
        if not _is_slow(input, self.num_channels // self.num_groups):
            return super().forward(input)
        normalise = cast(Callable[..., Tensor], _NarrowGroups.apply)
        return normalise(input, self.weight, self.bias, self.num_groups, self.eps)


def _is_slow(x: Tensor, width: int) -> bool:
    """Whether PyTorch's kernels are slow for `x`, of groups of `width` channels."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float16)
        and width < _VECTOR
        and x.ndim == 4
        and not torch.compiler.is_compiling()  # which writes its own kernels
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _NarrowGroups(torch.autograd.Function):
    """Group normalisation of channels-last images; its gradient from sums over the pixels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        b, c, h, w = x.shape
        given = x if h * w >= _MANY_PIXELS else x.contiguous()
        y, mean, rstd = torch.native_group_norm(given, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """`dx = weight rstd dy - rstd mean(weight dy) - rstd xhat mean(weight dy xhat)`."""
        x, weight, mean, rstd = ctx.saved_tensors
        b, c, h, w = x.shape
        pixels, gradient = (v.permute(0, 2, 3, 1).reshape(b, h * w, c) for v in (x, dy))
        by_group = (b, mean.shape[1], -1)
        mean, rstd = mean[..., None].float(), rstd[..., None].float()
        scale = weight.float().view(1, *by_group[1:])
        # Sums over the pixels of dy and of dy xhat, where xhat = rstd (x - mean).
        plain = gradient.sum(1, dtype=torch.float32).view(by_group)
        product = (gradient * pixels).sum(1, dtype=torch.float32).view(by_group)
        along = rstd * (product - mean * plain)
        count = h * w * scale.shape[-1]
        slope = -rstd.square() * (scale * along).sum(-1, keepdim=True) / count
        shift = -rstd * (scale * plain).sum(-1, keepdim=True) / count - slope * mean

        def row(value: Tensor) -> Tensor:
            return value.expand(b, *scale.shape[1:]).reshape(b, 1, c).to(x.dtype)

        dx = torch.addcmul(row(shift), gradient, row(scale * rstd)).addcmul_(pixels, row(slope))
        dx = dx.view(b, h, w, c).permute(0, 3, 1, 2)
        return dx, along.sum(0).view(c).to(weight), plain.sum(0).view(c).to(weight), None, None
