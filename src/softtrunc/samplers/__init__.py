"""Samplers: from noise to data along a learned score.

The paper's (`PredictorCorrector`, `ProbabilityFlow`), their parts (`EulerMaruyama`, `Ancestral`)
and fast ones (`Heun`, `DPMSolver`), for every SDE; `encode` and `decode` along the flow; `inpaint`
and `colorize` with an unconditional model; `Chimera` joins two models at a time, `sample_from`
starts at one; `Trajectory` keeps the way a sample went.
"""

from softtrunc.samplers.base import (
    Callback,
    Constraint,
    FixedStepSampler,
    Sampler,
    Samples,
    ScoreHook,
    Step,
)
from softtrunc.samplers.chimera import Chimera
from softtrunc.samplers.conditional import colorize, inpaint
from softtrunc.samplers.dpm_solver import DPMSolver
from softtrunc.samplers.grids import Grid
from softtrunc.samplers.heun import Heun
from softtrunc.samplers.latent import decode, encode, slerp
from softtrunc.samplers.middle import sample_from
from softtrunc.samplers.precision import autocast_score
from softtrunc.samplers.predictor_corrector import (
    Ancestral,
    EulerMaruyama,
    Predictor,
    PredictorCorrector,
)
from softtrunc.samplers.probability_flow import ProbabilityFlow
from softtrunc.samplers.trajectory import Trajectory

__all__ = [
    "Ancestral",
    "Callback",
    "Chimera",
    "Constraint",
    "DPMSolver",
    "EulerMaruyama",
    "FixedStepSampler",
    "Grid",
    "Heun",
    "Predictor",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Sampler",
    "Samples",
    "ScoreHook",
    "Step",
    "Trajectory",
    "autocast_score",
    "colorize",
    "decode",
    "encode",
    "inpaint",
    "sample_from",
    "slerp",
]
