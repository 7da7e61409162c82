"""Processes that train agree on the step at which a signal ends them."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from softtrunc.training import Stopwatch

# They ask each other about signals after so many seconds, and in no more than so many steps: the
# next steps may be slower than those before.
_SECONDS_BETWEEN_QUESTIONS = 2.0
_STEPS_BETWEEN_QUESTIONS = 50


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

    def any_stop(self, step: int, wanted: bool) -> bool:
        """Whether any process is to stop; all must call it after every step."""
        if self._accelerator.num_processes == 1:
            return wanted
        if step < self._next:
            return False
        last, since = self._last
        each = (self._clock.seconds - since) / (step - last)
        mine = torch.tensor([float(wanted), each], device=self._accelerator.device)
        votes, seconds = self._accelerator.gather(mine).reshape(-1, 2).unbind(1)
        most = _SECONDS_BETWEEN_QUESTIONS / max(float(seconds.max()), 1e-9)
        self._next = step + max(1, min(_STEPS_BETWEEN_QUESTIONS, int(most)))
        self._last = step, self._clock.seconds  # the device has been waited for
        return bool(votes.any())
