"""Random numbers for a batch: from one generator, or from one of each example's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from softtrunc.sde import send


def _stream(seed: int, purpose: str | None) -> torch.Generator:
    if purpose is not None:
        digest = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little") >> 1
    return torch.Generator("cpu").manual_seed(seed)


class Noise:
    """The randomness of a batch of B examples.

    With `seeds` or a `purpose` each example draws all its numbers from a CPU generator of its own,
    so that what it sees depends neither on its batch or chunk nor on the device. Otherwise one
    generator serves the whole batch.

    Args:
        batch: number of examples B.
        seeds: one integer for each example, or None.
        generator: source for the whole batch where there are no seeds; None takes torch's own.
        purpose: what the numbers are for: the same seed gives unrelated numbers elsewhere, so that
            dequantisation and diffusion noise of an example never share theirs. Without seeds they
            are drawn from `generator`; given both, the seeds count.

    Raises:
        ValueError: if there are not B seeds, or seeds and a generator without a purpose.
    """

    def __init__(
        self,
        batch: int,
        seeds: Sequence[int] | Tensor | None,
        generator: torch.Generator | None,
        *,
        purpose: str | None = None,
    ) -> None:
        if purpose is None and seeds is not None and generator is not None:
            raise ValueError("seeds and generator exclude each other: give one of them")
        if purpose is not None and seeds is None:
            device = torch.device("cpu") if generator is None else generator.device
            seeds = torch.randint(2**62, (batch,), generator=generator, device=device)
        if seeds is not None and len(seeds) != batch:
            raise ValueError(
                f"{len(seeds)} seeds for a batch of {batch}: give one integer for each example, "
                f"not {len(seeds)} of them for {batch}"
            )
        self._generator = generator
        if isinstance(seeds, Tensor):  # all at once: a device is waited for
            seeds = seeds.tolist()
        self.generators = [_stream(int(seed), purpose) for seed in (() if seeds is None else seeds)]

    @property
    def per_sample(self) -> bool:
        """Whether samples must not depend on their batch."""
        return bool(self.generators)

    def _draw(
        self,
        make: Callable[..., Tensor],
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        """Numbers of `make(shape, generator=, device=, dtype=)`, drawn where the generators are."""
        if not self.generators:
            source = device if self._generator is None else self._generator.device
            whole = make(tuple(shape), generator=self._generator, device=source, dtype=dtype)
            return send(whole, device)
        rows = [make(tuple(shape[1:]), generator=g, dtype=dtype) for g in self.generators]
        return send(torch.stack(rows), device)

    def draw(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers of shape `(B, *event)`."""
        return self._draw(torch.randn, shape, device, dtype)

    def like(self, x: Tensor) -> Tensor:
        """Standard normal numbers with the shape, device and precision of `x`."""
        return self.draw(x.shape, x.device, x.dtype)

    def uniform(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers uniform on [0, 1) of the shape and device of `like` `(B, *event)`."""
        return self._draw(torch.rand, like.shape, like.device, dtype)

    def signs(self, like: Tensor, count: int) -> Tensor:
        """`count` Rademacher probes for each example, `(count, B, *event)`."""
        shape = (like.shape[0], count, *like.shape[1:])
        coins = self._draw(partial(torch.randint, 2), shape, like.device, torch.int64)
        return (2 * coins - 1).to(like.dtype).transpose(0, 1).contiguous()
