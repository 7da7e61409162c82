"""Measured convergence orders: the slope of log error over log steps, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from exact import Gaussian
from sampler_cases import SDES, gaussian, prior_draw
from torch import Tensor

from softtrunc.noise import Noise
from softtrunc.samplers import Ancestral, DPMSolver, EulerMaruyama, Heun, PredictorCorrector
from softtrunc.samplers.base import Call, FixedStepSampler
from softtrunc.samplers.dpm_solver import _moments
from softtrunc.samplers.grids import schedule
from softtrunc.score import tweedie
from softtrunc.sde import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE

# A middle time: at the very end the error of a symmetric problem may cancel to a higher order.
STOP = {"vp": 0.2, "sub_vp": 0.2, "ve": 0.5, "rve": 2e-5}


class Impulses(Noise):
    """Noise of 1 in row k of draw k and 0 elsewhere; with None 0 everywhere.

    On a Gaussian every sampler here is linear in its noise. The rows give the weight of each draw
    in the result, hence the variance of the result, without any sampling error.
    """

    def __init__(self, first: int | None = 0) -> None:
        super().__init__(0, None, None)
        self.row = first

    def draw(self, shape, device, dtype) -> Tensor:
        z = torch.zeros(*shape, device=device, dtype=dtype)
        if self.row is not None:
            z[self.row] = 1.0
            self.row += 1
        return z


def solve(sampler: FixedStepSampler, truth: Gaussian, x: Tensor, noise: Noise) -> Tensor:
    """`sample` from `x` with noise of our own."""
    return sampler._solve(Call(truth, len(x), noise), x)


def variance_error(sampler: FixedStepSampler, sde: SDE, t_end: float) -> float:
    """Largest relative error of the sampler's variance on a Gaussian, in 16 dimensions."""
    truth = gaussian(sde, 16)
    # One row for each draw, one for the start, one for no input at all.
    x = torch.zeros(sampler.steps + 2, 16, dtype=torch.float64)
    x[-2] = 1.0
    y = solve(sampler, truth, x, Impulses())
    weight = (y[:-1] - y[-1]).square()
    start, end = (
        truth.moments(torch.tensor(t, dtype=torch.float64), x)[1] for t in (sde.t_max, t_end)
    )
    variance = weight[:-1].sum(0) + weight[-1] * start
    return float((variance / end - 1.0).abs().max())


def slope(steps: list[int], errors: list[float]) -> float:
    a = torch.tensor([[math.log(n), 1.0] for n in steps], dtype=torch.float64)
    b = torch.tensor([[-math.log(e)] for e in errors], dtype=torch.float64)
    return float(torch.linalg.lstsq(a, b).solution[0])


def flow_errors(make, sde: SDE, t_end: float, steps: list[int]) -> list[float]:
    truth = gaussian(sde, 16)
    x = prior_draw(sde, 20, 16)
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_max, t_end))
    exact = truth.flow_map(x, start, end)
    return [
        float((make(n).sample(truth, x.shape, x_init=x, dtype=torch.float64).x - exact).abs().max())
        for n in steps
    ]


def conditional_mean(truth: Gaussian, x: Tensor, t_end: float) -> Tensor:
    """E[x_s | x_T] of the exact process: where the reverse SDE goes on average."""
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (truth.sde.t_max, t_end))
    scale = truth.sde.marginal(start).alpha / truth.sde.marginal(end).alpha
    mean_start, var_start = truth.moments(start, x)
    mean_end, var_end = truth.moments(end, x)
    return mean_end + scale * var_end / var_start * (x - mean_start)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(
    ("order", "make"),
    [
        pytest.param(1, lambda n, t: DPMSolver(n, 1, t_end=t, denoise_final=False), id="ddim"),
        pytest.param(2, lambda n, t: DPMSolver(n, 2, t_end=t, denoise_final=False), id="2m"),
        pytest.param(3, lambda n, t: DPMSolver(n, 3, t_end=t, denoise_final=False), id="3m"),
        pytest.param(
            3, lambda n, t: DPMSolver(n, 3, t_end=t, denoise_final=False, grid="edm"), id="3m_edm"
        ),
        pytest.param(
            2, lambda n, t: DPMSolver(n, 2, t_end=t, denoise_final=False, grid="edm"), id="2m_edm"
        ),
        pytest.param(
            3,
            lambda n, t: DPMSolver(n, 3, t_end=t, denoise_final=False, grid="asinh"),
            id="3m_asinh",
        ),
        pytest.param(2, lambda n, t: Heun(n, t_end=t, denoise_final=False), id="heun"),
        pytest.param(
            2, lambda n, t: Heun(n, t_end=t, denoise_final=False, grid="log_snr"), id="heun_log_snr"
        ),
    ],
)
def test_order_of_deterministic_solvers(name, order, make):
    steps = [50, 100, 200, 400]
    errors = flow_errors(lambda n: make(n, STOP[name]), SDES[name], STOP[name], steps)
    assert slope(steps, errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("sde", "t_end"),
    [
        (VPSDE(0.1, 3.0), 0.1),
        (SubVPSDE(0.1, 3.0), 0.1),
        (VESDE(0.01, 1.0), 0.3),
        (ReciprocalVESDE(1e-3, 1.0), 2e-5),
    ],
    ids=SDES,
)
def test_order_three_from_the_first_step(sde, t_end):
    # With little noise at T the estimate moves at once, and a first step of order 1 would leave
    # order 2 behind.
    steps = [40, 80, 160, 320]
    errors = flow_errors(
        lambda n: DPMSolver(n, 3, t_end=t_end, denoise_final=False), sde, t_end, steps
    )
    assert slope(steps, errors) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Ancestral, id="ancestral"),
        pytest.param(lambda n, **o: DPMSolver(n, 1, True, **o), id="sde_1"),
        pytest.param(lambda n, **o: DPMSolver(n, 2, True, **o), id="sde_2"),
        pytest.param(lambda n, **o: DPMSolver(n, 3, True, **o), id="sde_3"),
    ],
)
def test_the_mean_is_exact_in_steps_of_any_length(name, make):
    # Along the reverse SDE D is a martingale: on average there is nothing to interpolate.
    sde, t_end = SDES[name], STOP[name]
    truth = gaussian(sde, 16)
    x = 20.0 * prior_draw(sde, 20, 16)
    exact = conditional_mean(truth, x, t_end)
    for n in (1, 3, 30):
        sampler = make(n, t_end=t_end, denoise_final=False)
        got = solve(sampler, truth, x, Impulses(None))
        assert (got - exact).abs().max() < 1e-9


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(
    ("order", "make"),
    [
        pytest.param(1, EulerMaruyama, id="euler_maruyama"),
        pytest.param(1, Ancestral, id="ancestral"),
        pytest.param(1, lambda n, **o: PredictorCorrector(n, corrector_steps=0, **o), id="reverse"),
        pytest.param(1, lambda n, **o: DPMSolver(n, 1, True, **o), id="sde_1"),
        pytest.param(2, lambda n, **o: DPMSolver(n, 2, True, **o), id="sde_2"),
        pytest.param(2, lambda n, **o: Heun(n, churn=5.0, **o), id="heun_churn"),
    ],
)
def test_weak_order_of_stochastic_solvers(name, order, make):
    steps = [50, 100, 200]
    t_end = STOP[name]
    errors = [
        variance_error(make(n, t_end=t_end, denoise_final=False), SDES[name], t_end) for n in steps
    ]
    assert slope(steps, errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", SDES)
def test_third_order_of_the_reverse_sde_is_second_with_a_smaller_error(name):
    # Noise makes D rough along a path: what interpolation can gain ends at order 2.
    t_end = STOP[name]
    second, third = (
        [
            variance_error(
                DPMSolver(n, k, True, t_end=t_end, denoise_final=False, grid="log_snr"),
                SDES[name],
                t_end,
            )
            for n in (50, 100)
        ]
        for k in (2, 3)
    )
    assert slope([50, 100], third) > 1.9
    assert all(b < 0.75 * a for a, b in zip(second, third, strict=True))


@pytest.mark.parametrize("stochastic", [False, True])
def test_second_order_is_algorithm_2_of_the_paper(stochastic):
    # Lu et al. 2022 (arXiv 2211.01095): D = (1 + 1/2r) D_i - 1/2r D_(i-1) in steps of any length.
    sde = VPSDE()
    truth = gaussian(sde, 4)
    x = prior_draw(sde, 3, 4)
    points, before = schedule(sde, "edm", 5, None), None
    solver = DPMSolver(5, 2, stochastic, denoise_final=False, grid="edm")
    got = solve(solver, truth, x, Impulses(None))
    for here, there in pairwise(points):
        score = truth.score(x, torch.tensor(here.t, dtype=torch.float64))
        d = tweedie(x, score, here.alpha, here.sigma)
        h = there.half_log_snr - here.half_log_snr
        mixed = d
        if before is not None:
            r = before[1] / h
            mixed = (1 + 0.5 / r) * d - 0.5 / r * before[0]
        rate = 2 if stochastic else 1
        shrink = there.sigma / here.sigma * (math.exp(-h) if stochastic else 1.0)
        x = shrink * x - there.alpha * math.expm1(-rate * h) * mixed
        before = (d, h)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_moments_of_the_exponential():
    # Against quadrature in float64, on both sides of the switch from series to recursion.
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for z in (1e-6, 1e-2, 0.3, 0.499, 0.501, 1.0, 5.0, 20.0):
        for k, got in enumerate(_moments(z, 3)):
            want = float((z * torch.exp(-z * (1 - u)) * u**k).mean())
            assert got == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_a_constant_estimate_is_integrated_exactly_by_all(sde):
    # Data at one point: D is constant, and every exponential solver is exact in a single step.
    point = Gaussian(sde, torch.full((3,), 0.7, dtype=torch.float64), torch.zeros(3).double())
    x = prior_draw(sde, 5, 3)
    times = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_max, sde.t_end))
    exact = point.flow_map(x, *times)
    solvers: list[FixedStepSampler] = [
        DPMSolver(steps=n, order=k, denoise_final=False) for n in (1, 4) for k in (1, 2, 3)
    ]
    for solver in solvers:
        got = solver.sample(point, x.shape, x_init=x, dtype=torch.float64).x
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)
