"""A batch in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from softtrunc.feedback.errors import is_full_memory

Result = TypeVar("Result")


def in_chunks(
    work: Callable[[slice], Result], count: int, chunk_size: int | None = None
) -> list[Result]:
    """`work` on consecutive slices of `range(count)`, at most `chunk_size` long (None: no limit).

    When memory runs out the slice is halved and tried again, and later slices stay that short.

    Raises:
        ValueError: if `chunk_size` is not positive.
        RuntimeError: torch's own, if memory is too small for a single example.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: need at least 1, or None for no limit")
    size = max(count, 1) if chunk_size is None else chunk_size
    results: list[Result] = []
    begin = 0
    while begin < count:
        end = min(begin + size, count)
        try:
            results.append(work(slice(begin, end)))
        except RuntimeError as error:
            if end - begin == 1 or not is_full_memory(error):
                raise
            size = (end - begin) // 2
        else:
            begin = end
            continue
        # Outside the handler: the traceback, which holds the tensors of the attempt, is gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()
    return results
