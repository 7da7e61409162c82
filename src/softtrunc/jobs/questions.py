"""Processes that train agree on the step at which a signal ends them."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from accelerate import Accelerator

from softtrunc.training import Stopwatch

# They ask each other about signals after so many seconds, and in no more than so many steps: the
# next steps may be slower than those before.
_SECONDS_BETWEEN_QUESTIONS = 2.0
_STEPS_BETWEEN_QUESTIONS = 50
# A checkpoint is to be written in so many seconds; the rest of a launcher's time is a step's.
_SECONDS_TO_WRITE = 20.0
# torch's launcher kills so many seconds after a signal, unless this variable says otherwise.
_SECONDS_TO_KILL, _KILL_VARIABLE = 30.0, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


class Questions:
    """Processes that train ask each other whether any is to stop, to stop at the same step.

    That costs a wait for the device, so they do it by the clock: not in every quick step, in every
    slow one. They agree on the next step to ask at by the slowest one's clock.

    Args:
        accelerator: the processes. `clock`: counts the training time. `step`: how many are done.
    """

    def __init__(self, accelerator: Accelerator, clock: Stopwatch, step: int) -> None:
        self._accelerator = accelerator
        self._clock = clock
        self._next = step + 1
        self._last = step, clock.seconds
        self.seconds_a_step = 0.0

    def any_stop(self, step: int, wanted: bool) -> bool:
        """Whether any process is to stop; all must call it after every step.

        `seconds_a_step` is what the slowest process's steps took when they last asked.
        """
        if self._accelerator.num_processes == 1:
            return wanted
        if step < self._next:
            return False
        last, since = self._last
        each = (self._clock.seconds - since) / (step - last)
        mine = torch.tensor([float(wanted), each], device=self._accelerator.device)
        votes, seconds = self._accelerator.gather(mine).reshape(-1, 2).unbind(1)
        self.seconds_a_step = float(seconds.max())
        most = _SECONDS_BETWEEN_QUESTIONS / max(self.seconds_a_step, 1e-9)
        self._next = step + max(1, min(_STEPS_BETWEEN_QUESTIONS, int(most)))
        self._last = step, self._clock.seconds  # the device has been waited for
        return bool(votes.any())


class Deadline:
    """What is left after a signal, before a launcher kills: says once if a stop may not fit.

    Args:
        launched: whether a launcher started several processes; nothing is said otherwise.
        say: where the line goes.
    """

    def __init__(self, launched: bool, say: Callable[[str], None]) -> None:
        self._silent = not launched
        self._say = say
        self._writing = 0.0
        try:
            self._left = float(os.environ.get(_KILL_VARIABLE, ""))
        except ValueError:
            self._left = _SECONDS_TO_KILL

    def look(self, step: float, writing: float = 0.0) -> None:
        """Take note of the seconds of a step, and of those that a checkpoint was written in."""
        if self._silent:
            return
        self._writing = max(self._writing, writing)
        to_write = _SECONDS_TO_WRITE * self._left / _SECONDS_TO_KILL
        if self._writing <= to_write and step + self._writing <= self._left:
            return
        self._silent = True
        self._say(
            f"a stop may be too late: a step takes {step:.1f} s, a checkpoint {self._writing:.1f} "
            f"s, and a launcher kills {self._left:.0f} s after a signal: before you start, set "
            f"{_KILL_VARIABLE}={3 * (step + self._writing):.0f} (newer PyTorch), or take more "
            "devices or a faster disk; training.checkpoint_every bounds what is lost"
        )
