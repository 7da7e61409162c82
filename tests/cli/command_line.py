"""Run the command line in this process or in one of its own."""

from __future__ import annotations

import os

from forked import Forked

TINY = [
    "--set",
    "network.options={base_channels: 8}",
    "--set",
    "training.batch_size=16",
    "--set",
    "training.log_every=5",
    "--set",
    "training.samples=4",
]
"""A recipe cut down to seconds."""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "NO_COLOR": "1"}


def start(*arguments: str, cwd) -> Forked:
    return Forked(["-m", "softtrunc", *arguments], cwd=cwd, env=environment())
