"""What a device does faster when it is told how: types of products, layouts, kernels tried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_WIDE = 256  # channels of the paper's networks at their lowest resolutions


@contextmanager
def fast_kernels(device: torch.device, *, tf32: bool = True) -> Iterator[None]:
    """Within the block CUDA multiplies float32 in TF32 and tries out which convolution is fastest.

    TF32 keeps float32's range and ten bits of its precision: enough for training, not for a figure
    of three decimals, so the block ends with it. Other devices have no such choice.

    Args:
        device: where the work is done.
        tf32: False leaves float32 products whole.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32, cudnn.benchmark = tf32, True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


def prefers_channels_last(network: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether convolutions are known to be faster with channels as the last axis in memory.

    On CPUs those of wide networks are in float32, and are not in bf16 or in small ones
    (docs/results.md). Nowhere else was it measured.
    """
    widths = (part.out_channels for part in network.modules() if isinstance(part, nn.Conv2d))
    return device.type == "cpu" and precision == "no" and max(widths, default=0) >= _WIDE


def lay_channels_last(network: nn.Module) -> None:
    """Lay the weights of two-dimensional convolutions so; activations follow them.

    To be called before an optimiser or an average copies their layout. No number changes.
    """
    torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
