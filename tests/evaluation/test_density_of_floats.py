"""Data on no grid: their density in their own units, which is no bits/dim of images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import Gaussian
from torch import nn

from softtrunc import VESDE, VPSDE
from softtrunc.data import ImageDataset
from softtrunc.density import check_continuous, density_bits_per_dim
from softtrunc.evaluation.bits import BitsMeasurement
from softtrunc.evaluation.image_results import ImageResults
from softtrunc.evaluation.protocol import DensityProtocol

pytestmark = pytest.mark.usefixtures("unchecked")  # a model in closed form is no ScoreModel

MEAN, STD = 3.0, 0.5
SHAPE = (3, 2, 2)


class Exact(nn.Module):
    """The score of data N(mean, std^2) in their own units, as a model in its range sees them."""

    def __init__(self, sde, data_range, value_range, mean=MEAN, std=STD):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.sde, self.value_range = sde, value_range
        scale = (value_range[1] - value_range[0]) / (data_range[1] - data_range[0])
        middle = value_range[0] + scale * (mean - data_range[0])
        self.law = Gaussian(sde, torch.full(SHAPE, middle), torch.full(SHAPE, scale * std))

    def score(self, x, t):
        return self.law.score(x, t)


def sample(unit: float = 1.0) -> np.ndarray:
    z = np.random.default_rng(0).standard_normal((64, *SHAPE))
    return (unit * (MEAN + STD * z)).astype(np.float32)


def measured(key, values, data_range, sde, value_range, **settings) -> tuple[float, np.ndarray]:
    unit = (data_range[1] - data_range[0]) / 6.0
    data = ImageDataset.of_floats(
        values, name="gaussian", split="test", source="here", value_range=data_range
    )
    protocol = DensityProtocol(
        **{"rtol": 1e-5, "atol": 1e-5, "divergence": "exact", "solver_check": 0} | settings,
        dequantized=False,
        data_range=data_range,
    )
    model = Exact(sde, data_range, value_range, unit * MEAN, unit * STD)
    measurement = BitsMeasurement(key, model, data, protocol)
    results = ImageResults(protocol.passes, len(data))
    measurement.fill(results)
    figure = measurement.figure(results)
    assert (figure.unit, figure.data.levels) == ("bits/dim of density", 0)
    assert figure.protocol["data_range"] == list(data_range)
    assert "levels" not in figure.protocol
    return figure.value, results.columns["bits_per_dim"].mean(0)


def truth(values: np.ndarray, unit: float = 1.0) -> np.ndarray:
    """Minus log2 of the density of each example, over its dimensions."""
    z = (values - unit * MEAN) / (unit * STD)
    nats = 0.5 * z**2 + math.log(unit * STD) + 0.5 * math.log(2.0 * math.pi)
    return nats.mean((1, 2, 3)) / math.log(2.0)


@pytest.mark.parametrize(
    ("sde", "value_range"), [(VPSDE(), (-1.0, 1.0)), (VESDE(), (0.0, 1.0))], ids=["vp", "ve"]
)
@pytest.mark.parametrize("unit", [1.0, 10.0, 0.01])
def test_the_density_of_a_gaussian_is_told_in_its_own_units(sde, value_range, unit):
    values = sample(unit)
    found, each = measured("nll_continuous", values, (0.0, 6.0 * unit), sde, value_range, eps=1e-5)
    expected = truth(values, unit)
    # VE begins with noise of a hundredth of the range, an eighth of the data's spread.
    bound = 2e-3 if isinstance(sde, VPSDE) else 0.02
    assert found == pytest.approx(expected.mean(), abs=bound)
    assert np.abs(each - expected).max() < 20 * bound


def test_the_bound_of_a_gaussian_is_its_density():
    values = sample()
    _, each = measured(
        "nelbo_continuous", values, (0.0, 6.0), VPSDE(), (-1.0, 1.0), nelbo_draws=256
    )
    gap = each - truth(values)
    error = gap.std() / len(gap) ** 0.5
    assert error < 0.03
    assert abs(gap.mean()) < 3.0 * error


def test_other_units_add_the_logarithm_of_their_size_alone():
    ours, _ = measured("nll_continuous", sample(), (0.0, 6.0), VPSDE(), (-1.0, 1.0))
    theirs, _ = measured("nll_continuous", sample(8.0), (0.0, 48.0), VPSDE(), (-1.0, 1.0))
    assert theirs - ours == pytest.approx(3.0, abs=1e-5)


def test_the_jacobian_is_that_of_the_map_between_the_ranges():
    nats = torch.tensor([0.0, 6.0 * math.log(2.0)])
    bits = density_bits_per_dim(nats, 3, (-2.0, 6.0), (0.0, 1.0))
    assert bits.tolist() == pytest.approx([3.0, 5.0])
    for wrong in ({"data_range": (1.0, 1.0)}, {"value_range": (0.0, math.inf)}, {"dim": 0}):
        with pytest.raises(ValueError, match="need"):
            density_bits_per_dim(nats, **{"dim": 3, "data_range": (0.0, 1.0)} | wrong)


def test_bits_of_floats_and_densities_of_images_are_refused():
    values = sample()
    card = {"name": "a", "split": "test", "source": "here"}
    floats = ImageDataset.of_floats(values, value_range=(0.0, 6.0), **card)
    images = ImageDataset.create(np.zeros((4, *SHAPE), np.uint8), **card)
    model = Exact(VPSDE(), (0.0, 6.0), (-1.0, 1.0))
    protocol = DensityProtocol(data_range=(0.0, 6.0))
    for key in ("nll_residual", "nelbo", "nll_lossless"):
        with pytest.raises(ValueError, match="on no grid: a density"):
            BitsMeasurement(key, model, floats, protocol)
    with pytest.raises(ValueError, match="levels: bits/dim, not a density"):
        BitsMeasurement("nll_continuous", model, images, DensityProtocol())
    with pytest.raises(ValueError, match="the card of a says"):
        BitsMeasurement("nll_continuous", model, floats, DensityProtocol(data_range=(0.0, 7.0)))


def test_floats_that_hold_levels_have_no_density():
    check_continuous(torch.randn(5000))
    check_continuous(torch.randn(20_000).bfloat16().float())  # a finer grid than that of a byte
    check_continuous(torch.zeros(100))
    levels = torch.randint(0, 256, (5000,)) / 255.0
    with pytest.raises(ValueError, match=r"only 256 different ones.*on a grid"):
        check_continuous(levels)
