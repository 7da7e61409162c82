"""Every sampler with every SDE draws from the distributions whose scores it is given.

Seeds are fixed. Statistical bounds are 5 standard errors, plus what is stated as the bias of the
method at its number of steps: over all comparisons here a correct sampler would fail with another
seed in about one run of a hundred.
"""

from __future__ import annotations

import math

import pytest
import torch
from sampler_cases import (
    SAMPLERS,
    SDES,
    gaussian,
    generator,
    mixture,
    prior_draw,
    sliced_wasserstein,
    wide_mixture,
)

from softtrunc.samplers import DPMSolver, Heun, ProbabilityFlow, Sampler

# How far a method may be off in the mean over 64 dimensions of std / true std.
BIAS = {
    "dpm1": 0.045,
    "dpm2": 0.045,
    "dpm3": 0.012,
    "dpm2_sde": 0.015,
    "dpm3_sde": 0.01,
    "heun": 0.045,
    "heun_churn": 0.02,
    "flow": 0.003,
    "euler_maruyama": 0.01,
    "ancestral": 0.025,
    "pc": 0.02,
    "pc_ancestral": 0.02,
    "pc_euler": 0.02,
}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_mean_and_covariance(name, sde):
    n, dim = 1000, 64
    truth = gaussian(sde, dim)
    x = SAMPLERS[name].sample(truth, (n, dim), generator=generator(1)).x.double()
    z = (x - truth.mean) / truth.std
    covariance = torch.cov(z.T)
    ratio = covariance.diagonal().sqrt()
    # The prior's mean is 0 where the marginal's is alpha mean: at most 0.04 std for alpha = 0.0066.
    assert z.mean(0).abs().max() < 5 / math.sqrt(n) + 0.04
    assert abs(ratio.mean() - 1) < BIAS[name] + 5 / math.sqrt(2 * n * dim)
    assert (ratio - 1).abs().max() < 2 * BIAS[name] + 5 / math.sqrt(2 * n)
    rest = covariance - torch.diag(covariance.diagonal())
    assert rest.abs().max() < 5.5 / math.sqrt(n)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_modes_and_shape(name, sde):
    n = 2000
    truth = mixture(sde)
    x = SAMPLERS[name].sample(truth, (n, 2), generator=generator(2)).x.double()
    mode = torch.cdist(x, truth.means).argmin(1)
    weight = torch.bincount(mode, minlength=3) / n
    assert (weight - truth.weights).abs().max() < 5 * math.sqrt(0.25 / n)
    for j in range(3):
        spread = (x[mode == j] - truth.means[j]).square().mean().sqrt() / truth.stds[j]
        assert abs(spread - 1) < 0.08 + 5 / math.sqrt(2 * 2 * n * float(truth.weights[j]))
    # Mean and covariance, which is not diagonal; products spread by at most 0.8 here.
    w, m = truth.weights, truth.means
    mean = w @ m
    within = (w * truth.stds**2).sum() * torch.eye(2)
    covariance = (w[:, None] * (m - mean)).T @ (m - mean) + within
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diagonal() / n).sqrt() + 0.005).all()
    assert (torch.cov(x.T) - covariance).abs().max() < 5 * 0.8 / math.sqrt(n) + 0.03
    # Two exact draws of this size are 0.02 to 0.04 apart.
    assert sliced_wasserstein(x, truth.sample(n, generator=generator(3))) < 0.07


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_in_64_dimensions(name, sde):
    n, dim = 500, 64
    truth = wide_mixture(sde, dim)
    x = SAMPLERS[name].sample(truth, (n, dim), generator=generator(4)).x.double()
    distance = torch.cdist(x, truth.means)
    mode = distance.argmin(1)
    # Modes are 8 apart and at most 3.2 wide: which is meant is never in doubt.
    assert (distance.sort(1).values[:, 1] - distance.min(1).values).min() > 1.0
    weight = torch.bincount(mode, minlength=3) / n
    assert (weight - truth.weights).abs().max() < 5 * math.sqrt(0.25 / n)
    for j in range(3):
        z = (x[mode == j] - truth.means[j]) / truth.stds[j]
        m = len(z)
        assert z.mean(0).abs().max() < 5.5 / math.sqrt(m) + 0.02
        assert abs(z.square().mean().sqrt() - 1) < BIAS[name] + 5 / math.sqrt(2 * m * dim)
        covariance = torch.cov(z.T) - torch.eye(dim).double()
        assert covariance.abs().max() < 3 * BIAS[name] + 6 * math.sqrt(2 / m)


DETERMINISTIC: dict[str, tuple[Sampler, float]] = {
    "dpm1": (DPMSolver(steps=1000, order=1, denoise_final=False), 2e-2),
    "dpm2": (DPMSolver(steps=400, denoise_final=False), 5e-4),
    "dpm3": (DPMSolver(steps=200, order=3, denoise_final=False), 3e-5),
    "heun": (Heun(steps=400, denoise_final=False), 5e-4),
    "flow": (ProbabilityFlow(rtol=1e-8, atol=1e-8, denoise_final=False), 1e-6),
}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_exact_flow(name, sde):
    sampler, bound = DETERMINISTIC[name]
    truth = gaussian(sde, 16)
    x = prior_draw(sde, 30, 16)
    times = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_max, sde.t_end))
    exact = truth.flow_map(x, *times)
    got = sampler.sample(truth, x.shape, x_init=x, dtype=torch.float64).x
    assert (got - exact).abs().max() < bound


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_probability_flow_keeps_its_default_tolerance(sde):
    truth = gaussian(sde, 16)
    x = prior_draw(sde, 30, 16).float()
    times = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_max, sde.t_end))
    exact = truth.flow_map(x.double(), *times)
    got, nfe = ProbabilityFlow(denoise_final=False).sample(truth, x.shape, x_init=x)
    assert (got - exact).abs().max() < 3e-4
    assert nfe < 130
