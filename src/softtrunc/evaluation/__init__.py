"""Any figure of a run or of images, with its whole protocol."""

from softtrunc.evaluation.by_time import ByTime, by_time

__all__ = ["ByTime", "by_time"]
