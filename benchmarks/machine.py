"""What this machine can do at best: the yardstick for everything else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one run: by the clock, or on one thread of a CPU those that this process worked.

    What else a shared machine does is then left out, but for what it takes of the caches. Several
    threads sleep where work is too small for all of them, which time of work would not count.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The shortest of several runs, after one to warm up."""
    run()
    return min(seconds(run, device) for _ in range(repeats))


def interleaved(
    first: Callable[[], object], second: Callable[[], object], device: torch.device, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of both in turns, now one first, now the other: the machine hits both alike."""
    pairs = []
    for i in range(rounds):
        if i % 2:
            pairs.append((seconds(first, device), seconds(second, device)))
        else:
            later = seconds(second, device)
            pairs.append((seconds(first, device), later))
    return pairs


class Ratio(NamedTuple):
    """Median of the ratios of pairs, and its standard error by the quartiles of a normal law."""

    median: float
    error: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Ratio:
        """First over second."""
        ratios = [first / second for first, second in pairs]
        low, _, high = statistics.quantiles(ratios, n=4)
        return cls(statistics.median(ratios), 0.93 * (high - low) / len(ratios) ** 0.5)


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
