"""Everything that a training step reads and changes, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from softtrunc.training.ema import EMA


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
        grad_clip: largest global gradient norm; None: no clipping.
        ema_rate: final decay of the weight average.
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
    grad_clip: float | None = 1.0
    ema_rate: float = 0.9999
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
        for name in ("weight_decay", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: need a number >= 0")
        if not 0.0 <= self.label_dropout < 1.0:
            raise ValueError(f"label_dropout={self.label_dropout}: need a number in [0, 1)")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: need both in [0, 1), e.g. (0.9, 0.999)")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the optimiser step that follows `step` finished ones."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass
class TrainState:
    """Model, average, optimiser and the number of finished steps.

    Nothing else carries over from step to step: the draws of a step, the order of the data
    included, follow from the seed and the step number.
    """

    model: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0

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
        return cls(model, EMA(model, rate=config.ema_rate), optimizer)
