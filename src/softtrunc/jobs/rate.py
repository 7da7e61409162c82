"""How fast this machine trains a network, found by training it for some seconds."""

from __future__ import annotations

import platform
import time
from typing import NamedTuple

import torch

from softtrunc.networks import NetworkConfig, build_network, flops_per_image, output_of

STEP_OVER_FORWARD = 3
"""A training step: forward, gradient of the activations, gradient of the weights."""

# FLOP of one image's step that any CPU core does in some seconds.
_MOST = 3e11


class Rate(NamedTuple):
    """FLOP/s that a device sustained in training, and its name."""

    flops: float
    device: str


def training_rate(
    config: NetworkConfig, batch_size: int, *, precision: str, seconds: float = 10.0
) -> Rate | None:
    """Train a network on noise for some `seconds`, in batches that grow up to `batch_size`.

    Args:
        config: the network.
        batch_size: images of a forward pass in training.
        precision: "no" for float32, or "bf16".
        seconds: after which no further step is begun.

    Returns:
        The rate of the fastest batch; None if a single image would take too long on a CPU.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    step = STEP_OVER_FORWARD * flops_per_image(config)
    if device.type == "cpu" and step > _MOST:
        return None
    network = build_network(config).to(device).train()

    def train(size: int) -> float:
        """Seconds of a step; reading the loss waits for a device to finish."""
        x = torch.randn(size, config.channels, *config.size, device=device)
        label = torch.rand(size, device=device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = output_of(network, x, label).square().mean()
        loss.backward()
        float(loss.detach())
        return time.perf_counter() - started

    best, size, end = 0.0, 1, time.perf_counter() + seconds
    train(size)  # the first one finds its kernels
    while True:
        taken = train(size)
        best = max(best, step * size / taken)
        left = end - time.perf_counter()
        if left < taken:
            break
        if size < batch_size and 2 * taken < left:
            size = min(2 * size, batch_size)
    return Rate(best, _name(device))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"this CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"this {platform.machine()} {device.type.upper()}"
