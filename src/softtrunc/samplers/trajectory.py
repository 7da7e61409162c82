"""The way from noise to data, kept frame by frame."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.samplers.base import Step


class Trajectory:
    """A callback that keeps evenly spaced states of a run: `sampler.sample(..., callback=it)`.

    The first step and the last are always kept; between them the first step that reaches each
    further `1 / (frames - 1)` of the way. A method of fewer steps gives fewer frames. Frames lie on
    the CPU.

    Args:
        frames: how many frames to keep at most, >= 2.

    Raises:
        ValueError: if `frames` is below 2.
    """

    def __init__(self, frames: int = 10) -> None:
        if frames < 2:
            raise ValueError(f"Trajectory: frames={frames}: need at least 2")
        self.frames = frames
        self.times: list[float] = []
        self._states: list[Tensor] = []
        self._estimates: list[Tensor] = []

    def __call__(self, step: Step) -> None:
        """Keep this step if its turn has come; the first step of a run forgets the run before."""
        if step.step == 0:
            self.times, self._states, self._estimates = [], [], []
        # A hair less than a frame's share of the way counts as there: fractions are rounded.
        due = len(self.times) / (self.frames - 1) - 1e-9
        last = step.fraction >= 1.0
        full = len(self.times) == self.frames - 1
        if step.step == 0 or last or (not full and step.fraction >= due):
            self.times.append(step.t)
            self._states.append(step.x.to("cpu", copy=True))
            self._estimates.append(step.denoised.to("cpu", copy=True))

    @property
    def x(self) -> Float[Tensor, "frames b *event"]:
        """The states x_t at `times`, the newest last."""
        return torch.stack(self._states)

    @property
    def denoised(self) -> Float[Tensor, "frames b *event"]:
        """The estimates of `E[x_0 | x_t]` that the steps were taken with."""
        return torch.stack(self._estimates)
