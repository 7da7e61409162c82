"""Whatever a network predicts, the score is the same: on a Gaussian whose score is known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from exact import Gaussian
from torch import Tensor, nn

from softtrunc import VESDE, VPSDE, ReciprocalVESDE, ScoreModel, SubVPSDE, TabulatedVPSDE
from softtrunc.score import noise_label
from softtrunc.sde import Prediction, expand_to

SDES = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    ReciprocalVESDE(),
    TabulatedVPSDE.from_schedule("squaredcos_cap_v2"),
]
PREDICTIONS = get_args(Prediction)
TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.6, 1.0], dtype=torch.float64)
SIGMA_DATA = 0.3


def data(sde) -> Gaussian:
    mean = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    return Gaussian(sde, mean, torch.tensor([0.2, 0.5, 0.01], dtype=torch.float64))


class Exact(nn.Module):
    """The network that is right: it recovers x from its input and answers as its prediction asks.

    The formulas are those of the papers, with x_0 = E[x_0 | x] and z = E[z | x].
    """

    def __init__(self, truth: Gaussian, prediction: Prediction, value_range) -> None:
        super().__init__()
        self.truth, self.prediction, self.value_range = truth, prediction, value_range
        self.t = TIMES
        self.labels = None

    def forward(self, c: Tensor, label: Tensor) -> Tensor:
        self.labels = label
        low, high = self.value_range
        alpha, sigma = (expand_to(v, c) for v in self.truth.sde.marginal(self.t))
        half, centre = (high - low) / 2, (high + low) / 2
        s = sigma / alpha / half  # of the state y = x / alpha, in units of [-1, 1]
        c_in = 1 / (s**2 + SIGMA_DATA**2).sqrt()
        x = half * c + centre
        if self.prediction == "edm":
            x = alpha * (centre + half * c / c_in)
        z = -sigma * self.truth.score(x, self.t)
        x0 = (x - sigma * z) / alpha
        if self.prediction == "edm":
            y, denoised = c / c_in, (x0 - centre) / half
            c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
            return (denoised - c_skip * y) / (s * SIGMA_DATA * c_in)
        return {
            "noise": z,
            "scaled_score": -z,
            "velocity": alpha * z - sigma * x0,
            "sample": x0,
        }[self.prediction]


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_every_prediction_gives_the_exact_score_at_both_ends(sde, prediction, value_range):
    truth = data(sde)
    network = Exact(truth, prediction, value_range)
    model = ScoreModel(
        network, sde, prediction=prediction, value_range=value_range, sigma_data=SIGMA_DATA
    )
    x0 = truth.sample(len(TIMES), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=x0.dtype)
    x = sde.perturb(x0, TIMES, noise)
    exact, sigma = truth.score(x, TIMES), sde.marginal(TIMES).sigma[:, None]
    torch.testing.assert_close(model.noise(x, TIMES), -sigma * exact, rtol=1e-6, atol=1e-9)
    # Of a score, 1 / sigma is what one unit of noise is.
    off = (model.score(x, TIMES) - exact).abs()
    assert (off <= 1e-6 * exact.abs() + 1e-9 / sigma).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_single_precision_costs_no_more_than_rounding_the_network_does(sde, prediction):
    """In float32 the noise is off by a few roundings of the output, whatever divides it."""
    truth = data(sde)

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Exact(truth, prediction, (-1.0, 1.0))
            self.exact = None

        def forward(self, c, label):
            # What the network is asked is where float32 has put it, and its answer is rounded.
            return (
                self.inner(c.double(), label).float() if self.exact is None else self.exact.float()
            )

    model = ScoreModel(
        Rounded(), sde, prediction=prediction, value_range=(-1.0, 1.0), sigma_data=SIGMA_DATA
    )
    x0 = truth.sample(len(TIMES), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=x0.dtype)
    x = sde.perturb(x0, TIMES, noise).float()
    wide = ScoreModel(
        Exact(truth, prediction, (-1.0, 1.0)),
        sde,
        prediction=prediction,
        value_range=(-1.0, 1.0),
        sigma_data=SIGMA_DATA,
    )
    model.network.exact = wide(x.double(), TIMES)
    off = (model.noise(x, TIMES).double() - wide.noise(x.double(), TIMES)).abs()
    sigma = sde.marginal(TIMES).sigma[:, None]
    # x_0 is rounded to float32 before it is divided by sigma: no arithmetic gets that back.
    floor = 6e-8 * wide(x.double(), TIMES).abs() / sigma if prediction == "sample" else 0.0
    assert (off <= 1e-6 * (1 + noise.abs()) + floor).all()


def test_edm_labels_are_those_of_the_table_whatever_the_range():
    t = torch.tensor([1e-3, 0.5, 1.0], dtype=torch.float64)
    for sde, low, high in ((VESDE(0.002, 80.0), -1.0, 1.0), (VESDE(0.001, 40.0), 0.0, 1.0)):
        network = Exact(data(sde), "edm", (low, high))
        network.t = t
        model = ScoreModel(network, sde, prediction="edm", value_range=(low, high))
        assert model.conditioning == "edm"
        model.score(torch.zeros(3, 3, dtype=torch.float64), t)
        sigma = 0.002 * (80 / 0.002) ** t
        torch.testing.assert_close(network.labels, sigma.log() / 4)
    ratio = noise_label(VPSDE(), "edm", t)
    alpha, sigma = VPSDE().marginal(t)
    torch.testing.assert_close(ratio, (sigma / alpha).log() / 4)


def test_a_network_may_answer_as_those_of_diffusers_do():
    class Named(nn.Module):
        def forward(self, x, label):
            return SimpleNamespace(sample=x + label[:, None])

    x, t = torch.zeros(2, 3), torch.tensor([0.1, 0.2])
    model = ScoreModel(Named(), VPSDE())
    torch.testing.assert_close(model.noise(x, t), (999 * t)[:, None].expand(2, 3))


@pytest.mark.usefixtures("unchecked")
def test_an_output_of_another_shape_is_refused_in_one_line():
    class Twice(nn.Module):
        def forward(self, x, label):
            return torch.cat([x, x], dim=1)

    class Fewer(nn.Module):
        def forward(self, x, label):
            return x[:, :, 1:]

    x, t = torch.zeros(2, 3, 4, 4), torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"returned \(2, 6, 4, 4\) .* \(a learned variance\?"):
        ScoreModel(Twice(), VPSDE()).score(x, t)
    with pytest.raises(ValueError, match=r"returned \(2, 3, 3, 4\) for an input of .*: need"):
        ScoreModel(Fewer(), VPSDE())(x, t)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.inf, math.nan])
def test_sigma_data_is_a_standard_deviation(sigma_data):
    with pytest.raises(ValueError, match=r"sigma_data=.*: need a number > 0"):
        ScoreModel(nn.Identity(), VESDE(), prediction="edm", sigma_data=sigma_data)


def test_steps_and_reversed_time():
    sde = TabulatedVPSDE.from_schedule(steps=500)
    steps = torch.arange(500, dtype=torch.float64)
    torch.testing.assert_close(noise_label(sde, "timestep", (steps + 1) / 500), steps)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(noise_label(VESDE(), "reversed_time", t), 999 * (1 - t))
    with pytest.raises(ValueError, match=r"\"timestep\" needs a TabulatedVPSDE, not VPSDE"):
        ScoreModel(nn.Identity(), VPSDE(), conditioning="timestep")
