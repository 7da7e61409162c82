"""What the loop promises whatever the method."""

import pytest
import torch

from softtrunc.flow.adams import ADAMS
from softtrunc.flow.runge_kutta import BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54
from softtrunc.flow.steps import Slope, integrate

DOUBLE = {"dtype": torch.float64}
ENDS = torch.tensor(0.0, **DOUBLE), torch.tensor(2.0, **DOUBLE)


def solve(method, rounding: float):
    """64 examples of a field as rough in u as a network, each slope off by a random share."""
    generator = torch.Generator().manual_seed(1)
    phase = 2.0 * torch.pi * torch.rand(64, 3, generator=generator, **DOUBLE)

    def field(z, u, rows):
        u = u[:, None]
        ripple = torch.sin(40.0 * u + phase[rows]) + 0.5 * torch.sin(97.0 * u + 2.0 * phase[rows])
        slope = torch.cos(z) + 0.3 * ripple
        slope = slope * (1.0 + rounding * torch.randn(slope.shape, generator=generator, **DOUBLE))
        return Slope(slope, slope.sum(1))

    z = torch.zeros(64, 3, **DOUBLE)
    return integrate(field, z, *ENDS, method=method, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", [ADAMS, BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54])
def test_rounding_moves_no_step(method):
    """A network rounds differently in another batch; that must not become the solver's error."""
    exact, rounded = solve(method, 0.0), solve(method, 3e-6)
    gap = (exact.log_volume - rounded.log_volume).abs()
    # Lengths that follow the error estimate to its last digit leave 20 and more, up to 0.01.
    assert (gap > 3e-5).sum() <= 2
    assert (exact.nfe != rounded.nfe).sum() <= 2


def test_steps_that_are_not_enough_are_named():
    def field(z, u, rows):
        return Slope(torch.cos(9.0 * u)[:, None].expand_as(z), 0.0 * u)

    z, tolerance = torch.zeros(1, 2, **DOUBLE), {"rtol": 1e-9, "atol": 1e-9}
    with pytest.raises(FloatingPointError, match=r"2 steps were not enough \(u = 0"):
        integrate(field, z, *ENDS, method=ADAMS, max_steps=2, **tolerance)
