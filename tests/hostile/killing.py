"""Commands in children that die at a chosen change of the file system, and never hang.

`python killing.py` imports the package, computes nothing, and forks a child for each command that
it is told: a fork of a process that has computed would wait for threads that it has not. A child
has its own group and a time, after which all of the group is killed and said where it stood.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HALF = b'{"half": [1, 2, '
MOST_SECONDS = 200.0
_CHANGES = {
    *("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate"),
    "shutil.rmtree",
}
# One thread each: what forks is to have no other.
_ALONE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ACCELERATE_USE_CPU": "1",
}
_JOBS = (
    "anatomy",
    "edit",
    "export",
    "import_checkpoint",
    "measure_files",
    "prepare",
    "study",
    "train",
)
_OTHERS = (
    *("torch._dynamo", "accelerate", "torchmetrics", "sklearn.datasets", "sklearn.model_selection"),
    *("matplotlib.backends.backend_agg", "jinja2"),
)


class Change(NamedTuple):
    """The n-th change of the file system that a command makes; torn: with half a file written."""

    number: int
    torn: bool


class Ended(NamedTuple):
    """How a child ended.

    - `code`: its exit code, -9 if it was killed.
    - `opens`: of each change that it made, whether it opened a file.
    - `told`: what it printed on standard error; if it hung, where.
    """

    code: int
    opens: list[bool]
    told: str


class Children:
    """Starts children, one at a time."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ALONE},
            text=True,
        )

    def run(self, command: list[str], folder: Path, at: Change | None = None) -> Ended:
        """Run a command in a folder; with `at`, until there."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([command, str(folder), at]), file=self.server.stdin, flush=True)
        code, opens, told = json.loads(self.server.stdout.readline())
        return Ended(code, [letter == "o" for letter in opens], told)

    def stop(self) -> None:
        """End the server; it has no child now."""
        self.server.communicate(timeout=30)


class _Watch:
    """Counts changes below a folder; kills the process at one of them."""

    def __init__(self, folder: str, at: Change | None) -> None:
        self.folder, self.at = folder, at
        self.seen: list[bool] = []
        self.busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or not (event in _CHANGES or event == "open"):
            return
        if event == "open" and not _opens_to_write(arguments):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = str(Path.cwd() / os.fsdecode(arguments[0]))
        if not path.startswith(self.folder):
            return
        self.seen.append(event == "open")
        if self.at is not None and len(self.seen) > self.at.number:
            self.busy = True
            if self.at.torn and event == "open":
                _tear(path, arguments[1])
            os.kill(os.getpid(), signal.SIGKILL)


def _opens_to_write(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def _tear(path: str, mode: object) -> None:
    """Leave the file as a process does that dies while writing it."""
    if isinstance(mode, str) and not Path(path).is_dir():
        with Path(path).open("ab" if "a" in mode or "+" in mode else "wb") as file:
            file.write(HALF)


class _InOneProcess:
    """Children of a command as calls, so that their writes are watched too."""

    Queue = queue.Queue

    @staticmethod
    def set_forkserver_preload(names: list[str]) -> None: ...

    class Process:
        exitcode = 0

        def __init__(self, target: Callable[..., object], args: tuple[Any, ...]) -> None:
            self.call = lambda: target(*args)

        def start(self) -> None:
            self.call()

        def is_alive(self) -> bool:
            return False

        def join(self) -> None: ...

        terminate = join


def _prepare() -> None:
    """Import what commands import, once for all children, and let all that they write be seen."""
    for name in (*_OTHERS, *(f"softtrunc.jobs.{job}" for job in _JOBS)):
        importlib.import_module(name)
    import safetensors.torch

    from softtrunc.jobs import side_by_side

    side_by_side.multiprocessing.get_context = lambda _: _InOneProcess  # type: ignore[attr-defined,assignment,return-value]
    written = safetensors.torch.serialize_file

    def write(tensors: Any, filename: Any, **options: Any) -> None:
        sys.audit("open", os.fspath(filename), "wb", 0)  # it is opened outside Python
        written(tensors, filename, **options)

    safetensors.torch.serialize_file = write


def _child(command: list[str], folder: str, at: Change | None, told: int) -> None:
    from harness import run

    os.setpgid(0, 0)
    faulthandler.dump_traceback_later(MOST_SECONDS - 10, file=told)
    os.chdir(folder)
    watch = _Watch(folder, at)
    sys.addaudithook(watch)
    outcome = run(*command)
    watch.busy = True
    letters = "".join("o" if opens else "c" for opens in watch.seen)
    os.write(told, json.dumps([letters, outcome.err[-4000:]]).encode())
    os._exit(99 if outcome.code is None else outcome.code)


def _wait(child: int) -> int:
    """The exit code of a child, whose group is killed when its time is over."""
    until = time.monotonic() + MOST_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 98
        time.sleep(0.01)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers is to go there
    _prepare()
    if Path("/proc/self/task").exists():
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lack threads"
    for line in sys.stdin:
        command, folder, at = json.loads(line)
        with tempfile.TemporaryFile() as told:
            child = os.fork()
            if child == 0:
                try:
                    _child(command, folder, at and Change(*at), told.fileno())
                finally:
                    os._exit(97)
            code = _wait(child)
            told.seek(0)
            text = told.read().decode(errors="replace")
        letters, words = json.loads(text) if text.startswith("[") else ("", text)
        print(json.dumps([code, letters, words]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
