import math
from itertools import pairwise

import pytest
import torch

from softtrunc.flow.runge_kutta import BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54
from softtrunc.flow.steps import Slope, StepUnderflowError, integrate

PAIRS = [BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54]
DOUBLE = {"dtype": torch.float64}


def turning(z, u, rows):
    """A pendulum that is driven harder and harder, and a logarithm fed by its angle."""
    slope = torch.stack([z[:, 1] * (1.0 + u), 0.3 * u.exp() - torch.sin(2.0 * z[:, 0])], 1)
    return Slope(slope, torch.cos(z[:, 0] * u))


def solve(tol, tableau=DORMAND_PRINCE_54, stop=2.0, field=turning, n=1, **kwargs):
    z = torch.tensor([[1.0, 0.2]], **DOUBLE).expand(n, 2)
    ends = torch.tensor(0.0, **DOUBLE), torch.tensor(stop, **DOUBLE)
    return integrate(field, z, *ends, rtol=tol, atol=tol, method=tableau, **kwargs)


@pytest.mark.parametrize("tableau", PAIRS, ids=lambda p: f"order {p.order}")
def test_every_stage_sits_at_its_node(tableau):
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    assert sum(tableau.error) == pytest.approx(0.0, abs=1e-14)
    assert any(abs(e) > 1e-3 for e in tableau.error)


@pytest.mark.parametrize("tableau", PAIRS, ids=lambda p: f"order {p.order}")
def test_convergence_order(tableau):
    """One step of length h errs by h^(order + 1), its estimate by h^order."""
    steps = [0.1, 0.05, 0.025]
    errors, estimates = [], []
    for h in steps:
        # A tolerance that lets any step pass makes the one step of the interval that long.
        one = solve(1e9, tableau, stop=h, first_step=h)
        assert one.nfe.item() == 1 + len(tableau.nodes)
        truth = solve(1e-13, stop=h)
        errors.append(float((one.state - truth.state).norm()))
        z = torch.tensor([[1.0, 0.2]], **DOUBLE)
        slopes = [turning(z, torch.zeros(1, **DOUBLE), None)]
        for node, row in zip(tableau.nodes, tableau.stages, strict=True):
            point = z + h * sum(a * k.state for a, k in zip(row, slopes, strict=True))
            slopes.append(turning(point, torch.tensor([node * h], **DOUBLE), None))
        estimate = h * sum(e * k.state for e, k in zip(tableau.error, slopes, strict=True))
        estimates.append(float(estimate.norm()))
    order = [math.log2(a / b) for a, b in pairwise(errors)]
    assert order[-1] == pytest.approx(tableau.order + 1, abs=0.35)
    order = [math.log2(a / b) for a, b in pairwise(estimates)]
    assert order[-1] == pytest.approx(tableau.order, abs=0.35)


@pytest.mark.parametrize("tableau", PAIRS, ids=lambda p: f"order {p.order}")
def test_error_follows_the_tolerance(tableau):
    truth = solve(1e-12)
    for tol in (1e-4, 1e-6, 1e-8):
        found = solve(tol, tableau)
        assert float((found.state - truth.state).abs().max()) < 100.0 * tol
        assert float((found.log_volume - truth.log_volume).abs().max()) < 100.0 * tol


def test_logarithm_alone_can_reject_a_step():
    """A state that stands still says nothing of a spike in the divergence."""

    def spike(z, u, rows):
        return Slope(torch.zeros_like(z), torch.exp(-30.0 * (u - 1.0).square()))

    found = solve(1e-7, field=spike, first_step=0.3)
    assert found.log_volume.item() == pytest.approx(math.sqrt(math.pi / 30.0), abs=1e-6)
    assert found.nfe.item() > 60


def test_each_example_walks_at_its_own_pace():
    rates = torch.tensor([0.5, 40.0, 3.0], **DOUBLE)

    def field(z, u, rows):
        rate = rates[rows]
        return Slope(rate[:, None] * torch.cos(rate * u)[:, None].expand_as(z), rate)

    z = torch.zeros(3, 2, **DOUBLE)
    ends = torch.tensor(0.0, **DOUBLE), torch.tensor(2.0, **DOUBLE)
    found = integrate(field, z, *ends, method=DORMAND_PRINCE_54, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.state[:, 0], torch.sin(2.0 * rates), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(found.log_volume, 2.0 * rates)
    assert found.nfe[0] < found.nfe[2] < found.nfe[1]
    for i in range(3):
        alone = integrate(
            lambda z, u, rows, i=i: field(z, u, rows + i),
            z[:1],
            *ends,
            method=DORMAND_PRINCE_54,
            rtol=1e-7,
            atol=1e-7,
        )
        assert alone.nfe[0] == found.nfe[i]
        torch.testing.assert_close(alone.state[0], found.state[i], rtol=0.0, atol=0.0)


def test_underflow_names_the_place():
    def wall(z, u, rows):
        return Slope(torch.zeros_like(z), 1.0 / (u - 1.3).abs() ** 1.5)

    with pytest.raises(StepUnderflowError, match=r"step underflow at u = 1\.3 .*example 0.*rtol"):
        solve(1e-6, field=wall)


def test_a_field_that_is_not_finite_is_said_to_be():
    def hole(z, u, rows):
        return Slope(torch.where(u > 1.0, torch.nan, 0.0)[:, None].expand_as(z), 0.0 * u)

    with pytest.raises(StepUnderflowError, match=r"u = 1 .*not finite"):
        solve(1e-6, field=hole)
