"""The closed-form models are the truth of many other tests: here they answer to mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from exact import Gaussian, Mixture
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from softtrunc import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
EVENTS = [(2,), (2, 3, 3)]

# A KS test fails by chance with probability 1e-4; seeds are fixed.
CHANCE = 1e-4


def gaussian(sde: SDE, event: tuple[int, ...]) -> Gaussian:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(event, generator=generator, dtype=torch.float64)
    std = 0.3 + torch.rand(event, generator=generator, dtype=torch.float64)
    return Gaussian(sde, mean, std)


def mixture(sde: SDE, event: tuple[int, ...]) -> Mixture:
    generator = torch.Generator().manual_seed(2)
    means = 2 * torch.randn((3, *event), generator=generator, dtype=torch.float64)
    stds = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    return Mixture(sde, means, stds, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_score_is_the_gradient_of_log_prob(sde, make, event):
    model = make(sde, event)
    x = model.sample(5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    t = torch.tensor([1e-4, 0.01, 0.2, 0.6, 1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
    torch.testing.assert_close(model.score(x, t), gradient, rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(model.log_prob(x, t[2]).sum(), x)
    torch.testing.assert_close(model.score(x, t[2]), gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_gaussian_density_is_that_of_torch(sde):
    model = gaussian(sde, (2, 3, 3))
    t = torch.tensor([0.1, 0.5], dtype=torch.float64)
    x = model.sample(2, generator=torch.Generator().manual_seed(4))
    for i in range(2):
        alpha, sigma = sde.marginal(t[i])
        law = Normal(alpha * model.mean, ((alpha * model.std) ** 2 + sigma**2).sqrt())
        torch.testing.assert_close(model.log_prob(x, t)[i], law.log_prob(x[i]).sum())
    assert math.isclose(model.entropy(), float(Normal(model.mean, model.std).entropy().sum()))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_mixture_density_is_that_of_torch_and_integrates_to_one(sde):
    model = mixture(sde, (1,))
    t = torch.tensor(0.05, dtype=torch.float64)
    alpha, sigma = sde.marginal(t)
    law = MixtureSameFamily(
        Categorical(model.weights),
        Normal(alpha * model.means[:, 0], ((alpha * model.stds) ** 2 + sigma**2).sqrt()),
    )
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x[:, None], t), law.log_prob(x))

    reach = 12 + 10 * float(sigma)

    def density(v: float) -> float:
        return float(model.log_prob(torch.tensor([[v]], dtype=torch.float64), t).exp())

    total, _ = integrate.quad(density, -reach, reach, points=[-2, 0, 2], limit=200)
    assert abs(total - 1) < 1e-7


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_diffused_samples_follow_the_mixture(sde):
    model = mixture(sde, (1,))
    t = torch.tensor(0.05, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    x = model.sample(20_000, generator=generator)
    x = sde.perturb(x, t, torch.randn(x.shape, generator=generator, dtype=x.dtype))
    alpha, sigma = sde.marginal(t)
    std = ((alpha * model.stds) ** 2 + sigma**2).sqrt()

    def cdf(v):
        z = (torch.as_tensor(v)[:, None] - alpha * model.means[:, 0]) / std
        return (torch.special.ndtr(z) * model.weights).sum(1).numpy()

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > CHANCE


def test_gaussian_samples_follow_the_gaussian():
    model = gaussian(VPSDE(), (2,))
    x = model.sample(20_000, generator=torch.Generator().manual_seed(6))
    for i in range(2):
        law = stats.norm(float(model.mean[i]), float(model.std[i]))
        assert stats.kstest(x[:, i].numpy(), law.cdf).pvalue > CHANCE


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_flow_map_solves_the_probability_flow_equation(sde):
    model = gaussian(sde, (2,))
    x = model.sample(3, generator=torch.Generator().manual_seed(7))
    start = torch.tensor(0.02, dtype=torch.float64)

    def state(t: Tensor) -> Tensor:
        return model.flow_map(x, start, t)

    for t in torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64):
        h = 1e-4 * t
        velocity = (state(t + h) - state(t - h)) / (2 * h)
        drift = sde.drift(t) * state(t)
        drift = drift - 0.5 * sde.diffusion(t) ** 2 * model.score(state(t), t)
        torch.testing.assert_close(velocity, drift, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_flow_map_carries_one_density_onto_the_other(sde):
    model = gaussian(sde, (2,))
    x = model.sample(4, generator=torch.Generator().manual_seed(8))
    t, u = torch.tensor([0.01, 0.8], dtype=torch.float64)
    y = model.flow_map(x, t, u)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: model.flow_map(v[None], t, u)[0]))(x)
    torch.testing.assert_close(
        model.log_prob(x, t), model.log_prob(y, u) + jacobian.det().abs().log()
    )
    torch.testing.assert_close(model.flow_map(y, u, t), x)
