"""Commands in processes of their own that start at once.

They are forked from a server that has imported the package and computed nothing, so that each is
what `python -m softtrunc` would be after the seconds in which Python imports PyTorch.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from forked_life import live

# What the package itself starts in several processes comes from the same server, so that it is
# started here, before the package starts one that has imported less.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("torch._dynamo", "accelerate", "torchmetrics"),
        *(f"softtrunc.jobs.{job}" for job in ("measure_files", "prepare", "study", "train")),
    ]
)
ensure_running()


class Forked:
    """`python ARGUMENTS` (`-m MODULE ...` or a script); used as a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._said = Path(tempfile.mkdtemp())
        self._process = _SERVER.Process(
            target=live, args=(list(arguments), cwd, dict(env), self._said)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired("a forked process", timeout, *self._read())
        return self._read()

    def _read(self) -> tuple[str, str]:
        out, err = (
            (self._said / name).read_text() if (self._said / name).exists() else ""
            for name in ("out", "err")
        )
        shutil.rmtree(self._said)
        return out, err
