"""A model for some of a batch's examples."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from softtrunc.score import BoundModel, ScoreFunction


@runtime_checkable
class _Conditioned(Protocol):
    """A score function that holds something for each example of a batch."""

    def rows(self, index: Tensor) -> ScoreFunction:
        """The same for the examples at `index` (n,)."""


def rows_of(model: ScoreFunction, index: Tensor, batch: int | None = None) -> ScoreFunction:
    """`model.rows(index)` where the model has it; else it needs nothing per example.

    Every solver that evaluates a part of its batch asks the model through here.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        index: the examples' places in the batch that `model` was bound for, integers (n,).
        batch: how many examples that batch has; None: as many as the model can tell.
    """
    if isinstance(model, BoundModel):
        return model.rows(index, batch)
    return model.rows(index) if isinstance(model, _Conditioned) else model
