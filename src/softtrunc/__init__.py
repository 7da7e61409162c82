"""softtrunc: score-based diffusion models trained with Soft Truncation.

An SDE says how data become noise, a truncation prior says how deep each training step looks, a
score model learns the way back; samplers and densities read that score.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softtrunc.guidance import guided
    from softtrunc.objective import LossTerms, MixedLoss, SoftTruncationLoss
    from softtrunc.score import ScoreFunction, ScoreModel
    from softtrunc.sde import (
        SDE,
        VESDE,
        VPSDE,
        Marginal,
        ReciprocalVESDE,
        SubVPSDE,
        TabulatedVPSDE,
    )
    from softtrunc.times import ImportanceTimes, TimeDraw, UniformTimes
    from softtrunc.truncation import HardTruncation, PowerPrior, TruncationPrior
    from softtrunc.weighting import PriorWeight, likelihood_weight, variance_weight

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "HardTruncation",
    "ImportanceTimes",
    "LossTerms",
    "Marginal",
    "MixedLoss",
    "PowerPrior",
    "PriorWeight",
    "ReciprocalVESDE",
    "ScoreFunction",
    "ScoreModel",
    "SoftTruncationLoss",
    "SubVPSDE",
    "TabulatedVPSDE",
    "TimeDraw",
    "TruncationPrior",
    "UniformTimes",
    "__version__",
    "guided",
    "likelihood_weight",
    "variance_weight",
]

# Names load on first use: the command line answers --help and refuses a wrong word without
# waiting for torch.
_HOME = {
    "guided": "guidance",
    "LossTerms": "objective",
    "MixedLoss": "objective",
    "SoftTruncationLoss": "objective",
    "ScoreFunction": "score",
    "ScoreModel": "score",
    "SDE": "sde",
    "Marginal": "sde",
    "ReciprocalVESDE": "sde",
    "SubVPSDE": "sde",
    "TabulatedVPSDE": "sde",
    "VESDE": "sde",
    "VPSDE": "sde",
    "ImportanceTimes": "times",
    "TimeDraw": "times",
    "UniformTimes": "times",
    "HardTruncation": "truncation",
    "PowerPrior": "truncation",
    "TruncationPrior": "truncation",
    "PriorWeight": "weighting",
    "likelihood_weight": "weighting",
    "variance_weight": "weighting",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'softtrunc' has no attribute {name!r}")
    return getattr(import_module(f"softtrunc.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
