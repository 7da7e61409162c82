"""Random draws as a function of (seed, step): no generator state to carry, save or lose.

A batch is cut into blocks of examples, each with a generator of its own. A process draws the blocks
that its share touches, so a run does not depend on how many processes it was spread over, nobody
draws what others need, and a resumed run repeats the draws it would have made.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

# Examples that share a generator: one each would be slow on a GPU, and more would be drawn in vain.
_BLOCK = 16


class Stream(enum.IntEnum):
    """What a draw is for; streams of one step are independent."""

    TIMES = 0
    NOISE = 1
    PIXELS = 2
    FLIPS = 3
    NETWORK = 4
    ORDER = 5
    LABELS = 6


def step_seed(seed: int, step: int, stream: Stream, part: int = 0) -> int:
    """A 63-bit seed for one use in one step."""
    words = np.random.SeedSequence([seed, step, int(stream), part]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def step_generator(
    seed: int, step: int, stream: Stream, device: torch.device | str = "cpu", part: int = 0
) -> torch.Generator:
    """A fresh generator on `device` for one use in one step."""
    return torch.Generator(device).manual_seed(step_seed(seed, step, stream, part))


def draw_share(
    make: Callable[..., Tensor],
    event: tuple[int, ...],
    *,
    share: slice,
    seed: int,
    step: int,
    stream: Stream,
    device: torch.device,
) -> Tensor:
    """Numbers `(b, *event)` of the examples `share` of a batch, the same whatever the share.

    Args:
        make: `torch.randn` or `torch.rand`.
        event: the shape of an example's numbers.
        share: from where to where in the global batch.
        seed, step, stream: what decides them.
        device: where they are drawn.
    """
    first = share.start // _BLOCK
    blocks = []
    for block in range(first, -(-share.stop // _BLOCK)):
        generator = step_generator(seed, step, stream, device, block)
        blocks.append(make((_BLOCK, *event), generator=generator, device=device))
    whole = torch.cat(blocks)[share.start - first * _BLOCK :]
    return whole[: share.stop - share.start]


class DataOrder:
    """The endless sequence of example numbers: a new permutation every epoch.

    Args:
        size: number of examples, >= 1.
        seed: of the run.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        if size < 1:
            raise ValueError("the data hold no example: give at least one image")
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._permutation: Tensor = torch.empty(0, dtype=torch.int64)

    def _epoch_permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = step_generator(self._seed, epoch, Stream.ORDER)
            self._permutation = torch.randperm(self._size, generator=generator)
            self._epoch = epoch
        return self._permutation

    def batch(self, step: int, batch_size: int) -> Int[Tensor, " n"]:
        """Example numbers of the optimiser step `step`; epochs follow without a seam."""
        parts = []
        position, end = step * batch_size, (step + 1) * batch_size
        while position < end:
            epoch, offset = divmod(position, self._size)
            take = min(end - position, self._size - offset)
            parts.append(self._epoch_permutation(epoch)[offset : offset + take])
            position += take
        return torch.cat(parts)
