"""The samplers and the exactly known models that the tests of this folder put together."""

from __future__ import annotations

import torch
from exact import Gaussian, Mixture
from torch import Tensor

from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
)
from softtrunc.sde import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE

SDES: dict[str, SDE] = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "rve": ReciprocalVESDE(),
}

# Fewer steps than the defaults have, so that the tests are quick; enough for the bounds they state.
SAMPLERS: dict[str, Sampler] = {
    "dpm1": DPMSolver(steps=100, order=1),
    "dpm2": DPMSolver(steps=25),
    "dpm3": DPMSolver(steps=25, order=3),
    "dpm2_sde": DPMSolver(steps=80, stochastic=True),
    "dpm3_sde": DPMSolver(steps=80, order=3, stochastic=True),
    "heun": Heun(steps=25),
    "heun_churn": Heun(steps=60, churn=10.0),
    "flow": ProbabilityFlow(rtol=1e-4, atol=1e-4),
    "euler_maruyama": EulerMaruyama(steps=200),
    "ancestral": Ancestral(steps=200),
    "pc": PredictorCorrector(steps=120),
    "pc_ancestral": PredictorCorrector(steps=120, predictor="ancestral"),
    "pc_euler": PredictorCorrector(steps=120, predictor="euler_maruyama"),
}


class Counted:
    """A model that counts how often it is asked, and of how many examples."""

    def __init__(self, model: Gaussian | Mixture) -> None:
        self.model = model
        self.sde = model.sde
        self.calls = 0
        self.examples = 0

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        self.examples += x.shape[0]
        return self.model.score(x, t)


def gaussian(sde: SDE, dim: int = 64) -> Gaussian:
    return Gaussian(
        sde,
        torch.linspace(-1.0, 1.0, dim, dtype=torch.float64),
        torch.linspace(0.2, 1.2, dim, dtype=torch.float64),
    )


def mixture(sde: SDE) -> Mixture:
    return Mixture(
        sde,
        torch.tensor([[-1.0, 0.0], [0.8, 0.9], [0.7, -0.8]], dtype=torch.float64),
        torch.tensor([0.15, 0.25, 0.1], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    )


def wide_mixture(sde: SDE, dim: int) -> Mixture:
    """Three modes, 8 from each other in any number of dimensions >= 3."""
    corners = 8.0 / 2**0.5 * torch.eye(3, dim, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator(9), dtype=torch.float64)).Q
    return Mixture(
        sde,
        (corners - corners.mean(0)) @ turn,
        torch.tensor([0.3, 0.4, 0.2], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior_draw(sde: SDE, n: int, dim: int, seed: int = 0) -> Tensor:
    return sde.prior_sample((n, dim), generator=generator(seed), dtype=torch.float64)


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 64) -> float:
    """Mean over directions of the 1-Wasserstein distance of the projections; equal sizes."""
    angle = torch.arange(directions, dtype=torch.float64) * (torch.pi / directions)
    lines = torch.stack([angle.cos(), angle.sin()])
    gap = (x.double() @ lines).sort(0).values - (y.double() @ lines).sort(0).values
    return float(gap.abs().mean())
