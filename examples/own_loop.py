"""Soft Truncation in your own PyTorch loop: a two-dimensional data set, a small network, no images.

Run: python examples/own_loop.py
"""

import torch
from torch import nn

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


class Network(nn.Module):
    """Your own body: anything called as `network(x, label)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        )

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, label[:, None] / 999], dim=1))


def two_moons(n: int) -> torch.Tensor:
    angle = torch.pi * torch.rand(n)
    upper = torch.stack([angle.cos(), angle.sin()], 1) - torch.tensor([0.5, 0.25])
    return torch.where(torch.rand(n, 1) < 0.5, upper, -upper) + 0.05 * torch.randn(n, 2)


torch.manual_seed(0)
sde = VPSDE()
model = ScoreModel(Network(), sde)
loss = SoftTruncationLoss(
    sde,
    prior=PowerPrior(k=1.0),  # the law of the truncation time; HardTruncation() turns it off
    times=ImportanceTimes(sde, stratified=True),
    weighting=likelihood_weight(sde),
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(1, 2001):
    terms = loss(model, two_moons(512))  # one truncation time for the whole batch
    optimizer.zero_grad()
    terms.loss.mean().backward()
    optimizer.step()
    if step % 500 == 0:
        print(f"step {step}: loss {terms.loss.mean():.3f}, tau {terms.tau:.2e}")

samples = DPMSolver(steps=20).sample(model, (1000, 2), seeds=range(1000))
density = probability_flow_nll(model, two_moons(500), divergence="exact", residual=False)
print(f"samples: mean {samples.x.mean(0).tolist()}, {samples.nfe} network evaluations")
print(f"held-out negative log-likelihood: {density.nats.mean():.3f} nats")
