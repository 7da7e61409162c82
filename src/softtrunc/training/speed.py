"""What a device does faster when told how: types of products, layouts, kernels, kept memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

_WIDE = 256  # channels of the paper's networks at their lowest resolutions

# glibc's names for what mallopt sets (malloc.h), and the largest values it takes or that help.
_TRIM_THRESHOLD, _KEPT_BYTES = -1, 1 << 30
_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 32 << 20


@contextmanager
def fast_kernels(device: torch.device, *, tf32: bool = True) -> Iterator[None]:
    """Within the block CUDA multiplies float32 in TF32 and tries out which convolution is fastest.

    TF32 keeps float32's range and ten bits of its precision: enough for training, not for a figure
    of three decimals, so the block ends with it. Other devices have no such choice; on a CPU freed
    memory is kept (`keep_freed_memory`), then and after.

    Args:
        device: where the work is done.
        tf32: False leaves float32 products whole.
    """
    if device.type == "cpu":
        keep_freed_memory()
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


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of what is freed, where it is the allocator.

    Otherwise it hands the activations of a step back to the system, which clears every page again
    in the next step: 5 % of a step of DDPM++ in bf16. It cannot be asked what was set before, so
    this stays.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, or none to open
        mallopt = ctypes.CDLL(None).mallopt
        # Either one alone ends its own adaption of both, which is worse than nothing.
        if mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES):
            mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def prefers_channels_last(network: nn.Module, device: torch.device) -> bool:
    """Whether convolutions are known to be faster with channels as the last axis in memory.

    On CPUs those of wide networks are, in float32 and bf16, and in small ones are not
    (docs/results.md). Nowhere else was it measured.
    """
    widths = (part.out_channels for part in network.modules() if isinstance(part, nn.Conv2d))
    return device.type == "cpu" and max(widths, default=0) >= _WIDE


def lay_channels_last(network: nn.Module) -> None:
    """Lay the weights of two-dimensional convolutions so; activations follow them.

    To be called before an optimiser or an average copies their layout. No number changes.
    """
    torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)


def lay_out(network: nn.Module, device: torch.device, channels_last: bool | None) -> None:
    """Lay a network's convolutions out as a recipe says; None: as is known to be faster."""
    if prefers_channels_last(network, device) if channels_last is None else channels_last:
        lay_channels_last(network)
