"""Any figure of a run or of images, with its whole protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softtrunc.evaluation.time_bins import ByTime, by_time

__all__ = ["ByTime", "by_time"]


def __getattr__(name: str) -> object:
    # On first use: recipes and reports look up the names of figures without waiting for torch.
    if name not in __all__:
        raise AttributeError(f"module 'softtrunc.evaluation' has no attribute {name!r}")
    from softtrunc.evaluation import time_bins

    return getattr(time_bins, name)
