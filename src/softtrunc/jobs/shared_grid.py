"""A grid of samples that the processes of a training draw together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from accelerate.utils import gather_object
from jaxtyping import Int, Shaped
from torch import Tensor

from softtrunc.feedback.processes import Company
from softtrunc.feedback.signals import StopRequest
from softtrunc.runs.draw import cut
from softtrunc.samplers import Sampler
from softtrunc.score import BoundModel, ScoreFunction, rows_of
from softtrunc.sde import SDE


class _StoppedError(Exception):
    """A signal came in the middle of a sample."""


class _Watched(BoundModel):
    """A model that is asked no more once a signal came."""

    def __init__(self, model: ScoreFunction, stop: StopRequest) -> None:
        super().__init__()
        self.model = model
        self.stop = stop

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self.model.sde

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """The model's score."""
        if self.stop.signal is not None:
            raise _StoppedError
        return self.model.score(x, t)

    def rows(self, index: Int[Tensor, " n"], batch: int | None = None) -> _Watched:
        """The same for the examples at these places of a batch."""
        return _Watched(rows_of(self.model, index, batch), self.stop)


def draw_together(
    count: int,
    event: tuple[int, ...],
    most: int,
    *,
    sampler: Sampler,
    drawn_from: Callable[[range], ScoreFunction],
    to_data: Callable[[Tensor], Shaped[Tensor, "n c h w"]],
    company: Company,
    stop: StopRequest,
    in_step: bool = False,
) -> Shaped[Tensor, "n c h w"] | None:
    """Samples from seeds 0 ... count - 1, shared by all processes; None if a signal came first.

    A signal ends the work between two evaluations of the network: a checkpoint cannot wait.

    Args:
        count: of samples.
        event: the shape of one.
        most: in one forward pass.
        sampler: what draws them. `drawn_from`: the model of samples with these numbers.
        to_data: from samples to what the data are: grey levels, say.
        company: the processes. `stop`: a signal that came.
        in_step: the processes hold parts of the network and evaluate it together: each draws all.
    """

    drawn: list[tuple[int, Tensor]] = []
    parts = cut(count, most if in_step else min(most, -(-count // company.size)))
    with suppress(_StoppedError):
        for part in parts if in_step else company.deal(parts):
            shape = (len(part), *event)
            model = drawn_from(part)
            asked = model if in_step else _Watched(model, stop)
            samples = sampler.sample(asked, shape, seeds=list(part))
            drawn.append((part.start, to_data(samples.x).cpu()))
    if company.meet(vote=stop.signal is not None, stop=stop):
        return None
    # All are there: nobody waits in this for another's work.
    together = drawn if in_step or company.size == 1 else gather_object(drawn)
    return torch.cat([images for _, images in sorted(together, key=lambda piece: piece[0])])
