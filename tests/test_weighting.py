"""Weights, and the identity that ties Soft Truncation to one of them (Fubini)."""

from __future__ import annotations

import pytest
import torch
from exact import Gaussian
from integrals import expected_error, integrate, truncated_loss
from scipy import stats

from softtrunc import (
    VESDE,
    VPSDE,
    HardTruncation,
    ImportanceTimes,
    PowerPrior,
    PriorWeight,
    ReciprocalVESDE,
    SoftTruncationLoss,
    SubVPSDE,
    likelihood_weight,
    variance_weight,
)
from softtrunc.times import LogNormalTimes
from softtrunc.weighting import edm_weight

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
both_weights = pytest.mark.parametrize("make", [likelihood_weight, variance_weight])


@every_sde
def test_the_two_weights_are_g2_and_sigma2(sde):
    assert torch.equal(likelihood_weight(sde)(TIMES), sde.diffusion(TIMES) ** 2)
    assert torch.equal(variance_weight(sde)(TIMES), sde.marginal(TIMES).sigma ** 2)


@pytest.mark.parametrize("times", [LogNormalTimes, ImportanceTimes])
@every_sde
def test_the_edm_weight_makes_the_loss_edm_s(sde, times):
    """Against their formula: E over log-normal s of lambda(s) ||D - x_0||^2, by quadrature."""
    std = torch.tensor([0.4, 0.7], dtype=torch.float64)
    data = Gaussian(sde, torch.zeros(2, dtype=torch.float64), std)
    model = Gaussian(sde, torch.full((2,), 0.2, dtype=torch.float64), 0.8 * std)
    sigma_data, mean, width = 0.3, -0.4, 0.9
    low = torch.tensor(1e-5, dtype=torch.float64)

    def theirs(s):
        # t of the level, and the denoiser's error in the state x / alpha.
        t = sde.time_of_log_snr(-2 * s.log())
        squared = s.square() * expected_error(data, model, t)
        weight = (s.square() + sigma_data**2) / (s * sigma_data).square()
        normal = stats.norm(mean, width).pdf(s.log().numpy())
        return torch.from_numpy(normal) / s * weight * squared

    ends = (-0.5 * sde.log_snr(torch.stack([low, torch.ones_like(low)]))).exp()
    exact = integrate(theirs, ends[0], float(ends[1]), panels=60)
    weight = edm_weight(sde, sigma_data, mean, width)
    torch.testing.assert_close(truncated_loss(data, model, weight, low), exact, rtol=1e-6, atol=0)
    # And by the loss itself, within four standard errors.
    law = times(sde, mean, width) if times is LogNormalTimes else times(sde)
    loss = SoftTruncationLoss(sde, HardTruncation(1e-5), law, weight, "sum")
    x = data.sample(20_000, generator=torch.Generator().manual_seed(0))
    terms = loss(model, x, generator=torch.Generator().manual_seed(1))
    error = terms.loss.std() / len(x) ** 0.5
    assert (terms.loss.mean() - exact).abs() < 4 * error


@both_weights
def test_weights_keep_shape_and_precision(make):
    for weight in (make(VPSDE()), PriorWeight(make(VPSDE()), PowerPrior(1))):
        for t in (TIMES, TIMES.float(), TIMES[2], TIMES[2].float()):
            assert weight(t).shape == t.shape
            assert weight(t).dtype == t.dtype


@both_weights
@pytest.mark.parametrize("k", [0.0, 1.0, 2.0])
def test_prior_weight_is_the_weight_times_the_chance_to_be_looked_at(make, k):
    base, prior = make(VPSDE()), PowerPrior(k, 1e-5, 0.5)
    weight = PriorWeight(base, prior)
    torch.testing.assert_close(weight(TIMES), base(TIMES) * prior.cdf(TIMES))
    assert weight(TIMES)[0] == 0
    assert weight(TIMES)[-1] == base(TIMES)[-1]
    # By counting: of many truncations those below t let it be seen.
    tau = prior.sample(40_000, generator=torch.Generator().manual_seed(0))
    seen = (tau <= TIMES[:, None]).double().mean(1)
    # 4 standard errors of a share are at most 4 * 0.5 / 200.
    assert ((weight(TIMES) / base(TIMES) - seen).abs() <= 0.01).all()


@both_weights
def test_under_hard_truncation_prior_weight_changes_nothing(make):
    base = make(VESDE())
    assert torch.equal(PriorWeight(base, HardTruncation(1e-5))(TIMES), base(TIMES))


@pytest.mark.parametrize("tau_max", [1.0, 0.3])
@pytest.mark.parametrize("k", [0.0, 0.8, 0.9, 1.0, 1.1, 2.0, 3.0, 50.0])
@both_weights
@every_sde
def test_expected_truncated_loss_is_the_prior_weighted_loss(sde, make, k, tau_max):
    """`E_tau L(w, tau) = L(w_P, eps)`, both sides by quadrature, for a model that is off."""
    data = Gaussian(
        sde,
        torch.tensor([0.4, -1.0], dtype=torch.float64),
        torch.tensor([0.3, 1.2], dtype=torch.float64),
    )
    model = Gaussian(sde, data.mean + 0.3, data.std * 1.5)
    prior = PowerPrior(k, 1e-5, tau_max)
    weight = make(sde)

    def averaged(tau: torch.Tensor) -> torch.Tensor:
        return prior.log_prob(tau).exp() * truncated_loss(data, model, weight, tau)

    expected = integrate(averaged, prior.eps, tau_max * (1 - 1e-15))
    weighted = truncated_loss(data, model, PriorWeight(weight, prior), prior.eps, tau_max)
    if tau_max < 1.0:  # the weight has a kink there
        weighted = weighted + truncated_loss(data, model, PriorWeight(weight, prior), tau_max)
    torch.testing.assert_close(expected, weighted, rtol=1e-6, atol=0)


def test_weights_are_values():
    assert likelihood_weight(VPSDE()) == likelihood_weight(VPSDE())
    assert likelihood_weight(VPSDE()) != variance_weight(VPSDE())
    assert PriorWeight(likelihood_weight(VPSDE()), PowerPrior(1)) == PriorWeight(
        likelihood_weight(VPSDE()), PowerPrior(1)
    )
