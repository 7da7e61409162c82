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
    """Largest rate of square matrix products over several sizes, in GFLOP/s."""
    rates = []
    for n in (4096, 8192) if device.type == "cuda" else (1024, 2048, 3072):
        a = torch.randn(n, n, device=device).to(dtype)
        rates.append(2 * n**3 / best_seconds(lambda a=a: a @ a, device))
    return max(rates) / 1e9


def conv_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Largest rate of 3x3 convolutions of the sizes in CIFAR-10 networks, in GFLOP/s."""
    batch = 256 if device.type == "cuda" else 16
    rates = []
    for channels, side in ((128, 32), (256, 16), (256, 8), (512, 8)):
        for layout in (torch.contiguous_format, torch.channels_last):
            conv = torch.nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
            conv = conv.to(memory_format=layout)
            x = torch.randn(batch, channels, side, side, device=device).to(dtype)
            x = x.to(memory_format=layout)
            flop = 2 * batch * side**2 * channels**2 * 9
            with torch.no_grad():
                rates.append(flop / best_seconds(lambda conv=conv, x=x: conv(x), device))
    return max(rates) / 1e9
