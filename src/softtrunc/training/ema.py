"""Exponential moving average of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from softtrunc.training.sharding import local


class EMA:
    """Running average of a module's trainable parameters; buffers and frozen ones stay its own.

    After update n (counted from 0) the rate is `min(rate, (1 + n) / (10 + n))`: the average
    forgets the random start quickly and reaches its full memory later. Of parameters that are
    spread over processes each averages its own part.

    Args:
        module: whose parameters to follow.
        rate: the final decay, in [0, 1).

    Raises:
        ValueError: if the rate is out of range.
    """

    def __init__(self, module: nn.Module, *, rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"ema_rate={rate}: need 0 <= ema_rate < 1, e.g. 0.9999")
        self.rate = rate
        self.updates = 0
        self.shadow: dict[str, Tensor] = {
            name: local(p.detach()).clone()
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        rate = min(self.rate, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = dict(module.named_parameters())
        current: list[Tensor] = [local(parameters[name]) for name in self.shadow]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1.0 - rate)

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor], *, updates: int) -> None:
        """Take over a saved average.

        Raises:
            ValueError: if its names or shapes are not those of this average.
        """
        wrong = sorted(
            set(shadow) ^ set(self.shadow)
            | {n for n in set(shadow) & set(self.shadow) if shadow[n].shape != self.shadow[n].shape}
        )
        if wrong:
            raise ValueError(f"averaged weights do not fit the network: {', '.join(wrong)}")
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.updates = updates

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        parameters = dict(module.named_parameters())
        for name, value in self.shadow.items():
            local(parameters[name]).copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module carries the average; afterwards its own parameters again."""
        parameters = dict(module.named_parameters())
        saved = {name: local(parameters[name].detach()).clone() for name in self.shadow}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    local(parameters[name]).copy_(value)
