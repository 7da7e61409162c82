"""Half precision for the network; schedules, steps and the state keep theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from softtrunc.samplers.base import ScoreHook
from softtrunc.score import ScoreFunction


def autocast_score(model: ScoreFunction, dtype: torch.dtype = torch.bfloat16) -> ScoreHook:
    """The model's score with its matrix products and convolutions in `dtype`.

    For the `score_fn` of every sampler. The network's output is brought back to the precision of
    the state before anything is divided by sigma, so that samples stay in float32.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        dtype: torch.bfloat16, or torch.float16 where the network's activations stay below 65,504.

    Raises:
        ValueError: if `dtype` is neither.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype {dtype}: autocast takes torch.bfloat16 or torch.float16")

    def score(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return model.score(x, t).to(x.dtype)

    return score
