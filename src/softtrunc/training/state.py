"""Everything that a training step reads and changes, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from softtrunc.training.ema import EMA
from softtrunc.training.power_average import PowerAverages

Schedule = Literal["constant", "cosine", "linear"]
"""How the learning rate goes on after its warm-up."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to optimise. Defaults are the paper's.

    Args:
        batch_size: examples per optimiser step over all processes and micro-batches.
        micro_batch_size: most examples in one forward pass of one process; None: no limit.
        learning_rate: Adam's step size, > 0.
        betas: Adam's moment decays.
        adam_eps: Adam's denominator guard.
        weight_decay: decoupled weight decay, >= 0.
        warmup_steps: steps over which the learning rate rises linearly.
        schedule: how it goes on from there: "constant", or towards `final_learning_rate`, which it
            has after `steps` steps, by half a "cosine" or in a "linear" way.
        final_learning_rate: >= 0; of a schedule that is not constant.
        steps: of the whole training; only such a schedule asks for them.
        grad_clip: largest global gradient norm; None: no clipping.
        ema_rate: final decay of the weight average.
        posthoc_ema: also follow two averages of which any length is made after training.
        flip: mirror each image left-right with probability 1/2.
        dequantize: uniform noise fills each grey level's cell.
        labels: the network is given each image's class.
        label_dropout: probability with which it is given none, in [0, 1).
        seed: decides, together with the step number alone, every random draw of that step.

    Raises:
        ValueError: if a value is out of range.
    """

    batch_size: int = 128
    micro_batch_size: int | None = None
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 5000
    schedule: Schedule = "constant"
    final_learning_rate: float = 0.0
    steps: int | None = None
    grad_clip: float | None = 1.0
    ema_rate: float = 0.9999
    posthoc_ema: bool = False
    flip: bool = True
    dequantize: bool = True
    labels: bool = False
    label_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: need a whole number >= 1")
        for name in ("learning_rate", "adam_eps", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name}={value}: need a number > 0")
        for name in ("weight_decay", "warmup_steps", "final_learning_rate", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: need a number >= 0")
        if not 0.0 <= self.label_dropout < 1.0:
            raise ValueError(f"label_dropout={self.label_dropout}: need a number in [0, 1)")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: need both in [0, 1), e.g. (0.9, 0.999)")
        self._check_schedule()

    def _check_schedule(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(
                f"schedule={self.schedule!r}: write one of {', '.join(get_args(Schedule))}"
            )
        if self.schedule == "constant":
            if self.final_learning_rate:
                raise ValueError(
                    f"final_learning_rate={self.final_learning_rate}: a constant learning rate "
                    "has none: write schedule=cosine or linear, or leave it out"
                )
        elif self.steps is None or self.steps <= self.warmup_steps:
            raise ValueError(
                f"schedule={self.schedule}: steps={self.steps}, warmup_steps={self.warmup_steps}: "
                "need more steps than the warm-up has"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the optimiser step that follows `step` finished ones.

        After the warm-up it is that of torch's `CosineAnnealingLR` or `LinearLR` over the steps
        that are left; beyond `steps` the final one.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        assert self.steps is not None  # asked for by _check_schedule
        done = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left


@dataclass
class TrainState:
    """Model, averages, optimiser and the number of finished steps.

    Nothing else carries over from step to step: the draws of a step, the order of the data
    included, follow from the seed and the step number.
    """

    model: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0
    posthoc: PowerAverages | None = None

    @classmethod
    def create(cls, model: nn.Module, config: TrainingConfig) -> TrainState:
        """A fresh state around `model`, which must already be on its device."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            # One kernel for all parameters: on a CPU a fifth of the time of the loop over them.
            fused=True,
        )
        posthoc = PowerAverages(model) if config.posthoc_ema else None
        return cls(model, EMA(model, rate=config.ema_rate), optimizer, posthoc=posthoc)
