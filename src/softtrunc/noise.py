"""One source of randomness per example, so that its draws are its own in any batch or chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from softtrunc.sde import random_normal

__all__ = ["ExampleStreams", "Noise"]


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


class Noise:
    """Standard normal noise for a batch: from one generator, or from one per sample.

    With `seeds`, each sample draws all its noise from a CPU generator of its own, so that what it
    sees depends neither on its batch nor on the device.

    Args:
        batch: number of samples B.
        seeds: one integer per sample, or None.
        generator: source for the whole batch where there are no seeds.

    Raises:
        ValueError: if both are given or the number of seeds is not B.
    """

    def __init__(
        self, batch: int, seeds: Sequence[int] | None, generator: torch.Generator | None
    ) -> None:
        if seeds is not None and generator is not None:
            raise ValueError("seeds and generator exclude each other: give one of them")
        if seeds is not None and len(seeds) != batch:
            raise ValueError(
                f"{len(seeds)} seeds for a batch of {batch}: give one integer for each sample"
            )
        self._generator = generator
        self._generators = (
            None
            if seeds is None
            else [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        )

    @property
    def per_sample(self) -> bool:
        """Whether samples must not depend on their batch."""
        return self._generators is not None

    def draw(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """A fresh draw of shape `(B, *event)`."""
        if self._generators is None:
            return random_normal(shape, generator=self._generator, device=device, dtype=dtype)
        rows = [torch.randn(tuple(shape[1:]), generator=g, dtype=dtype) for g in self._generators]
        return torch.stack(rows).to(device) if rows else torch.empty(*shape, device=device)

    def like(self, x: Tensor) -> Tensor:
        """A fresh draw with the shape, device and precision of `x`."""
        return self.draw(x.shape, x.device, x.dtype)
