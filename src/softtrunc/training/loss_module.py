"""Model and loss as one module: what data parallelism wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.objective import LossTerms, Objective, StepDraw
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.training.randomness import Stream, step_generator


def step_draw(
    objective: Objective, batch_size: int, *, seed: int, step: int, rank: int = 0, ranks: int = 1
) -> StepDraw:
    """One process's part of the times of one optimiser step, with the tau that all share.

    A function of seed and step alone: every process and every micro-batch finds the same tau, and
    no two examples of the whole batch the same time.

    Args:
        objective: the loss.
        batch_size: examples of the optimiser step, over all processes and micro-batches.
        seed: of the training, the same on all processes.
        step: the number of optimiser steps before this one.
        rank, ranks: which of how many processes. Micro-batches take `part(start, stop)` of it.

    Raises:
        ValueError: if the batch does not divide over the processes.
    """
    share, rest = divmod(batch_size, ranks)
    if rest or not 0 <= rank < ranks:
        raise ValueError(
            f"step_draw: batch_size={batch_size}, rank={rank} of {ranks}: need a multiple of ranks "
            "and 0 <= rank < ranks"
        )
    whole = objective.draw(batch_size, generator=step_generator(seed, step, Stream.TIMES))
    return whole.part(rank * share, (rank + 1) * share)


class LossModule(nn.Module):
    """A model and its loss, to wrap in DDP, FSDP, accelerate or Lightning.

    Those hook into the forward pass of the module they wrap, so that gradients are exchanged: it
    must be the loss that runs through it, not the network inside. Every process and every
    micro-batch of one optimiser step shares one tau: `step_draw` gives each process its part of
    the step's draw, without a word between them.

    Args:
        model: a `ScoreModel`, or any module with `.sde` and `.score(x, t)`.
        objective: `SoftTruncationLoss` or `MixedLoss`.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self,
        x: Float[Tensor, "b *event"],
        *,
        draw: StepDraw | None = None,
        noise: Float[Tensor, "b *event"] | None = None,
        condition: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """The loss of a batch; `loss.mean()` is what to differentiate.

        Args:
            x: clean examples `(B, *event)` in the model's data range.
            draw: the times of these examples, if they were drawn for a larger step.
            noise: standard normal, of the shape of `x`, if it is not to be drawn.
            condition: what the network is given by name, see `ScoreModel.given`.
            generator: source of what is drawn here.
        """
        model = cast(ScoreFunction, self.model)
        if condition:
            model = cast(ScoreModel, self.model).given(**condition)
        return self.objective(model, x, draw=draw, noise=noise, generator=generator)
