"""Several processes that a launcher started: what all of them find wrong is told once."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

_PATIENCE = timedelta(seconds=5)


def world_size() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of the processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_first_to_tell() -> bool:
    """Whether this process is the one to say what went wrong; the first that asks is.

    torchrun and accelerate keep a store at which all can ask. Where processes were started by hand
    that of the process group is asked; before there is one, they have read nothing but the command
    and files, which are the same for all: the first process speaks. Where the store is gone, so is
    the first process, whose error this one's is a consequence of.
    """
    if world_size() == 1:
        return True
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not _has_group():
        return is_first()
    try:
        return _count_of_tellers() == 1
    except (RuntimeError, ValueError, KeyError):  # torch's DistError among them
        return is_first()


def told_key() -> str:
    """What is in the store once a process has told; a restart of the launcher's is another try."""
    return f"softtrunc/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _has_group() -> bool:
    """Whether a process group was made; what has not loaded torch has made none."""
    if "torch" not in sys.modules:
        return False
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _count_of_tellers() -> int:
    import torch.distributed

    if _has_group():
        store = torch.distributed.distributed_c10d._get_default_store()
    else:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=_PATIENCE,
        )
    return int(store.add(told_key(), 1))
