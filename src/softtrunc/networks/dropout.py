"""Dropout whose masks a CPU draws in a third of the time of PyTorch's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Numbers of `x` set to zero with probability `p` in [0, 1), the others divided by `1 - p`.

    Drawn from torch's global generator. On a CPU each number takes 32 random bits, so that `p` is
    met to 2^-32 as well as float32's own draws meet it to 2^-24; two come of one draw.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(x, p)
    draws = torch.empty((x.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int32)[: x.numel()]
    # Laid out as `x` is, for what lies side by side is multiplied quickly.
    dense = torch.empty_like(x, device="meta").stride()
    kept = bits.as_strided(x.shape, dense) >= round(p * 2**32) - 2**31
    return (x * kept).mul_(1.0 / (1.0 - p))
