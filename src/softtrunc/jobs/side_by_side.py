"""Train and measure several recipes at the same time, each in a process of its own.

A small network cannot keep two cores busy: its operations are shorter than the threads' waiting
for each other. One process a model, with its share of the cores, takes half as long.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from softtrunc.feedback.errors import RunFailedError, UserError
from softtrunc.feedback.progress import Progress, Task
from softtrunc.feedback.signals import stop_on_signal
from softtrunc.jobs.measure import measure
from softtrunc.jobs.measured import missing_figures
from softtrunc.jobs.prepare import core_count
from softtrunc.jobs.train import train
from softtrunc.recipes.schema import Recipe
from softtrunc.runs.folder import Run


class Outcome(NamedTuple):
    """How a set of runs ended.

    - `finished`: False if a signal stopped them.
    - `failures`: what went wrong, by the name of the run folder; the other runs were carried on.
    """

    finished: bool
    failures: dict[str, str]


class _Begin(NamedTuple):
    """A run takes up another task."""

    run: str
    label: str
    total: int
    done: int


class _Advance(NamedTuple):
    run: str
    n: int
    note: str


class _Finished(NamedTuple):
    run: str
    interrupted: bool


class _Failed(NamedTuple):
    run: str
    message: str
    users_mistake: bool


_Message = _Begin | _Advance | _Finished | _Failed


@runtime_checkable
class _Messages(Protocol):
    def put(self, message: _Message, /) -> None: ...


class _RemoteProgress:
    """Progress in a child: messages to the parent, which draws."""

    def __init__(self, messages: _Messages, run: str) -> None:
        self._messages = messages
        self._run = run

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar of the parent's, until the next one."""
        self._messages.put(_Begin(self._run, label, total, done))
        yield self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Send the step to the parent."""
        self._messages.put(_Advance(self._run, n, note))

    def say(self, line: str) -> None:
        """Children have nothing to say."""


def _work(
    recipes: Sequence[Recipe],
    out: Path,
    resume: bool,
    threads: int,
    gpu: str | None,
    messages: _Messages,
) -> None:
    """The life of a child; it sees one graphics card at most."""
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used
    progress = _RemoteProgress(messages, out.name)
    try:
        interrupted = train(recipes[0], out, resume=resume, progress=progress).interrupted
        for recipe in () if interrupted else recipes:
            _measure_missing(out, recipe, progress)
        messages.put(_Finished(out.name, interrupted))
    except (UserError, RunFailedError, FloatingPointError, OSError) as error:
        messages.put(_Failed(out.name, str(error), isinstance(error, UserError)))
    except KeyboardInterrupt:
        messages.put(_Finished(out.name, interrupted=True))


def _measure_missing(out: Path, recipe: Recipe, progress: Progress) -> None:
    """Measure what the recipe asks for and the run does not have yet."""
    missing = missing_figures(Run(out), recipe)
    densities = missing.intersection(recipe.evaluation.figures)
    if missing:
        measure(
            out,
            density=bool(densities),
            samples=None if missing - densities else (),
            overrides=measuring_overrides(recipe),
            progress=progress,
        )


def measuring_overrides(recipe: Recipe) -> list[str]:
    """What makes a run of the same training be measured as this recipe says."""
    sections = {"sampling": recipe.sampling, "evaluation": recipe.evaluation}
    return [f"{name}={section.model_dump_json()}" for name, section in sections.items()]


def _places() -> list[str | None]:
    """Where runs can go at the same time: one on each graphics card, else one on each core."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if torch.cuda.is_available() and not on_cpu:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        return list(cards)
    if torch.backends.mps.is_available() and not on_cpu:
        return [None]
    return [None] * core_count()


def _processes() -> ForkServerContext | SpawnContext:
    """Starts processes: of a server that has the imports behind it, where the system has that.

    The server computes nothing and uses no graphics card, so that what it forks may use any.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def train_and_measure(
    recipes: Mapping[Path, Sequence[Recipe]],
    *,
    resume: bool,
    progress: Progress,
    label: str | None = None,
) -> Outcome:
    """Train and measure into run folders, as many at a time as there is room for.

    That is one process and one thread a core, or one process a graphics card. SIGINT and SIGTERM
    stop all of them, with checkpoints. A run that fails does not stop the others.

    Args:
        recipes: by run folder; the folders' names differ. The first one is trained, all are
            measured: they differ in `sampling` and `evaluation` alone.
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
    context = _processes()
    waiting = list(recipes.items())
    running: dict[str, _Child] = {}
    finished, failures = True, dict[str, str]()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal())
        messages = context.Queue()
        stack.callback(_terminate, running)
        whole = stack.enter_context(progress.task(label, len(recipes))) if label else None
        bars = _Bars(progress)
        stack.callback(bars.close_all)

        def leave(name: str) -> None:
            running.pop(name).process.join()
            bars.close(name)
            if whole is not None:
                whole.advance(1)

        while waiting or running:
            while waiting and len(running) < at_once and stop.signal is None:
                out, variants = waiting.pop(0)
                taken = [child.gpu for child in running.values()]
                gpu = next((place for place in places if place not in taken), None)
                arguments = (variants, out, resume, threads, gpu, messages)
                process = context.Process(target=_work, args=arguments)
                process.start()
                running[out.name] = _Child(process, gpu)
            if stop.signal is not None:
                waiting.clear()
                finished = False
                # Ctrl-C reaches the children by itself; a further SIGTERM does them no harm.
                _terminate(running)
                if not running:
                    break
            try:
                message: _Message = messages.get(timeout=0.2)
            except queue.Empty:
                for name, child in list(running.items()):
                    if not child.process.is_alive() and messages.empty():
                        leave(name)
                        if stop.signal is None:
                            failures[name] = (
                                f"{name}: its process died (exit code {child.process.exitcode}): "
                                "out of memory? The same command goes on"
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
                case _Begin():
                    bars.begin(message)
                case _Advance():
                    bars.advance(message)
    return Outcome(finished, failures)


class _Child(NamedTuple):
    process: BaseProcess
    gpu: str | None


def _terminate(running: Mapping[str, _Child]) -> None:
    for child in running.values():
        child.process.terminate()


class _Bars:
    """The bar of each run's present task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: dict[str, tuple[ExitStack, Task]] = {}

    def begin(self, begun: _Begin) -> None:
        """Draw a task in the place of the one before."""
        self.close(begun.run)
        stack = ExitStack()
        task = self._progress.task(begun.label, begun.total, begun.done)
        self._open[begun.run] = stack, stack.enter_context(task)

    def advance(self, step: _Advance) -> None:
        """Move the bar of a run."""
        self._open[step.run][1].advance(step.n, step.note)

    def close(self, run: str) -> None:
        """End the bar of a run."""
        if run in self._open:
            self._open.pop(run)[0].close()

    def close_all(self) -> None:
        """End every bar."""
        for run in list(self._open):
            self.close(run)
