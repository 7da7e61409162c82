"""Numbers of time beside tensors of data: shapes, precision and devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def send(v: Tensor, device: torch.device) -> Tensor:
    """`v` on `device`; where that is safe, the host does not wait for the copy.

    It is safe from pinned memory: from any other, a copy under way could see what `v` is later.
    Memory is not pinned on the way of a gradient.
    """
    pinned = v.device.type == "cpu" and device.type == "cuda" and not v.requires_grad
    return v.pin_memory().to(device, non_blocking=True) if pinned else v.to(device)


def expand_to(v: Float[Tensor, "*batch"], x: Float[Tensor, "b *event"]) -> Tensor:
    """`v`, `()` or `(B,)`, in the dtype of `x` to multiply it; a number may stay on the CPU."""
    v = v.to(x.dtype)
    return v if v.ndim == 0 else send(v, x.device).reshape(-1, *([1] * (x.ndim - 1)))


def random_normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers drawn where the generator lives, then moved to `device`."""
    source = device if generator is None else generator.device
    z = torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype)
    return z if device is None else send(z, torch.device(device))


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else (Apple's GPUs) float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(t: Tensor, device: torch.device | None = None) -> Tensor:
    """`t` on `device` in its widest type: schedules span decades, and their scalars are cheap."""
    wide = wide_dtype(device or t.device)
    # On the CPU before it is sent: the device may not have the type it is in.
    return send(t.to(wide) if t.device.type == "cpu" else t, device or t.device).to(wide)


def narrow(v: Tensor, like: Tensor) -> Tensor:
    """`v` in the precision of `like`, but never below float32."""
    return v.to(torch.promote_types(like.dtype, torch.float32))
