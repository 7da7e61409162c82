import math

import pytest
import torch
from exact import Gaussian, Spoiled

from softtrunc import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE
from softtrunc.density import nelbo
from softtrunc.evaluation import ByTime, by_time
from softtrunc.evaluation.regenerate import regenerate
from softtrunc.samplers import DPMSolver, ProbabilityFlow

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
DIM, STD, BINS = 6, 0.5, 10


def gaussian(sde: SDE) -> Gaussian:
    mean, std = torch.zeros(DIM, dtype=torch.float64), torch.full((DIM,), STD, dtype=torch.float64)
    return Gaussian(sde, mean, std)


def data(sde: SDE, n: int = 400, seed: int = 0) -> torch.Tensor:
    return gaussian(sde).sample(n, generator=torch.Generator().manual_seed(seed))


def exact_bits(sde: SDE, t: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """The integral in each bin, for a score that is `factor` times the exact one.

    With `v = alpha^2 s^2 + sigma^2` the predicted noise is `factor sigma x_t / v`, and in one
    dimension `sigma^2 (||score - grad||^2 - ||grad||^2)` is `(factor^2 - 2 factor) sigma^2 / v` on
    average.
    """
    log_snr = sde.log_snr(t)
    found = []
    for i in range(len(t) - 1):
        # Simpson's rule is as good as exact for so smooth a function.
        points = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
        at = log_snr[i] + (log_snr[i + 1] - log_snr[i]) * points
        value = (factor**2 - 2.0 * factor) / (1.0 + STD**2 * at.exp())
        weights = torch.ones(401, dtype=torch.float64)
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        integral = (log_snr[i] - log_snr[i + 1]) * (value * weights).sum() / 1200.0
        drift = (sde.marginal(t[i + 1]).alpha / sde.marginal(t[i]).alpha).log()
        found.append((0.5 * integral - drift) / math.log(2.0))
    return torch.stack(found)


def exact_error(sde: SDE, t: torch.Tensor) -> torch.Tensor:
    """`alpha^2 s^2 / v = 1 - 1 / (1 + s^2 e^l)` on average over each bin in log-SNR."""
    log_snr = sde.log_snr(t)
    antiderivative = (1.0 + STD**2 * log_snr.exp()).log()
    return antiderivative.diff() / log_snr.diff()


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_every_bin_of_a_gaussian_is_right(sde):
    found = by_time(gaussian(sde), data(sde), bins=BINS, draws=4, seeds=range(400))
    assert found.t[0] == 1e-5
    assert found.t[-1] == sde.t_max
    bits, error = exact_bits(sde, found.t), exact_error(sde, found.t)
    for i, part in enumerate(found.bins):
        assert abs(part.bits_per_dim - bits[i]) < 3.0 * part.standard_error + 1e-9
        assert abs(part.error - error[i]) < 3.0 * part.error_standard_error + 1e-9
    assert found.bins[-1].bits_below == pytest.approx(float(found.bits.mean(0).sum()))


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("reconstruction", ["gaussian", "discrete"])
def test_the_bins_add_up_to_the_bound_of_the_same_draws(sde, reconstruction):
    x = data(sde, 20)
    if reconstruction == "discrete":
        x = (torch.randint(16, x.shape, generator=torch.Generator().manual_seed(0)) + 0.5) / 8 - 1.0
        x = x.double()
    model = Spoiled(gaussian(sde), -2.0, 3.0)
    found = by_time(
        model, x, bins=7, draws=3, reconstruction=reconstruction, levels=16, seeds=range(20)
    )
    bound = nelbo(model, x, draws=21, reconstruction=reconstruction, levels=16, seeds=range(20))
    torch.testing.assert_close(found.bits_per_dim, bound.bits_per_dim(16), rtol=1e-10, atol=1e-10)
    assert found.total.mean == pytest.approx(float(bound.bits_per_dim(16).mean()), rel=1e-10)


def test_equal_models_differ_by_nothing():
    x = data(VPSDE(), 30)
    first, second = (by_time(gaussian(VPSDE()), x, seeds=range(30)) for _ in range(2))
    difference = first.minus(second)
    assert (difference.bits == 0.0).all()
    assert (difference.error == 0.0).all()
    assert difference.total == (0.0, 0.0, 30)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("above", [True, False])
def test_a_spoiled_score_shows_in_its_bins_alone(sde, above):
    model, x = gaussian(sde), data(sde)
    exact = by_time(model, x, bins=BINS, seeds=range(400))
    middle = float(exact.log_snr[4])
    ends = (-math.inf, middle) if above else (middle, math.inf)
    spoiled = by_time(Spoiled(model, *ends), x, bins=BINS, seeds=range(400))
    difference = spoiled.minus(exact)
    inside = torch.arange(BINS) >= 4 if above else torch.arange(BINS) < 4
    assert (difference.bits[:, ~inside] == 0.0).all()
    assert (difference.error[:, ~inside] == 0.0).all()
    truth = exact_bits(sde, exact.t, 1.1) - exact_bits(sde, exact.t)
    for part, expected, touched in zip(difference.bins, truth.tolist(), inside, strict=True):
        if touched:
            assert abs(part.bits_per_dim - expected) < 3.5 * part.standard_error + 1e-9


def test_pairing_pays():
    """The difference is known far better than the two bounds are."""
    x = data(VPSDE(), 100)
    exact = by_time(gaussian(VPSDE()), x, seeds=range(100))
    spoiled = by_time(Spoiled(gaussian(VPSDE()), -2.0, 2.0), x, seeds=range(100))
    assert 5.0 * spoiled.minus(exact).total.standard_error < exact.total.standard_error


def test_batches_join_to_the_whole():
    x = data(VPSDE(), 9)
    whole = by_time(gaussian(VPSDE()), x, seeds=range(9))
    parts = [by_time(gaussian(VPSDE()), x[i : i + 4], seeds=range(9)[i : i + 4]) for i in (0, 4, 8)]
    joined = ByTime.join(parts)
    torch.testing.assert_close(joined.bits, whole.bits, rtol=1e-12, atol=1e-12)
    assert joined.total.mean == pytest.approx(whole.total.mean, rel=1e-12)


def test_refusals():
    model, x = gaussian(VPSDE()), data(VPSDE(), 4)
    with pytest.raises(ValueError, match="bins=0"):
        by_time(model, x, bins=0)
    found = by_time(model, x, bins=2, seeds=range(4))
    with pytest.raises(ValueError, match="other images"):
        found.minus(by_time(model, data(VPSDE(), 4, seed=1), bins=2, seeds=range(4)))
    with pytest.raises(ValueError, match="bins"):
        found.minus(by_time(model, x, bins=3, seeds=range(4)))
    with pytest.raises(ValueError, match="at least one batch"):
        ByTime.join([])


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_images_come_back_from_small_times_and_not_from_large_ones(sde):
    model, x = gaussian(sde), data(sde, 200)
    t = sde.time_of_log_snr(torch.tensor([8.0, 1.0, -4.0], dtype=torch.float64)).tolist()
    back = regenerate(
        model, x, t, sampler=DPMSolver(steps=40), generator=torch.Generator().manual_seed(7)
    )
    assert back.x.shape == (3, 200, DIM)
    error, correlation = back.squared_error.mean(1), back.correlation.mean(1)
    assert error[0] < 0.01 * STD**2
    assert (error.diff() > 0.0).all()
    assert correlation[0] > 0.99
    assert (correlation.diff() < 0.0).all()
    # The exact flow carries x_t to x_t s / sqrt(v): a linear map whose error is known.
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    gain = STD / ((alpha * STD).square() + sigma.square()).sqrt()
    truth = ((gain * alpha - 1.0) * STD).square() + (gain * sigma).square()
    torch.testing.assert_close(error, truth, rtol=0.15, atol=2e-4)


def test_both_kinds_of_sampler_regenerate_alike():
    sde = VPSDE()
    x = data(sde, 20)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    ways = (DPMSolver(steps=100, t_end=1e-3), ProbabilityFlow(rtol=1e-7, atol=1e-7, t_end=1e-3))
    first, second = (regenerate(gaussian(sde), x, [0.3], sampler=w, noise=noise).x for w in ways)
    torch.testing.assert_close(first, second, rtol=0.0, atol=2e-3)
