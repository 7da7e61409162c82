"""Processes of one job, started as a launcher starts them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from forked import Forked


def start_together(arguments: Sequence[str], cwd: Path, processes: int = 2) -> list[Forked]:
    """`python ARGUMENTS` in each; no launcher costs its own start, and none kills the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }
    return [
        Forked(arguments, cwd=cwd, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]


def finish_together(started: Sequence[Forked]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    said = [process.communicate(timeout=280) for process in started]
    return [
        (process.returncode, out, err) for process, (out, err) in zip(started, said, strict=True)
    ]
