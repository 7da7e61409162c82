"""An imported model trained on: its bound changes at the times that the truncation looks at."""

from __future__ import annotations

import torch
from pipelines import SCHEDULES, pipeline

from softtrunc import HardTruncation, PowerPrior, SoftTruncationLoss, variance_weight
from softtrunc.interop import from_diffusers
from softtrunc.sde import random_normal
from softtrunc.times import LogSNRTimes

STEPS = 60
EARLY, LATE = (0.002, 0.02), (0.5, 0.95)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int) -> torch.Tensor:
    """Constant grey images, which are easy to learn."""
    return 1.2 * torch.rand(n, 1, 1, 1, generator=seeded(0)).expand(n, 3, 8, 8) - 0.6


@torch.no_grad()
def error(model, times) -> float:
    """Of the predicted noise over a range of times: the bound's integrand over log-SNR."""
    x = images(64)
    t = torch.linspace(*times, 64, dtype=torch.float64)
    noise = random_normal(x.shape, generator=seeded(1))
    return float((model.noise(model.sde.perturb(x, t, noise), t) - noise).square().mean())


def gains(prior) -> tuple[float, float]:
    """By which factor the error falls at early and at late times."""
    model = from_diffusers(pipeline(**SCHEDULES["epsilon"]))
    before = [error(model, times) for times in (EARLY, LATE)]
    loss = SoftTruncationLoss(
        model.sde,
        prior,
        LogSNRTimes(model.sde, stratified=True, average=True),
        variance_weight(model.sde),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = seeded(2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, images(16), generator=generator).loss.mean().backward()
        optimizer.step()
    after = [error(model, times) for times in (EARLY, LATE)]
    early, late = (b / a for b, a in zip(before, after, strict=True))
    return early, late


def test_training_on_changes_the_bound_where_the_truncation_looks():
    early, late = gains(HardTruncation(0.4))
    soft_early, soft_late = gains(PowerPrior(1.0, 1e-3))
    # Looked at alone, late times gain; early ones are not asked for.
    assert late > 3
    assert late > 2 * early
    # Soft Truncation looks at all of them.
    assert soft_late > 2
    assert soft_early > 1.5 * early
