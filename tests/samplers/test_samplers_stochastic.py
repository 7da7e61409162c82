"""Langevin steps, the reverse SDE's discretisations, and the known trap near t = 0.

Statistical bounds are 4 standard errors at fixed seeds.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sampler_cases import SDES, gaussian, generator, mixture, prior_draw, sliced_wasserstein

from softtrunc.noise import Noise
from softtrunc.samplers import Ancestral, DPMSolver, EulerMaruyama, PredictorCorrector
from softtrunc.samplers.grids import point_at, schedule, step_length
from softtrunc.samplers.predictor_corrector import (
    ancestral_step,
    euler_maruyama_step,
    langevin_step,
    reverse_diffusion_step,
)
from softtrunc.sde import VESDE, VPSDE


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("seeded", [False, True])
def test_langevin_leaves_the_marginal_in_place(sde, seeded):
    # On an isotropic Gaussian of variance v the size is e = 2 snr^2 v^2 / V at variance V, and
    # x -> (1 - e/v) x + sqrt(2e) z is stationary at V = v (1 + snr^2): the stated bias.
    n, dim, snr = 1000, 64, 0.16
    truth = gaussian(sde, dim)
    truth = type(truth)(sde, truth.mean, torch.full((dim,), 0.5, dtype=torch.float64))
    t = torch.tensor(0.3 if sde.t_end > 1e-4 or isinstance(sde, VESDE) else 5e-5).double()
    at = point_at(sde, float(t))
    noise = Noise(n, range(n) if seeded else None, None if seeded else generator(1))
    mean, variance = truth.moments(t, torch.zeros(n, dim, dtype=torch.float64))
    z = torch.randn(n, dim, generator=generator(0), dtype=torch.float64)
    x = mean + variance.sqrt() * z
    ratios = []
    for _ in range(80):
        x = langevin_step(x, truth.score(x, t), noise, snr, at)
        ratios.append(float((x - mean).square().mean() / variance.mean()))
    error = 4 * math.sqrt(2 / (n * dim))
    # Seeded, the size follows |x|, which widens by up to 2 / D more.
    extra = 2 / dim if seeded else 0.0
    assert all(1 - error < r < 1 + snr**2 + extra + error for r in ratios)
    if not seeded:
        assert ratios[-1] == pytest.approx(1 + snr**2, abs=error + 0.003)
    assert ((x - mean) / variance.sqrt()).mean().abs() < 4 * 1.02 / math.sqrt(n * dim)


@pytest.mark.parametrize("seeded", [False, True])
def test_langevin_repairs_a_wrong_spread(seeded):
    sde = VESDE()
    truth = gaussian(sde, 32)
    t = torch.tensor(0.6, dtype=torch.float64)
    mean, variance = truth.moments(t, torch.zeros(500, 32, dtype=torch.float64))
    noise = Noise(500, range(500) if seeded else None, None if seeded else generator(0))
    x = mean + 1.5 * variance.sqrt() * noise.like(mean.expand(500, 32))
    for _ in range(150):
        x = langevin_step(x, truth.score(x, t), noise, 0.16, point_at(sde, 0.6))
    assert float(((x - mean).square() / variance).mean()) == pytest.approx(1.03, abs=0.06)


def test_langevin_step_size_follows_the_rule():
    at = point_at(VESDE(), 0.4)
    x, score = torch.zeros(2, 4), torch.tensor([[3.0, 0, 0, 0], [0, 1.0, 0, 0]])
    z = Noise(2, None, generator(3)).like(x)
    got = langevin_step(x, score, Noise(2, None, generator(3)), 0.2, at, 0.9)
    size = 2 * 0.9 * (0.2 * z.norm(dim=1).mean() / 2.0) ** 2
    torch.testing.assert_close(got, size * score + (2 * size).sqrt() * z)
    # With seeds every sample has a size of its own, and none without bound.
    score[1] = 0.0
    z = Noise(2, [5, 6], None).like(x)
    got = langevin_step(x, score, Noise(2, [5, 6], None), 0.2, at, 0.9)
    size = 2 * 0.9 * 0.2**2 * 4 / (torch.tensor([[9.0], [0.0]]) + 32 / at.sigma**2)
    torch.testing.assert_close(got, size * score + (2 * size).sqrt() * z)


@pytest.mark.parametrize("name", SDES)
def test_seeded_correctors_are_right_in_two_dimensions(name):
    n, truth = 600, mixture(SDES[name])
    x = PredictorCorrector(steps=100).sample(truth, (n, 2), seeds=range(n)).x.double()
    weight = torch.bincount(torch.cdist(x, truth.means).argmin(1), minlength=3) / n
    assert (weight - truth.weights).abs().max() < 4 * math.sqrt(0.25 / n)
    assert sliced_wasserstein(x, truth.sample(n, generator=generator(3))) < 0.1


def test_euler_maruyama_with_the_public_step_overshoots_and_ours_does_not():
    # In a direction without spread the score at t is -x / sigma^2. The public code steps by 1/N
    # wherever it is; at t = 1e-5 that multiplies by about 1 - beta / (N sigma^2) = -99.
    sde, n = VPSDE(), 1000
    x = torch.ones(1, 1, dtype=torch.float64)
    at = point_at(sde, 1e-5)
    trapped = euler_maruyama_step(sde, x, -x / at.sigma**2, at.t, 1.0 / n).mean
    assert -101 < float(trapped) < -97
    # At the default end time the same step is about Tweedie's, without overshoot to speak of.
    at = point_at(sde, sde.t_end)
    assert abs(float(euler_maruyama_step(sde, x, -x / at.sigma**2, at.t, 1.0 / n).mean)) < 0.1
    # Ours steps to the next point and ends with Tweedie's formula: no factor beyond -1 anywhere,
    # also where it is made to end at 1e-5.
    for sampler in (EulerMaruyama(), EulerMaruyama(t_end=1e-5)):
        points = schedule(sde, sampler.grid, sampler.steps - 1, sampler.t_end)
        for here, there in pairwise(points):
            h = step_length(sde, sampler.grid, here, there)
            factor = euler_maruyama_step(sde, x, -x / here.sigma**2, here.t, h).mean
            assert abs(float(factor)) < 1.0


@pytest.mark.parametrize("t_end", [None, 1e-5])
def test_thin_data_come_out_thin(t_end):
    # The trap seen from outside: data of standard deviation 1e-4 around 0.3.
    truth = gaussian(VPSDE(), 4)
    truth = type(truth)(truth.sde, torch.full((4,), 0.3).double(), torch.full((4,), 1e-4).double())
    x = EulerMaruyama(t_end=t_end).sample(truth, (200, 4), generator=generator(0)).x
    assert (x - 0.3).abs().max() < 1e-3


def test_discretisations_are_those_of_the_literature():
    # VP in small steps: Song et al. 2021, eqs. 4 and 46 with beta_i = beta(t_i) / N.
    sde, n = VPSDE(), 100_000
    here, there = point_at(sde, 0.5), point_at(sde, 0.5 - 1 / n)
    beta = float(sde.beta(torch.tensor(0.5).double())) / n
    x, score = prior_draw(sde, 3, 5), prior_draw(sde, 3, 5, seed=1)
    got = reverse_diffusion_step(x, score, here, there)
    want = (2 - math.sqrt(1 - beta)) * x + beta * score
    torch.testing.assert_close(got.mean - x, want - x, rtol=1e-4, atol=1e-9)
    assert got.std == pytest.approx(math.sqrt(beta), rel=1e-4)
    got = ancestral_step(sde, x, score, here, there)
    torch.testing.assert_close(
        got.mean - x, (x + beta * score) / math.sqrt(1 - beta) - x, rtol=1e-4, atol=1e-9
    )
    assert got.std == pytest.approx(math.sqrt(beta), rel=1e-4)
    # VE in steps of any length: eqs. 46 and 47.
    ve = VESDE()
    here, there = point_at(ve, 0.5), point_at(ve, 0.4)
    gap = here.sigma**2 - there.sigma**2
    for step in (
        reverse_diffusion_step(x, score, here, there),
        ancestral_step(ve, x, score, here, there),
    ):
        torch.testing.assert_close(step.mean, x + gap * score)
    assert reverse_diffusion_step(x, score, here, there).std == pytest.approx(math.sqrt(gap))
    assert ancestral_step(ve, x, score, here, there).std == pytest.approx(
        math.sqrt(gap) * there.sigma / here.sigma
    )


@pytest.mark.parametrize("name", ["ve", "rve"])
def test_ancestral_is_the_first_order_solver_of_the_reverse_sde(name):
    truth = gaussian(SDES[name], 8)
    kwargs = {"seeds": range(5), "dtype": torch.float64}
    a = Ancestral(steps=30, grid="log_snr").sample(truth, (5, 8), **kwargs).x
    first = DPMSolver(30, 1, True, t_end=truth.sde.t_end, grid="log_snr")
    b = first.sample(truth, (5, 8), **kwargs).x
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_corrector_works_at_every_time_the_end_included():
    # RVE, uniform in 1/t, last step to sigma = 0: corrector, then predictor, N times.
    times: list[float] = []
    truth = gaussian(SDES["rve"], 4)

    def score(x, t):
        times.append(float(t[0]))
        return truth.score(x, t)

    PredictorCorrector(steps=5, corrector_steps=2).sample(truth, (2, 4), score_fn=score)
    inverse = [1 / t for t in times]
    want = [v for v in torch.linspace(1.0, 1e5, 5).tolist() for _ in range(3)]
    assert inverse == pytest.approx(want, rel=1e-5)
