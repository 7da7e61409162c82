"""A problem small enough to train many times in a test."""

from __future__ import annotations

import numpy as np
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
from softtrunc.data import ImageDataset
from softtrunc.training import TrainingConfig, TrainState


class SmallNetwork(nn.Module):
    """Two convolutions that know the time; a buffer and a frozen parameter for the average."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.last = nn.Conv2d(8, channels, 3, padding=1)
        self.label = nn.Linear(1, 8)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.first(x) + self.label(label[:, None] / 999)[:, :, None, None]
        return self.frozen * self.last(torch.nn.functional.silu(h))


def small_data(count: int = 50, channels: int = 1) -> ImageDataset:
    images = np.random.default_rng(0).integers(0, 17, (count, channels, 6, 6), dtype=np.uint8)
    return ImageDataset.create(images, name="noise", split="train", source="test", levels=17)


def small_objective() -> SoftTruncationLoss:
    sde = VPSDE()
    times = ImportanceTimes(sde, stratified=True)
    return SoftTruncationLoss(sde, PowerPrior(1.0), times, likelihood_weight(sde))


def small_state(config: TrainingConfig, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    return TrainState.create(ScoreModel(SmallNetwork(), VPSDE()), config)


def weights(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that a step changes."""
    flat = dict(state.model.state_dict())
    flat |= {f"ema {n}": v for n, v in state.ema.shadow.items()}
    for i, parameter in enumerate(state.optimizer.param_groups[0]["params"]):
        flat |= {f"adam {i} {k}": v for k, v in state.optimizer.state[parameter].items()}
    return {n: v.detach().clone() for n, v in flat.items()}
