"""SIGINT, SIGTERM and SIGUSR1 as requests to stop, read between steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_last: int | None = None


def stopped_code() -> int:
    """The exit code of a process that a signal ended early: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_last or signal.SIGINT)


class StopRequest:
    """Whether a signal asked for a stop, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """How long ago it asked; 0.0 if none did."""
        return 0.0 if self.signal is None else time.monotonic() - self._since

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        global _last
        if self.signal is None:
            self._since = time.monotonic()
        self.signal = _last = number


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the block SIGINT, SIGTERM and SIGUSR1 ask for a stop instead of ending the process.

    Slurm sends SIGUSR1 some time before the end where a job asks for it (`--signal=USR1@120`).
    """
    request = StopRequest()
    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}
    saved = {number: signal.signal(number, request) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
