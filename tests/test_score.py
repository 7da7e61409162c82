"""From network to score: labels, ranges and precision, with a network whose answer is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from exact import Gaussian
from torch import Tensor, nn

from softtrunc import (
    SDE,
    VESDE,
    VPSDE,
    ReciprocalVESDE,
    ScoreFunction,
    ScoreModel,
    SubVPSDE,
)
from softtrunc.score import Conditioning, Prediction, denoise, noise_label

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
TIMES = torch.tensor([1e-5, 1e-4, 0.003, 0.1, 0.5, 1.0], dtype=torch.float64)

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(sde: SDE) -> Gaussian:
    return Gaussian(
        sde,
        torch.tensor([0.2, -0.7, 0.5], dtype=torch.float64),
        torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64),
    )


def time_of_label(sde: SDE, conditioning: Conditioning, label: Tensor) -> Tensor:
    """The inverse of each label, worked out by hand."""
    if conditioning == "time":
        return label / 999
    if conditioning == "unbounded_time":
        # F = log((1 + c) e^B - 1), so that e^B = (1 + e^F) / (1 + c).
        low, high = ((1.001 * math.exp(float(b)) - 1) for b in bounds(sde))
        f = math.log(low) + label / 999 * (math.log(high) - math.log(low))
        b = torch.log((1 + f.exp()) / 1.001)
        slope = sde.beta_max - sde.beta_min
        return (torch.sqrt(sde.beta_min**2 + 2 * slope * b) - sde.beta_min) / slope
    if conditioning == "log_sigma":
        sigma = label.exp()
    else:
        sigma = torch.where(label > -4.59, label.exp(), -0.01 / (label + 3.6052) - 1e-4)
    return sde.time_of_log_snr(-2 * sigma.log())


def bounds(sde: SDE) -> tuple[Tensor, Tensor]:
    """B at 1e-5 and at 1."""
    return tuple(
        sde.beta_min * t + (sde.beta_max - sde.beta_min) * t**2 / 2
        for t in (torch.tensor(1e-5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    )


class ExactNetwork(nn.Module):
    """Answers as a perfectly trained network would: from the mapped input and the label alone."""

    def __init__(
        self,
        truth: Gaussian,
        conditioning: Conditioning,
        prediction: Prediction,
        value_range: tuple[float, float],
    ) -> None:
        super().__init__()
        self.truth, self.conditioning, self.prediction = truth, conditioning, prediction
        self.low, self.high = value_range

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        assert label.shape == (x.shape[0],)
        x = self.low + (x + 1) / 2 * (self.high - self.low)
        t = time_of_label(self.truth.sde, self.conditioning, label)
        scaled = self.truth.sde.marginal(t).sigma[:, None] * self.truth.score(x, t)
        return scaled if self.prediction == "scaled_score" else -scaled


class Recorder(nn.Module):
    """Keeps what it was called with and answers in half precision or whatever it is told."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.calls.append((x, label))
        return x if self.dtype is None else x.to(self.dtype)


class Affine(nn.Module):
    """One linear layer, the label unread."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.seen = (x.dtype, label.dtype)
        return self.layer(x)


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 7.0)], ids=str)
@pytest.mark.parametrize("prediction", ["noise", "scaled_score"])
@pytest.mark.parametrize(
    ("sde", "conditioning"),
    [
        (VPSDE(), "time"),
        (VPSDE(), "unbounded_time"),
        (SubVPSDE(), "unbounded_time"),
        (VESDE(), "time"),
        (VESDE(), "log_sigma"),
        (ReciprocalVESDE(), "log_sigma"),
        (ReciprocalVESDE(), "unbounded_sigma"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_perfect_network_becomes_the_true_score(sde, conditioning, prediction, value_range):
    truth = gaussian(sde)
    model = ScoreModel(
        ExactNetwork(truth, conditioning, prediction, value_range),
        sde,
        conditioning=conditioning,
        prediction=prediction,
        value_range=value_range,
    )
    x = sde.perturb(
        truth.sample(6, generator=seeded(0)),
        TIMES,
        torch.randn(6, 3, generator=seeded(1), dtype=torch.float64),
    )
    exact = truth.score(x, TIMES)
    alpha, sigma = (v[:, None] for v in sde.marginal(TIMES))
    # Near t = 1e-5 the sigma of a label is known to about 1e-11 only.
    torch.testing.assert_close(model.score(x, TIMES), exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.noise(x, TIMES), -sigma * exact, rtol=1e-8, atol=1e-8)
    # E[x_0 | x_t] of a Gaussian, by conditioning and not by way of the score.
    gain = alpha * truth.std**2 / ((alpha * truth.std) ** 2 + sigma**2)
    mean = truth.mean + gain * (x - alpha * truth.mean)
    torch.testing.assert_close(model.denoise(x, TIMES), mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(denoise(truth, x, TIMES), mean, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction", ["noise", "scaled_score"])
@every_sde
def test_score_noise_and_denoised_say_the_same(sde, prediction):
    torch.manual_seed(0)
    model = ScoreModel(Affine().double(), sde, prediction=prediction)
    x = torch.randn(6, 3, generator=seeded(1), dtype=torch.float64)
    alpha, sigma = (v[:, None] for v in sde.marginal(TIMES))
    noise = model.noise(x, TIMES)
    output = model(x, TIMES)
    assert torch.equal(noise, output if prediction == "noise" else -output)
    torch.testing.assert_close(model.score(x, TIMES), -noise / sigma)
    torch.testing.assert_close(model.denoise(x, TIMES), (x - sigma * noise) / alpha)
    torch.testing.assert_close(
        denoise(model, x, TIMES), model.denoise(x, TIMES), atol=1e-9, rtol=1e-9
    )


@every_sde
@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.3, 1.0])
def test_labels_are_the_formulas(sde, t):
    time = torch.tensor(t, dtype=torch.float64)
    assert float(noise_label(sde, "time", time)) == pytest.approx(999 * t, rel=1e-14)
    sigma = float(sde.marginal(time).sigma)
    assert float(noise_label(sde, "log_sigma", time)) == pytest.approx(math.log(sigma), rel=1e-12)
    tiny = math.log(sigma) if sigma > 0.01 else -0.01 / (sigma + 1e-4) - 3.6052
    assert float(noise_label(sde, "unbounded_sigma", time)) == pytest.approx(tiny, rel=1e-12)
    if isinstance(sde, VPSDE | SubVPSDE):

        def blend(u: float) -> float:
            b = sde.beta_min * u + (sde.beta_max - sde.beta_min) * u**2 / 2
            return math.log(1 - math.exp(-b) + 1e-3) + b

        label = 999 * (blend(t) - blend(1e-5)) / (blend(1.0) - blend(1e-5))
        own = float(noise_label(sde, "unbounded_time", time))
        assert own == pytest.approx(label, rel=1e-10, abs=1e-9)


def test_labels_at_the_ends():
    ends = torch.tensor([1e-5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        noise_label(VPSDE(), "unbounded_time", ends), torch.tensor([0.0, 999.0]).double()
    )
    torch.testing.assert_close(
        noise_label(ReciprocalVESDE(), "log_sigma", ends), torch.tensor([1e-3, 50.0]).double().log()
    )
    label = noise_label(ReciprocalVESDE(), "unbounded_sigma", ends)
    torch.testing.assert_close(label[0], torch.tensor(-0.01 / 0.0011 - 3.6052).double())


@pytest.mark.parametrize(
    ("sde", "conditioning"),
    [
        (VPSDE(), "time"),
        (VPSDE(), "unbounded_time"),
        (SubVPSDE(), "unbounded_time"),
        (VESDE(), "log_sigma"),
        (ReciprocalVESDE(), "log_sigma"),
        (ReciprocalVESDE(), "unbounded_sigma"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_labels_rise_with_the_noise(sde, conditioning):
    t = torch.logspace(-5, 0, 40_001, dtype=torch.float64)
    label = noise_label(sde, conditioning, t)
    falls = (label.diff() <= 0).nonzero().flatten()
    if conditioning != "unbounded_sigma":
        assert len(falls) == 0
        return
    # The published constants leave a step of 0.01 where the two branches meet, at sigma = 0.01.
    sigma = sde.marginal(t).sigma
    (i,) = falls.tolist()
    assert sigma[i] <= 0.01 < sigma[i + 1]
    gap = abs((-0.01 / 0.0101 - 3.6052) - math.log(0.01))
    assert abs(label.diff()[i]) < gap < 0.01


def test_unbounded_labels_are_finer_where_noise_is_small():
    t = torch.tensor([1e-5, 1e-4], dtype=torch.float64)
    plain, fine = (noise_label(VPSDE(), c, t).diff() for c in ("time", "unbounded_time"))
    assert fine > 5 * plain
    plain, fine = (
        noise_label(ReciprocalVESDE(), c, torch.tensor([1e-5, 2e-5])).diff()
        for c in ("log_sigma", "unbounded_sigma")
    )
    assert fine.abs() > 0.5 * plain.abs()


@every_sde
def test_labels_are_computed_in_wide_precision(sde):
    for conditioning in ("time", "log_sigma"):
        t = torch.tensor([1e-5, 0.3])
        label = noise_label(sde, conditioning, t)
        assert label.dtype == torch.float64
        torch.testing.assert_close(label, noise_label(sde, conditioning, t.double()))


@pytest.mark.parametrize(
    ("sde", "value_range", "mapped"),
    [
        (VPSDE(), None, [-1.0, 0.0, 1.0]),
        (VESDE(), None, [-3.0, -1.0, 1.0]),
        (ReciprocalVESDE(), None, [-3.0, -1.0, 1.0]),
        (VPSDE(), (0.0, 1.0), [-3.0, -1.0, 1.0]),
        (VESDE(), (-1.0, 3.0), [-1.0, -0.5, 0.0]),
        (VPSDE(), (-0.5, 0.5), [-2.0, 0.0, 2.0]),
    ],
)
def test_the_network_sees_the_range_from_minus_one_to_one(sde, value_range, mapped):
    network = Recorder()
    model = ScoreModel(network, sde, value_range=value_range)
    model.noise(torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor(0.5))
    torch.testing.assert_close(network.calls[0][0], torch.tensor([mapped]))


@pytest.mark.parametrize("event", [(), (2,), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_sde
def test_events_of_any_shape_and_times_of_either(sde, dtype, event):
    network = Recorder()
    model = ScoreModel(network, sde)
    x = torch.randn((4, *event), generator=seeded(0), dtype=dtype)
    for t in (torch.tensor(0.3), torch.full((4,), 0.3), torch.tensor(0.3, dtype=torch.float64)):
        for result in (model.score(x, t), model.noise(x, t), model.denoise(x, t)):
            assert result.shape == x.shape
            assert result.dtype == dtype
        seen, label = network.calls[-1]
        assert label.shape == (4,)
        assert seen.dtype == label.dtype == dtype
    torch.testing.assert_close(
        model.score(x, torch.tensor(0.3)), model.score(x, torch.full((4,), 0.3))
    )


def test_times_of_a_batch_are_not_mixed_up():
    network = Recorder()
    model = ScoreModel(network, VPSDE())
    x = torch.ones(3, 2)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    score = model.score(x, t)
    for i in range(3):
        torch.testing.assert_close(score[i : i + 1], model.score(x[i : i + 1], t[i]))
    torch.testing.assert_close(network.calls[0][1], (999 * t).float())


def test_half_precision_inside_comes_back_in_full():
    torch.manual_seed(0)
    model = ScoreModel(Affine(), VPSDE())
    x = torch.randn(5, 3, generator=seeded(0))
    t = torch.full((5,), 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.network(x, t).dtype == torch.bfloat16
        score, noise, clean = model.score(x, t), model.noise(x, t), model.denoise(x, t)
    assert {score.dtype, noise.dtype, clean.dtype} == {torch.float32}
    sigma = VPSDE().marginal(t).sigma[:, None]
    torch.testing.assert_close(score, -noise / sigma, rtol=1e-6, atol=0)
    assert ScoreModel(Recorder(torch.bfloat16), VPSDE()).score(x, t).dtype == torch.float32


def test_a_network_gets_its_own_precision():
    model = ScoreModel(Affine(), VPSDE())
    x = torch.randn(2, 3, generator=seeded(0), dtype=torch.float64)
    assert model.score(x, torch.tensor(0.5)).dtype == torch.float64
    assert model.network.seen == (torch.float32, torch.float32)


def test_a_score_model_is_a_module_and_a_score():
    model = ScoreModel(Affine(), VESDE())
    assert isinstance(model, ScoreFunction)
    assert isinstance(gaussian(VPSDE()), ScoreFunction)
    assert not isinstance(Affine(), ScoreFunction)
    assert model.sde == VESDE()
    assert (model.conditioning, model.prediction) == ("log_sigma", "scaled_score")
    assert model.value_range == (0.0, 1.0)
    plain = ScoreModel(Affine(), SubVPSDE())
    assert (plain.conditioning, plain.prediction) == ("time", "noise")
    assert plain.value_range == (-1.0, 1.0)
    assert set(model.state_dict()) == {"network.layer.weight", "network.layer.bias"}
    x, t = torch.randn(2, 3, generator=seeded(0)), torch.tensor(0.5)
    assert torch.equal(copy.deepcopy(model).score(x, t), model.score(x, t))
    model.score(x, t).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sde", "options", "said"),
    [
        (
            VPSDE(),
            {"conditioning": "tim"},
            r"conditioning 'tim' is unknown: write one of time, unb.*, log_sigma, unbounded_sigma",
        ),
        (VESDE(), {"conditioning": "unbounded_time"}, r"needs a VP or sub-VP SDE, not VESDE"),
        (ReciprocalVESDE(), {"conditioning": "unbounded_time"}, r"not ReciprocalVESDE"),
        (VPSDE(), {"prediction": "score"}, r"prediction 'score' is unknown: .*noise, scaled_score"),
        (VPSDE(), {"value_range": (1.0, -1.0)}, r"value_range \(1\.0, -1\.0\): need finite low"),
        (VPSDE(), {"value_range": (0.0, math.inf)}, r"value_range \(0\.0, inf\)"),
        (VPSDE(), {"value_range": (math.nan, 1.0)}, r"value_range \(nan, 1\.0\)"),
    ],
)
def test_an_impossible_model_is_refused_in_one_line(sde, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        ScoreModel(Affine(), sde, **options)
    assert "\n" not in str(caught.value)
