"""Half precision for the network; schedules, steps and the state keep theirs."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from softtrunc.score import BoundModel, ScoreFunction, rows_of, score_at
from softtrunc.sde import SDE


class AutocastModel(BoundModel):
    """A score function whose network runs in half precision; see `autocast_score`."""

    def __init__(self, model: ScoreFunction, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self.model.sde

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """`grad log p_t(x)`, in the precision of `x`."""
        with torch.autocast(x.device.type, self.dtype):
            return self.model.score(x, t).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The score, for the `score_fn` of a sampler."""
        return self.score(x, t)

    def at(self, t: float) -> AutocastModel:
        """The same of what answers at this time."""
        return AutocastModel(score_at(self.model, t), self.dtype)

    def rows(self, index: Int[Tensor, " n"], batch: int | None = None) -> AutocastModel:
        """The same for the examples at these places of a batch, in their order."""
        return AutocastModel(rows_of(self.model, index, batch), self.dtype)


def autocast_score(model: ScoreFunction, dtype: torch.dtype = torch.bfloat16) -> AutocastModel:
    """The model with its matrix products and convolutions in `dtype`.

    For samplers: as the model, or as the `score_fn` in place of its score. The network's output is
    brought back to the precision of the state before anything is divided by sigma, so that samples
    stay in float32.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        dtype: torch.bfloat16, or torch.float16 where the network's activations stay below 65,504.

    Raises:
        ValueError: if `dtype` is neither.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype {dtype}: autocast takes torch.bfloat16 or torch.float16")
    return AutocastModel(model, dtype)
