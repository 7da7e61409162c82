"""Soft Truncation in your own PyTorch loop: a two-dimensional data set, a small network, no images.

Run: python examples/own_loop.py

The examples beside it (`own_loop_*.py`) train the same model on the same draws with
DistributedDataParallel, fully_shard, accelerate, Lightning and Hugging Face's Trainer.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from softtrunc import (
    VPSDE,
    ImportanceTimes,
    PowerPrior,
    ScoreModel,
    SoftTruncationLoss,
    likelihood_weight,
)
from softtrunc.density import probability_flow_nll
from softtrunc.samplers import DPMSolver

BATCH = 512
SAMPLES, HELD_OUT = 1000, 500
SEED = 0
SDE = VPSDE()
LOSS = SoftTruncationLoss(
    SDE,
    prior=PowerPrior(k=1.0),  # the law of the truncation time; HardTruncation() turns it off
    times=ImportanceTimes(SDE, stratified=True),
    weighting=likelihood_weight(SDE),
)


class Network(nn.Module):
    """Your own body: anything called as `network(x, label)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([x, label[:, None] / 999], dim=1))


def new_model() -> ScoreModel:
    """The model with the same first weights on every process."""
    torch.manual_seed(SEED)
    return ScoreModel(Network(), SDE)


def two_moons(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Data (n, 2): two half-circles, a little blurred."""
    angle = torch.pi * torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], 1) - torch.tensor([0.5, 0.25])
    swap = torch.rand(n, 1, generator=generator) < 0.5
    return torch.where(swap, upper, -upper) + 0.05 * torch.randn(n, 2, generator=generator)


def batch(step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """Data and noise of a step: a process's part of what one process alone would see.

    Your own loop may draw both as it likes, other ones on every process. Here they follow from the
    step, so that all of these examples arrive at the same weights.
    """
    generator = torch.Generator().manual_seed(step)
    x, noise = two_moons(BATCH, generator), torch.randn(BATCH, 2, generator=generator)
    mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    return x[mine], noise[mine]


def train(steps: int) -> ScoreModel:
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(1, steps + 1):
        terms = LOSS(model, two_moons(BATCH))  # one truncation time for the whole batch
        optimizer.zero_grad()
        terms.loss.mean().backward()
        optimizer.step()
        if step % 500 == 0:
            print(f"step {step}: loss {terms.loss.mean():.3f}, tau {terms.tau:.2e}")
    return model


def main(steps: int = 2000) -> None:
    model = train(steps)
    samples = DPMSolver(steps=20).sample(model, (SAMPLES, 2), seeds=range(SAMPLES))
    density = probability_flow_nll(model, two_moons(HELD_OUT), divergence="exact", residual=False)
    print(f"samples: mean {samples.x.mean(0).tolist()}, {samples.nfe} network evaluations")
    print(f"held-out negative log-likelihood: {density.nats.mean():.3f} nats")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
