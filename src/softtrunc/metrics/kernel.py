"""Kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class KernelDistance(NamedTuple):
    """Mean of the estimates over subsets, and their standard deviation."""

    mean: float
    std: float


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def squared_mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Unbiased estimate of the squared maximum mean discrepancy, kernel `(x . y / d + 1)^3`.

    It may be negative. At least two examples on each side.
    """
    n, m = len(x), len(y)
    k_xx, k_yy = _kernel(x, x), _kernel(y, y)
    within_x = (k_xx.sum() - k_xx.diagonal().sum()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2.0 * _kernel(x, y).mean()


def kernel_inception_distance(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """Squared MMD between features, averaged over random subsets; unbiased at any sample count.

    Args:
        real: features of the reference images.
        generated: features of the samples.
        subsets: number of subsets.
        subset_size: examples drawn from each side, without replacement, for each of them.
        generator: source of the subsets.

    Raises:
        ValueError: if a subset would be smaller than 2 or larger than a side.
    """
    if not 2 <= subset_size <= min(len(real), len(generated)):
        raise ValueError(
            f"kernel_inception_distance: subset_size={subset_size}: need 2 to "
            f"{min(len(real), len(generated))}, the smaller number of images"
        )
    if subsets < 1:
        raise ValueError(f"kernel_inception_distance: subsets={subsets}: need at least 1")
    wide = torch.float32 if real.device.type == "mps" else torch.float64
    if wide is torch.float32:  # before it is sent: the device may not have the type it is in
        generated = generated.float()
    x, y = real.to(wide), generated.to(real.device).to(wide)
    device = torch.device("cpu") if generator is None else generator.device
    estimates = []
    for _ in range(subsets):
        rows = [
            torch.randperm(len(z), generator=generator, device=device)[:subset_size].to(z.device)
            for z in (x, y)
        ]
        estimates.append(squared_mmd(x[rows[0]], y[rows[1]]))
    values = torch.stack(estimates)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))
