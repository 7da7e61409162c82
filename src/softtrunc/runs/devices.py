"""Devices and processes of a job, as accelerate finds them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from softtrunc.feedback.processes import SILENCE, Company, company


class Devices(NamedTuple):
    """This process's device, and the processes that share the job."""

    accelerator: Accelerator
    company: Company


def find_devices(
    timeout: float,
    *,
    precision: str | None = None,
    tracker: str | None = None,
    folder: Path | None = None,
) -> Devices:
    """Join the processes that a launcher started, if it did.

    Args:
        timeout: seconds after which an exchange of numbers fails that others take no part in.
        precision: of the network, as accelerate names it.
        tracker: where metrics go as well; `folder`: what it may write to.
    """
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=tracker,
        project_dir=folder,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)),
            # Gradients lie where they are exchanged: one copy of them less.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    return Devices(accelerator, company(min(timeout, SILENCE)))
