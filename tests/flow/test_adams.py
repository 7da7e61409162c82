import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from softtrunc.flow.adams import ADAMS, integration_weights
from softtrunc.flow.runge_kutta import DORMAND_PRINCE_54
from softtrunc.flow.steps import Slope, StepUnderflowError, integrate

DOUBLE = {"dtype": torch.float64}


def turning(z, u, rows):
    """A pendulum that is driven harder and harder, and a logarithm fed by its angle."""
    slope = torch.stack([z[:, 1] * (1.0 + u), 0.3 * u.exp() - torch.sin(2.0 * z[:, 0])], 1)
    return Slope(slope, torch.cos(z[:, 0] * u))


ENDS = torch.tensor(0.0, **DOUBLE), torch.tensor(2.0, **DOUBLE)
integrate_adams = partial(integrate, method=ADAMS)
START = torch.tensor([[1.0, 0.2]], **DOUBLE)


@pytest.fixture(scope="module")
def truth():
    return integrate(turning, START, *ENDS, method=DORMAND_PRINCE_54, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_weights_integrate_polynomials_of_their_degree(k):
    nodes = torch.tensor([[0.0, -0.7, -1.9, 1.0], [0.0, -2.0, -2.3, 1.0]], **DOUBLE)[:, :k]
    weights = integration_weights(nodes)
    for power in range(k):
        found = (weights * nodes**power).sum(1)
        torch.testing.assert_close(found, torch.full((2,), 1.0 / (power + 1), **DOUBLE))


def test_weights_are_those_of_adams():
    equal = integration_weights(torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, -2.0]], **DOUBLE))
    torch.testing.assert_close(equal[0], torch.tensor([23.0, -16.0, 5.0], **DOUBLE) / 12.0)
    moulton = integration_weights(torch.tensor([[0.0, -1.0, -2.0, 1.0]], **DOUBLE))
    torch.testing.assert_close(moulton[0], torch.tensor([19.0, -5.0, 1.0, 9.0], **DOUBLE) / 24.0)


def test_convergence_order(truth):
    """Work against precision: the error falls with the fourth power of the evaluations."""
    work, errors = [], []
    for tol in (1e-5, 1e-7, 1e-9):
        found = integrate_adams(turning, START, *ENDS, rtol=tol, atol=tol)
        gap = (found.state - truth.state).norm() + (found.log_volume - truth.log_volume).abs()
        work.append(found.nfe.item())
        errors.append(float(gap))
    orders = [
        math.log(a / b) / math.log(m / n)
        for (a, b), (n, m) in zip(pairwise(errors), pairwise(work), strict=True)
    ]
    assert orders[-1] == pytest.approx(4.0, abs=0.4), orders


def test_error_is_a_fraction_of_the_tolerance(truth):
    costs = []
    for tol in (1e-3, 1e-5, 1e-7):
        found = integrate_adams(turning, START, *ENDS, rtol=tol, atol=tol)
        assert float((found.state - truth.state).abs().max()) < 10.0 * tol
        assert float((found.log_volume - truth.log_volume).abs().max()) < 10.0 * tol
        costs.append(found.nfe.item())
    # Steps of order 3 in their estimate: a hundredth of the tolerance costs about 10^(2/4).
    assert 2.0 < costs[2] / costs[1] < 4.5


def test_one_evaluation_a_step_and_a_known_slope_is_used(truth):
    calls = []

    def counting(z, u, rows):
        calls.append(len(z))
        return turning(z, u, rows)

    first = turning(START, torch.zeros(1, **DOUBLE), None)
    found = integrate_adams(counting, START, *ENDS, rtol=1e-4, atol=1e-4, slope=first)
    assert found.nfe.item() == len(calls) + 1


def test_each_example_walks_at_its_own_pace():
    rates = torch.tensor([0.5, 12.0, 3.0], **DOUBLE)

    def field(z, u, rows):
        rate = rates[rows]
        return Slope(rate[:, None] * torch.cos(rate * u)[:, None].expand_as(z), rate)

    z = torch.zeros(3, 2, **DOUBLE)
    found = integrate_adams(field, z, *ENDS, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.state[:, 0], torch.sin(2.0 * rates), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found.log_volume, 2.0 * rates)
    assert found.nfe[0] < found.nfe[2] < found.nfe[1]
    for i in range(3):
        alone = integrate_adams(
            lambda z, u, rows, i=i: field(z, u, rows + i), z[:1], *ENDS, rtol=1e-5, atol=1e-5
        )
        assert alone.nfe[0] == found.nfe[i]
        torch.testing.assert_close(alone.state[0], found.state[i], rtol=0.0, atol=0.0)


def test_logarithm_alone_can_reject_a_step():
    """A state that stands still says nothing of a spike in the divergence."""

    def spike(z, u, rows):
        return Slope(torch.zeros_like(z), torch.exp(-30.0 * (u - 1.0).square()))

    found = integrate_adams(spike, START, *ENDS, rtol=1e-7, atol=1e-7, first_step=0.3)
    assert found.log_volume.item() == pytest.approx(math.sqrt(math.pi / 30.0), abs=1e-6)


def test_trouble_is_named():
    def wall(z, u, rows):
        return Slope(torch.zeros_like(z), 1.0 / (u - 1.3).abs() ** 1.5)

    def hole(z, u, rows):
        return Slope(torch.where(u > 1.0, torch.nan, 0.0)[:, None].expand_as(z), 0.0 * u)

    with pytest.raises(StepUnderflowError, match=r"step underflow at u = 1\.3 .*example 0.*rtol"):
        integrate_adams(wall, START, *ENDS, rtol=1e-6, atol=1e-6)
    with pytest.raises(StepUnderflowError, match=r"u = 1 .*not finite"):
        integrate_adams(hole, START, *ENDS, rtol=1e-6, atol=1e-6)
