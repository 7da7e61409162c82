import math

import pytest
import torch
from exact import Gaussian

from softtrunc import VESDE, VPSDE, SubVPSDE
from softtrunc.density import (
    bin_centers,
    discrete_log_prob,
    gaussian_residual,
    lossless_eps,
    lossless_residual,
)

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.02, 1.0, 50.0])
def test_probabilities_of_all_levels_sum_to_one(levels, std):
    means = torch.tensor([-40.0, -1.5, -1.0, -0.9961, -0.3, 0.0, 0.2501, 0.99, 1.0, 3.0], **DOUBLE)
    index = torch.arange(levels).expand(len(means), -1)
    scale = torch.full((1, 1), std, **DOUBLE)
    log_p = discrete_log_prob(index, means[:, None].expand_as(index), scale, levels)
    assert not log_p.isnan().any()
    assert not log_p.isposinf().any()
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(means), **DOUBLE))


def test_probabilities_against_direct_integration():
    mean, std, levels = 0.13, 0.05, 16
    grid = torch.linspace(-1.0, 1.0, 16 * 2000 + 1, **DOUBLE)
    middle = 0.5 * (grid[1:] + grid[:-1])
    p = torch.exp(-0.5 * ((middle - mean) / std).square()) / (std * math.sqrt(2 * math.pi))
    truth = p.reshape(levels, -1).sum(1) * (2.0 / len(middle))
    log_p = discrete_log_prob(
        torch.arange(levels), torch.full((levels,), mean, **DOUBLE), torch.tensor([std]), levels
    )
    torch.testing.assert_close(log_p.exp(), truth, rtol=1e-5, atol=1e-14)


def test_far_tails_keep_their_digits():
    """The bin next to the mean's, 100 standard deviations away: no cancellation, no -inf."""
    log_p = discrete_log_prob(
        torch.tensor([7, 9]),
        torch.full((2,), 1 / 16, **DOUBLE),
        torch.tensor([6.25e-4], **DOUBLE),
        16,
    )
    tail = -0.5 * 100.0**2 - math.log(100.0 * math.sqrt(2 * math.pi)) - 1e-4
    torch.testing.assert_close(log_p, torch.full((2,), tail, **DOUBLE), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_gaussian_residual_is_the_difference_of_two_densities(sde, eps):
    """Against both log-densities written out, and its mean against the closed form."""
    generator = torch.Generator().manual_seed(0)
    std = torch.tensor([0.02, 0.1, 0.5, 1.0], **DOUBLE)
    model = Gaussian(sde, torch.full((4,), 0.2, **DOUBLE), std)
    t = torch.tensor(eps, **DOUBLE)
    alpha, sigma = sde.marginal(t)
    n = 40_000
    x, z = model.sample(n, generator=generator), torch.randn(n, 4, generator=generator, **DOUBLE)
    x_eps = alpha * x + sigma * z
    score = model.score(x_eps, t)
    found = gaussian_residual(z, -sigma * score, alpha)

    forward = torch.distributions.Normal(alpha * x, sigma).log_prob(x_eps)
    mean, spread = (x_eps + sigma**2 * score) / alpha, sigma / alpha
    backward = torch.distributions.Normal(mean, spread).log_prob(x)
    torch.testing.assert_close(found, (forward - backward).sum(1), rtol=1e-9, atol=1e-9)

    # The error of the mean given x_eps is the posterior variance v: E r is known in full.
    v = 1.0 / (1.0 / std.square() + (alpha / sigma).square())
    entropy = 0.5 * torch.log(2 * math.pi * math.e * sigma.square())
    cross = 0.5 * (torch.log(2 * math.pi * spread.square()) + v / spread.square())
    truth = float((cross - entropy).sum())
    assert abs(float(found.mean()) - truth) < 4.0 * float(found.std()) / math.sqrt(n)


def test_lossless_is_gaussian_when_the_bins_are_fine():
    """Bins far below sigma: probability = density times width."""
    generator = torch.Generator().manual_seed(1)
    levels, alpha, sigma = 4096, torch.tensor(0.99, **DOUBLE), torch.tensor(0.05, **DOUBLE)
    x = bin_centers(torch.randint(1000, 3000, (6, 5), generator=generator), levels)
    z, n = torch.randn(2, 6, 5, generator=generator, **DOUBLE)
    found = lossless_residual(x, z, n, alpha, sigma, levels=levels)
    continuous = gaussian_residual(z, n, alpha)
    torch.testing.assert_close(found, continuous - 5 * math.log(2 / levels), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_min=1e-4)])
def test_a_lossless_code_begins_with_noise_of_part_of_a_bin(sde):
    alpha, sigma = sde.marginal(torch.tensor(lossless_eps(sde, 17, (0.0, 1.0)), **DOUBLE))
    assert float(sigma / alpha) == pytest.approx(0.4 / 17, rel=1e-6)


def test_a_lossless_code_never_begins_before_the_least_time():
    assert lossless_eps(VESDE(), 256, (0.0, 1.0), least=2e-5) == 2e-5


def test_levels_too_coarse_for_a_diffusion_are_told():
    with pytest.raises(ValueError, match="lossless_eps: 2 levels"):
        lossless_eps(VESDE(sigma_max=0.05), 2)
    with pytest.raises(ValueError, match="low < high"):
        lossless_eps(VPSDE(), 2, (1.0, -1.0))


def test_lossless_wants_bin_centres():
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="bin_centers"):
        lossless_residual(torch.zeros(2, 3), z, z, torch.ones(()), torch.ones(()))
