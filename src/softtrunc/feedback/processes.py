"""Processes that share a job: patient with the living, and told of the dead.

A collective of torch.distributed gives up after minutes, so nobody may stand in one while another
draws samples, measures or writes to a slow disk. Here processes wait for each other through the
store by which they found each other: as long as it takes, while the others show signs of life.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch.distributed as dist

from softtrunc.feedback.errors import RunFailedError, ToldElsewhereError
from softtrunc.feedback.launched import told_key
from softtrunc.feedback.signals import StopRequest

T = TypeVar("T")

SILENCE = 60.0
"""A process that shows no sign of life for so many seconds is taken for dead."""

_SIGNS = 12  # in that time
_LONGEST_NAP = 0.25
# A launcher kills 30 seconds after a signal: whoever waits leaves in time to say where it stands.
_SECONDS_AFTER_SIGNAL = 10.0


class Company:
    """The processes of a job; all make the same calls in the same order.

    Args:
        silence: seconds without a sign of life after which a process is taken for dead.
    """

    def __init__(self, silence: float = SILENCE) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self._silence = silence
        self._turn = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked = 0.0
        if self.size > 1:
            self._store = _own_store()
            self._told_key = told_key().removeprefix("softtrunc/")
            threading.Thread(target=self._live, daemon=True, name="softtrunc-alive").start()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def _live(self) -> None:
        """Show signs of life until the process ends or the store is gone."""
        with suppress(RuntimeError):
            while True:
                self._store.add(f"alive/{self.rank}", 1)
                time.sleep(self._silence / _SIGNS)

    def meet(self, vote: bool = False, stop: StopRequest | None = None) -> bool:
        """Wait until every process has come here; whether any of them voted.

        Args:
            vote: this process's.
            stop: a signal that ends the waiting ten seconds after it came; then the answer is yes.

        Raises:
            RunFailedError: if one of them is dead.
            ToldElsewhereError: if one of them failed.
        """
        if self.size == 1:
            return vote
        place = self._place()
        with self._reaching():
            self._store.set(f"{place}/{self.rank}", "1" if vote else "")
        keys = [f"{place}/{rank}" for rank in range(self.size)]
        if not self._wait(keys, stop):
            with self._reaching():
                self._store.set(keys[self.rank], "1")  # who comes later is not to wait either
            return True
        with self._reaching():
            voted = any(self._store.get(key) for key in keys)
            self._store.set(f"{place}/seen/{self.rank}", "")
        if self.main:
            self._leave_last(f"{place}/seen")
        return voted

    def _leave_last(self, place: str) -> None:
        """The main process may keep the store: it goes on when the others have read it."""
        seen = [f"{place}/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + _SECONDS_AFTER_SIGNAL
        with self._reaching():
            while not self._store.check(seen) and time.monotonic() < deadline:
                time.sleep(0.002)

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, plain values for JSON; the others wait for it."""
        if self.size == 1:
            return make()
        key = f"{self._place()}/0"
        if self.main:
            made = make()
            with self._reaching():
                self._store.set(key, json.dumps(made))
            return made
        told: T = self._told(key)
        return told

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` gives, on every process, but on the main one first: it may leave files."""
        if self.main:
            made = make()
            self.meet()
            return made
        self.meet()
        return make()

    def once_a_node(self, make: Callable[[], str]) -> tuple[str, bool]:
        """What the first process to come here on its machine makes; whether that is this one."""
        if self.size == 1:
            return make(), True
        key = f"{self._place()}/{socket.gethostname()}"
        if self._first(f"{key}/comers"):
            made = make()
            with self._reaching():
                self._store.set(f"{key}/made", json.dumps(made))
            return made, True
        return self._told(f"{key}/made"), False

    def deal(self, items: Sequence[T]) -> Iterator[T]:
        """The items that this process is to work on: whoever is free takes the next one."""
        if self.size == 1:
            yield from items
            return
        key = f"{self._place()}/taken"
        while True:
            with self._reaching():
                number = self._store.add(key, 1) - 1
            if number >= len(items):
                return
            yield items[number]

    def look(self, others: Collection[int] | None = None) -> None:
        """Refuse to wait for what will not come.

        Args:
            others: whose signs of life are looked for; None: all others'.

        Raises:
            RunFailedError: if one of them is dead.
            ToldElsewhereError: if any process failed.
        """
        if self.size == 1:
            return
        with self._reaching():
            if self._store.check([self._told_key]):
                raise ToldElsewhereError("another process failed, and said why")
            moment = time.monotonic()
            if moment - self._looked < self._silence / _SIGNS:
                return
            self._looked = moment
            for rank in range(self.size) if others is None else others:
                signs = self._store.add(f"alive/{rank}", 0)
                known, since = self._seen.get(rank, (-1, moment))
                self._seen[rank] = (signs, moment if signs != known else since)
                if rank != self.rank and moment - self._seen[rank][1] > self._silence:
                    raise RunFailedError(
                        f"process {rank} of {self.size} has shown no sign of life for "
                        f"{self._silence:.0f} s: it was killed or its machine is gone; the same "
                        "command (train: with --resume) goes on from what is done"
                    )

    def _first(self, key: str) -> bool:
        with self._reaching():
            return bool(self._store.add(key, 1) == 1)

    def _place(self) -> str:
        self._turn += 1
        return str(self._turn)

    def _told(self, key: str) -> Any:
        self._wait([key], None)
        with self._reaching():
            made: Any = json.loads(self._store.get(key))
            return made

    def _wait(self, keys: list[str], stop: StopRequest | None) -> bool:
        """Until all keys are there; False if a signal came and they were still not there."""
        nap, missing = 0.001, keys
        self._seen.clear()  # who was not waited for may have been silent in good faith
        while True:
            with self._reaching():
                missing = [key for key in missing if not self._store.check([key])]
            if not missing:
                return True
            if stop is not None and stop.seconds > _SECONDS_AFTER_SIGNAL:
                return False
            ranks = [int(key.rpartition("/")[2]) for key in missing if key[-1].isdigit()]
            self.look(ranks or None)
            time.sleep(nap)
            nap = min(2.0 * nap, _LONGEST_NAP)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # every error of torch.distributed
            raise RunFailedError(
                "the first process or its machine cannot be reached any more: start the same "
                "command again (train: with --resume)"
            ) from error


def _own_store() -> dist.Store:
    """A line to the store of the process group, of one's own: a get that waits blocks a line."""
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    line = store.clone() if hasattr(store, "clone") else store
    return dist.distributed_c10d.PrefixStore("softtrunc", line)


def is_lost(error: RuntimeError) -> bool:
    """Whether an exchange of numbers failed because another process is gone or too late."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    said = str(error)
    return isinstance(error, dist.DistError) or "gloo" in said or "closed by peer" in said


_company: Company | None = None  # of this process


def company(silence: float = SILENCE) -> Company:
    """The processes of this job, once accelerate has brought them together.

    Args:
        silence: as `Company` takes it; the first call decides.
    """
    global _company
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if _company is None or _company.size != size:
        _company = Company(silence)
    return _company
