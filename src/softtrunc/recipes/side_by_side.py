"""Train and measure several recipes at the same time, each in a process of its own.

A small network cannot keep two cores busy: its operations are shorter than the threads' waiting
for each other. One process a model, with its share of the cores, takes half as long.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softtrunc.recipes.errors import RunFailedError, UserError
from softtrunc.recipes.measure import measure
from softtrunc.recipes.progress import Progress, Task
from softtrunc.recipes.schema import Recipe
from softtrunc.recipes.signals import stop_on_signal
from softtrunc.recipes.train import train

__all__ = ["train_and_measure"]


class _Begin(NamedTuple):
    label: str
    total: int
    done: int


class _Advance(NamedTuple):
    label: str
    n: int
    note: str


class _End(NamedTuple):
    label: str


class _Finished(NamedTuple):
    name: str
    interrupted: bool


class _Failed(NamedTuple):
    name: str
    message: str
    users_mistake: bool


class _RemoteTask:
    def __init__(self, messages: Any, label: str) -> None:
        self._messages = messages
        self._label = label

    def advance(self, n: int = 1, note: str = "") -> None:
        """Send the step to the parent."""
        self._messages.put(_Advance(self._label, n, note))


class _RemoteProgress:
    """Progress in a child: messages to the parent, which draws."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar of the parent's."""
        self._messages.put(_Begin(label, total, done))
        yield _RemoteTask(self._messages, label)
        self._messages.put(_End(label))

    def say(self, line: str) -> None:
        """Children have nothing to say."""


def _work(recipe: Recipe, out: Path, resume: bool, threads: int, messages: Any) -> None:
    """The life of a child."""
    torch.set_num_threads(threads)
    progress = _RemoteProgress(messages)
    try:
        outcome = train(recipe, out, resume=resume, progress=progress)
        if not outcome.interrupted:
            measure(out, progress=progress)
        messages.put(_Finished(out.name, outcome.interrupted))
    except UserError as error:
        messages.put(_Failed(out.name, str(error), users_mistake=True))
    except RunFailedError as error:
        messages.put(_Failed(out.name, str(error), users_mistake=False))
    except KeyboardInterrupt:
        messages.put(_Finished(out.name, interrupted=True))


def train_and_measure(recipes: Mapping[Path, Recipe], *, resume: bool, progress: Progress) -> bool:
    """Train and measure each recipe into its run folder, as many at a time as there are cores.

    SIGINT and SIGTERM stop all of them, with checkpoints.

    Args:
        recipes: by run folder.
        resume: go on from checkpoints, and start what has not begun.
        progress: where the bars go.

    Returns:
        Whether all were finished; False if a signal stopped them.

    Raises:
        UserError: what `train` or `measure` found wrong with the input.
        RunFailedError: if a run failed or its process died.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    at_once = max(1, min(len(recipes), cores or 1))
    threads = max(1, (cores or 1) // at_once)
    context = multiprocessing.get_context("spawn")
    waiting = list(recipes.items())
    finished = True
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal())
        messages = context.Queue()
        running: dict[str, BaseProcess] = {}
        stack.callback(_terminate, running)
        bars = _Bars(progress)
        stack.callback(bars.close)
        while waiting or running:
            while waiting and len(running) < at_once and stop.signal is None:
                out, recipe = waiting.pop(0)
                child = context.Process(target=_work, args=(recipe, out, resume, threads, messages))
                child.start()
                running[out.name] = child
            if stop.signal is not None:
                waiting.clear()
                finished = False
                # Ctrl-C reaches the children by itself; a further SIGTERM does them no harm.
                _terminate(running)
                if not running:
                    break
            try:
                message = messages.get(timeout=0.2)
            except queue.Empty:
                for name, process in list(running.items()):
                    if not process.is_alive() and messages.empty():
                        del running[name]
                        if stop.signal is None:
                            raise RunFailedError(
                                f"{name}: its process died (exit code {process.exitcode}): out of "
                                "memory? The same command goes on"
                            ) from None
                continue
            match message:
                case _Finished(name, interrupted):
                    running.pop(name).join()
                    finished &= not interrupted
                case _Failed(_, text, users_mistake):
                    raise UserError(text) if users_mistake else RunFailedError(text)
                case _:
                    bars.show(message)
    return finished


def _terminate(running: Mapping[str, BaseProcess]) -> None:
    for child in running.values():
        child.terminate()


class _Bars:
    """The bars of all children."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: dict[str, tuple[ExitStack, Task]] = {}

    def show(self, message: _Begin | _Advance | _End) -> None:
        """Draw what a child says."""
        match message:
            case _Begin(label, total, done):
                stack = ExitStack()
                self._open[label] = (
                    stack,
                    stack.enter_context(self._progress.task(label, total, done)),
                )
            case _Advance(label, n, note):
                self._open[label][1].advance(n, note)
            case _End(label):
                self._open.pop(label)[0].close()

    def close(self) -> None:
        """End every bar."""
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()
