"""What this machine can do at best: the yardstick for everything else."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The shortest of several runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Largest rate of square matrix products, in GFLOP/s."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / best_seconds(lambda: a @ a, device) / 1e9


def conv_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a 3x3 convolution of 256 channels at 16x16, the CIFAR-10 networks' bread."""
    batch = 256 if device.type == "cuda" else 16
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype)
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.randn(batch, 256, 16, 16, device=device).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    flop = 2 * batch * 16 * 16 * 256 * 256 * 9
    with torch.no_grad():
        return flop / best_seconds(lambda: conv(x), device) / 1e9
