"""softtrunc: score-based diffusion models trained with Soft Truncation.

An SDE says how data become noise, a truncation prior says how deep each training step looks, a
score model learns the way back; samplers and densities read that score.
"""

from softtrunc.objective import LossTerms, MixedLoss, SoftTruncationLoss
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.sde import SDE, VESDE, VPSDE, Marginal, ReciprocalVESDE, SubVPSDE
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
    "TimeDraw",
    "TruncationPrior",
    "UniformTimes",
    "__version__",
    "likelihood_weight",
    "variance_weight",
]
