import math

import pytest
import torch
from exact import Mixture
from gaussian_truth import GaussianTruth

from softtrunc import VESDE, VPSDE
from softtrunc.density import mean_with_error, nelbo, probability_flow_nll

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("dim", [2, 64, 3072])
def test_gaussian_truth(sde, dim):
    """For the exact score the bound is tight: the data's own -log p, within 3 standard errors."""
    truth = GaussianTruth(sde, dim)
    n = 150 if dim <= 64 else 24
    x = truth.model.sample(n, generator=truth.generator)
    data = -torch.distributions.Normal(truth.model.mean, truth.model.std).log_prob(x).sum(1)
    generator = torch.Generator().manual_seed(0)
    found = nelbo(truth.model, x, draws=32, generator=generator)
    gap, error, _ = mean_with_error(truth.bits(found.nats - data))
    alpha, sigma = sde.marginal(truth.low)
    v = (1.0 + (sigma / (alpha * truth.model.std)).square()).reciprocal()
    kl = float(truth.bits(0.5 * (v - 1.0 - v.log()).sum()))
    assert abs(gap - kl) < 3 * error + 1e-3
    torch.testing.assert_close(found.nats, found.prior + found.flow + found.residual)
    assert (found.nfe == 36).all()


def test_bound_is_above_the_flow(sde):
    """With a score that is wrong the bound is loose, and never below the flow's likelihood."""
    truth = GaussianTruth(sde, 8)
    x = truth.model.sample(100, generator=truth.generator)
    wrong = Mixture(
        sde,
        torch.stack([torch.zeros(8), 0.5 * torch.ones(8)]).double(),
        torch.tensor([0.2, 0.4], **DOUBLE),
        torch.tensor([0.5, 0.5], **DOUBLE),
    )
    bound = nelbo(wrong, x, draws=32, seeds=range(100)).nats
    flow = probability_flow_nll(wrong, x, divergence="exact", seeds=range(100)).nats
    gap, error, _ = mean_with_error((bound - flow) / (8 * math.log(2.0)))
    assert gap > -3 * error


@pytest.mark.parametrize("data_std", [0.1, 0.5, 3.0])
def test_control_variate_changes_no_mean(data_std):
    truth = GaussianTruth(VPSDE(), 4)
    x = truth.model.sample(1, generator=truth.generator).expand(400, -1)
    generator = torch.Generator().manual_seed(1)
    found = nelbo(truth.model, x, draws=16, data_std=data_std, generator=generator)
    data = -torch.distributions.Normal(truth.model.mean, truth.model.std).log_prob(x[:1]).sum()
    gap, error, _ = mean_with_error(truth.bits(found.nats - data))
    assert abs(gap) < 3.5 * error + 2e-3


def test_control_variate_pays():
    truth = GaussianTruth(VESDE(), 64)
    x = truth.model.sample(1, generator=truth.generator).expand(300, -1)
    generator = torch.Generator().manual_seed(1)
    spread = [
        float(nelbo(truth.model, x, draws=16, data_std=s, generator=generator).nats.std())
        for s in (0.4, 1e-4, 1e4)
    ]
    assert 1.7 * spread[0] < min(spread[1:])


def test_an_example_does_not_see_its_batch(sde):
    truth = GaussianTruth(sde, 12)
    x = truth.model.sample(7, generator=truth.generator).float()
    whole = nelbo(truth.model, x, draws=8, seeds=range(7))
    chunked = nelbo(truth.model, x, draws=8, seeds=range(7), chunk_size=3)
    some = nelbo(truth.model, x[[5, 2]], draws=8, seeds=[5, 2])
    bits = whole.bits_per_dim()
    assert (chunked.bits_per_dim() - bits).abs().max() < 1e-4
    assert (some.bits_per_dim() - bits[[5, 2]]).abs().max() < 1e-4


def test_draws_must_be_positive():
    with pytest.raises(ValueError, match="draws=0"):
        nelbo(GaussianTruth(VPSDE(), 2).model, torch.zeros(2, 2), draws=0)
