"""Weights, and the identity that ties Soft Truncation to one of them (Fubini)."""

from __future__ import annotations

import pytest
import torch
from exact import Gaussian
from integrals import integrate, truncated_loss

from softtrunc import (
    VESDE,
    VPSDE,
    HardTruncation,
    PowerPrior,
    PriorWeight,
    ReciprocalVESDE,
    SubVPSDE,
    likelihood_weight,
    variance_weight,
)

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
both_weights = pytest.mark.parametrize("make", [likelihood_weight, variance_weight])


@every_sde
def test_the_two_weights_are_g2_and_sigma2(sde):
    assert torch.equal(likelihood_weight(sde)(TIMES), sde.diffusion(TIMES) ** 2)
    assert torch.equal(variance_weight(sde)(TIMES), sde.marginal(TIMES).sigma ** 2)


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
