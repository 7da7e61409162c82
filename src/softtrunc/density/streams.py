"""One source of randomness per example, so that its draws are its own in any batch or chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ExampleStreams"]


class ExampleStreams:
    """Random streams of a batch of examples, one generator each.

    Args:
        count: number of examples.
        purpose: what the numbers are for; the same seed gives unrelated numbers elsewhere, so
            that dequantisation and diffusion noise of one example never share theirs.
        seeds: one integer for each example; None draws them.
        generator: where seeds are drawn from, if they are not given; None takes torch's own.

    Raises:
        ValueError: if there are not as many seeds as examples.
    """

    def __init__(
        self,
        count: int,
        *,
        purpose: str,
        seeds: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if seeds is None:
            device = torch.device("cpu") if generator is None else generator.device
            seeds = torch.randint(2**62, (count,), generator=generator, device=device)
        values = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
        if len(values) != count:
            raise ValueError(f"seeds: {len(values)} of them for {count} examples: give one each")
        self.generators = []
        for value in values:
            digest = hashlib.blake2b(f"{purpose} {int(value)}".encode(), digest_size=8).digest()
            stream = torch.Generator()
            stream.manual_seed(int.from_bytes(digest, "little") >> 1)
            self.generators.append(stream)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like` `(B, *event)`."""
        event = like.shape[1:]
        rows = [torch.randn(event, generator=g, dtype=like.dtype) for g in self.generators]
        return torch.stack(rows).to(like.device)

    def uniform(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers uniform on [0, 1) of the shape and device of `like` `(B, *event)`."""
        event = like.shape[1:]
        rows = [torch.rand(event, generator=g, dtype=dtype) for g in self.generators]
        return torch.stack(rows).to(like.device)

    def signs(self, like: Tensor, count: int) -> Tensor:
        """`count` Rademacher probes for each example, `(count, B, *event)`."""
        shape = (count, *like.shape[1:])
        rows = [torch.randint(2, shape, generator=g) for g in self.generators]
        return (2 * torch.stack(rows, 1) - 1).to(device=like.device, dtype=like.dtype)
