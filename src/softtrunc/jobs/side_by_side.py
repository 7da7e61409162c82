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

from softtrunc.feedback.errors import RunFailedError, UserError
from softtrunc.feedback.progress import Progress, Task
from softtrunc.feedback.signals import stop_on_signal
from softtrunc.jobs.measure import measure
from softtrunc.jobs.measured import has_meaning
from softtrunc.jobs.train import train
from softtrunc.recipes.schema import Recipe

__all__ = ["Outcome", "train_and_measure"]


class Outcome(NamedTuple):
    """How a set of runs ended.

    - `finished`: False if a signal stopped them.
    - `failures`: what went wrong, by the name of the run folder; the other runs were carried on.
    """

    finished: bool
    failures: dict[str, str]


class _Begin(NamedTuple):
    run: str
    label: str
    total: int
    done: int


class _Advance(NamedTuple):
    run: str
    label: str
    n: int
    note: str


class _End(NamedTuple):
    run: str
    label: str


class _Finished(NamedTuple):
    name: str
    interrupted: bool


class _Failed(NamedTuple):
    name: str
    message: str
    users_mistake: bool


class _RemoteTask:
    def __init__(self, messages: Any, run: str, label: str) -> None:
        self._messages = messages
        self._run = run
        self._label = label

    def advance(self, n: int = 1, note: str = "") -> None:
        """Send the step to the parent."""
        self._messages.put(_Advance(self._run, self._label, n, note))


class _RemoteProgress:
    """Progress in a child: messages to the parent, which draws."""

    def __init__(self, messages: Any, run: str) -> None:
        self._messages = messages
        self._run = run

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar of the parent's."""
        self._messages.put(_Begin(self._run, label, total, done))
        yield _RemoteTask(self._messages, self._run, label)
        self._messages.put(_End(self._run, label))

    def say(self, line: str) -> None:
        """Children have nothing to say."""


def _work(
    recipe: Recipe, out: Path, resume: bool, threads: int, gpu: str | None, messages: Any
) -> None:
    """The life of a child; it sees one graphics card at most."""
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used
    progress = _RemoteProgress(messages, out.name)
    try:
        outcome = train(recipe, out, resume=resume, progress=progress)
        if not outcome.interrupted:
            measure(out, density=has_meaning(recipe), progress=progress)
        messages.put(_Finished(out.name, outcome.interrupted))
    except UserError as error:
        messages.put(_Failed(out.name, str(error), users_mistake=True))
    except RunFailedError as error:
        messages.put(_Failed(out.name, str(error), users_mistake=False))
    except KeyboardInterrupt:
        messages.put(_Finished(out.name, interrupted=True))


def _places() -> list[str | None]:
    """Where runs can go at the same time: one on each graphics card, else one on each core."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if torch.cuda.is_available() and not on_cpu:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return list(visible.split(",")) if visible else list(map(str, range(_cards())))
    if torch.backends.mps.is_available() and not on_cpu:
        return [None]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [None] * (cores or 1)


def _cards() -> int:
    return int(torch.cuda.device_count())


def train_and_measure(
    recipes: Mapping[Path, Recipe], *, resume: bool, progress: Progress, label: str | None = None
) -> Outcome:
    """Train and measure each recipe into its run folder, as many at a time as there is room for.

    That is one process and one thread a core, or one process a graphics card. SIGINT and SIGTERM
    stop all of them, with checkpoints. A run that fails does not stop the others.

    Args:
        recipes: by run folder; the folders' names differ.
        resume: go on from checkpoints, and start what has not begun.
        progress: where the bars go.
        label: of a bar over the runs; None: no such bar.

    Raises:
        UserError: what `train` or `measure` found wrong with the input.
    """
    places = _places()
    at_once = max(1, min(len(recipes), len(places)))
    cores = os.cpu_count() or 1 if places[0] is not None else len(places)
    threads = max(1, cores // at_once)
    context = multiprocessing.get_context("spawn")
    waiting = list(recipes.items())
    finished, failures = True, dict[str, str]()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal())
        messages = context.Queue()
        running: dict[str, BaseProcess] = {}
        gpus: dict[str, str | None] = {}
        stack.callback(_terminate, running)
        whole = stack.enter_context(progress.task(label, len(recipes))) if label else None
        bars = _Bars(progress)
        stack.callback(bars.close)

        def leave(name: str) -> None:
            running.pop(name).join()
            del gpus[name]
            bars.close_of(name)
            if whole is not None:
                whole.advance(1)

        while waiting or running:
            while waiting and len(running) < at_once and stop.signal is None:
                out, recipe = waiting.pop(0)
                gpu = next((place for place in places if place not in gpus.values()), None)
                arguments = (recipe, out, resume, threads, gpu, messages)
                child = context.Process(target=_work, args=arguments)
                child.start()
                running[out.name], gpus[out.name] = child, gpu
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
                        leave(name)
                        if stop.signal is None:
                            failures[name] = (
                                f"{name}: its process died (exit code {process.exitcode}): out of "
                                "memory? The same command goes on"
                            )
                continue
            match message:
                case _Finished(name, interrupted):
                    finished &= not interrupted
                    leave(name)
                case _Failed(_, text, users_mistake=True):
                    raise UserError(text)
                case _Failed(name, text):
                    failures[name] = text
                    leave(name)
                case _:
                    bars.show(message)
    return Outcome(finished, failures)


def _terminate(running: Mapping[str, BaseProcess]) -> None:
    for child in running.values():
        child.terminate()


class _Bars:
    """The bars of all children."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: dict[tuple[str, str], tuple[ExitStack, Task]] = {}

    def show(self, message: _Begin | _Advance | _End) -> None:
        """Draw what a child says."""
        match message:
            case _Begin(run, label, total, done):
                stack = ExitStack()
                self._open[run, label] = (
                    stack,
                    stack.enter_context(self._progress.task(label, total, done)),
                )
            case _Advance(run, label, n, note):
                self._open[run, label][1].advance(n, note)
            case _End(run, label):
                self._open.pop((run, label))[0].close()

    def close_of(self, run: str) -> None:
        """End the bars that a child left open when it failed."""
        for key in [key for key in self._open if key[0] == run]:
            self._open.pop(key)[0].close()

    def close(self) -> None:
        """End every bar."""
        for run in {run for run, _ in self._open}:
            self.close_of(run)
