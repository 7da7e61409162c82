"""Forward diffusions against 40-digit arithmetic, their own differential equations and laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import NamedTuple

import mpmath
import pytest
import torch
from mpmath import mpf
from scipy import stats
from torch import Tensor
from torch.distributions import Normal

from softtrunc import SDE, VESDE, VPSDE, Marginal, ReciprocalVESDE, SubVPSDE
from softtrunc.sde import expand_to, random_normal

SDES = [
    VPSDE(),
    VPSDE(beta_min=0.5, beta_max=0.5),
    SubVPSDE(),
    VESDE(),
    VESDE(sigma_min=1e-3, sigma_max=2.0),
    ReciprocalVESDE(),
    ReciprocalVESDE(sigma_min=0.01, sigma_max=5.0, eps=2e-5),
]
TIMES = [1e-5, 3e-5, 1e-4, 1e-3, 0.01, 0.1, 0.37, 0.5, 0.9, 0.99]

every_sde = pytest.mark.parametrize("sde", SDES, ids=str)


def double(v: float | list[float]) -> Tensor:
    return torch.tensor(v, dtype=torch.float64)


class Truth(NamedTuple):
    alpha: mpf
    sigma: mpf
    f: mpf
    g2: mpf


def truth(sde: SDE, t: float) -> Truth:
    """The table of the method, in 40 digits, as it is written there."""
    t = mpf(t)
    if isinstance(sde, VPSDE | SubVPSDE):
        b0, b1 = mpf(sde.beta_min), mpf(sde.beta_max)
        beta, b = b0 + (b1 - b0) * t, b0 * t + (b1 - b0) * t**2 / 2
        decay = 1 - mpmath.exp(-b)
        if isinstance(sde, VPSDE):
            return Truth(mpmath.exp(-b / 2), mpmath.sqrt(decay), -beta / 2, beta)
        return Truth(mpmath.exp(-b / 2), decay, -beta / 2, beta * (1 - mpmath.exp(-2 * b)))
    low, high = mpf(sde.sigma_min), mpf(sde.sigma_max)
    ratio = mpmath.log(high / low)
    if isinstance(sde, VESDE):
        sigma = low * (high / low) ** t
        return Truth(mpf(1), sigma, mpf(0), 2 * sigma**2 * ratio)
    span = 1 / mpf(sde.eps) - 1
    sigma = high * (low / high) ** ((1 / t - 1) / span)
    return Truth(mpf(1), sigma, mpf(0), 2 * sigma**2 * ratio / (span * t**2))


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(40):
        yield


def derivative(h: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Fourth-order central difference with a step in proportion to t."""
    d = 1e-3 * t
    return (8 * (h(t + d) - h(t - d)) - (h(t + 2 * d) - h(t - 2 * d))) / (12 * d)


@every_sde
@pytest.mark.parametrize("t", [*TIMES, 1.0])
def test_every_coefficient_is_that_of_the_table(sde, t):
    alpha, sigma = sde.marginal(double(t))
    exact = truth(sde, t)
    assert math.isclose(alpha, exact.alpha, rel_tol=1e-13)
    assert math.isclose(sigma, exact.sigma, rel_tol=1e-13)
    assert math.isclose(sde.drift(double(t)), exact.f, rel_tol=1e-13)
    assert math.isclose(sde.diffusion(double(t)), mpmath.sqrt(exact.g2), rel_tol=1e-13)
    log_snr = 2 * mpmath.log(exact.alpha / exact.sigma)
    assert math.isclose(sde.log_snr(double(t)), log_snr, rel_tol=1e-13, abs_tol=1e-13)


@every_sde
def test_log_snr_falls_at_rate_g2_over_sigma2(sde):
    t = double(TIMES)
    rate = sde.diffusion(t) ** 2 / sde.marginal(t).sigma ** 2
    torch.testing.assert_close(derivative(sde.log_snr, t), -rate, rtol=1e-6, atol=0)


@every_sde
def test_moments_solve_their_differential_equations(sde):
    t = double(TIMES)
    alpha, sigma = sde.marginal(t)
    f, g = sde.drift(t), sde.diffusion(t)
    slope = derivative(lambda u: sde.marginal(u).alpha, t)
    torch.testing.assert_close(slope, f * alpha, rtol=2e-6, atol=0)
    slope = derivative(lambda u: sde.marginal(u).sigma ** 2, t)
    torch.testing.assert_close(slope, 2 * f * sigma**2 + g**2, rtol=2e-6, atol=0)


@every_sde
def test_float32_is_float64_rounded(sde):
    t = torch.tensor([*TIMES, 1.0])
    wide = t.double()
    for name in ("drift", "diffusion", "log_snr"):
        narrow = getattr(sde, name)(t)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), getattr(sde, name)(wide), rtol=1e-7, atol=0)
    for narrow, exact in zip(sde.marginal(t), sde.marginal(wide), strict=True):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()], ids=str)
def test_sigma_in_float32_holds_at_the_smallest_time(sde):
    sigma = float(sde.marginal(torch.tensor(1e-5)).sigma)
    exact = float(sde.marginal(double(1e-5)).sigma)
    assert abs(sigma / exact - 1) < 1e-6


@every_sde
def test_half_precision_times_give_float32(sde):
    t = torch.tensor([0.25, 0.5], dtype=torch.bfloat16)
    alpha, sigma = sde.marginal(t)
    assert {alpha.dtype, sigma.dtype, sde.log_snr(t).dtype} == {torch.float32}
    torch.testing.assert_close(sigma, sde.marginal(t.float()).sigma)


@every_sde
def test_time_of_log_snr_inverts_log_snr(sde):
    t = double([*TIMES, 1.0])
    # Where l hardly moves with t (VE at small t) the last bit of l is all that can be kept.
    rate = sde.diffusion(t) ** 2 / sde.marginal(t).sigma ** 2
    floor = 4e-15 * (1 + sde.log_snr(t).abs()) / rate
    assert ((sde.time_of_log_snr(sde.log_snr(t)) - t).abs() <= 1e-13 * t + floor).all()

    log_snr = torch.linspace(
        float(sde.log_snr(double(1.0))), float(sde.log_snr(double(1e-5))), 101, dtype=torch.float64
    )
    back = sde.log_snr(sde.time_of_log_snr(log_snr))
    torch.testing.assert_close(back, log_snr, rtol=1e-12, atol=1e-12)
    narrow = sde.time_of_log_snr(log_snr.float())
    assert narrow.dtype == torch.float32
    exact = sde.time_of_log_snr(log_snr.float().double())
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-7, atol=0)


@every_sde
def test_log_snr_falls_strictly(sde):
    assert (sde.log_snr(torch.logspace(-5, 0, 1001, dtype=torch.float64)).diff() < 0).all()


@every_sde
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_results_have_the_shape_of_the_time(sde, shape):
    t = torch.full(shape, 0.3)
    results = [*sde.marginal(t), sde.drift(t), sde.diffusion(t), sde.log_snr(t)]
    assert isinstance(sde.marginal(t), Marginal)
    assert {r.shape for r in [*results, sde.time_of_log_snr(t)]} == {torch.Size(shape)}


@every_sde
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_zero_is_a_time_like_any_other(sde, dtype):
    zero = torch.zeros((), dtype=dtype)
    alpha, sigma = sde.marginal(zero)
    assert alpha == 1
    at_zero = {VESDE: lambda s: s.sigma_min}.get(type(sde), lambda s: 0.0)(sde)
    assert float(sigma) == pytest.approx(at_zero, rel=1e-6)
    g = {
        VPSDE: lambda s: math.sqrt(s.beta_min),
        VESDE: lambda s: s.sigma_min * math.sqrt(2 * math.log(s.sigma_max / s.sigma_min)),
    }.get(type(sde), lambda s: 0.0)(sde)
    assert float(sde.diffusion(zero)) == pytest.approx(g, rel=1e-6)


def test_where_each_sde_begins_and_ends():
    assert {sde.t_max for sde in SDES} == {1.0}
    assert VPSDE().prior_std == SubVPSDE().prior_std == 1.0
    assert VPSDE().t_end == SubVPSDE().t_end == 1e-3
    assert VESDE().prior_std == ReciprocalVESDE().prior_std == 50.0
    assert VESDE().t_end == ReciprocalVESDE().t_end == 1e-5
    assert ReciprocalVESDE(eps=1e-4).t_end == 1e-4
    sigma = ReciprocalVESDE().marginal(double([1e-5, 1.0])).sigma
    torch.testing.assert_close(sigma, double([1e-3, 50.0]), rtol=1e-13, atol=0)


def test_integrated_beta_is_the_integral_of_beta():
    sde = VPSDE()
    t = double(TIMES)
    torch.testing.assert_close(derivative(sde.integrated_beta, t), sde.beta(t), rtol=1e-9, atol=0)
    assert float(sde.integrated_beta(double(1.0))) == pytest.approx(10.05, rel=1e-14)


@every_sde
@pytest.mark.parametrize("event", [(), (2,), (3, 8, 8)], ids=str)
def test_prior_log_prob_is_that_of_a_normal_law(sde, event):
    x = sde.prior_sample((5, *event), generator=torch.Generator().manual_seed(0))
    log_prob = sde.prior_log_prob(x)
    assert log_prob.shape == (5,)
    exact = Normal(0.0, double(sde.prior_std)).log_prob(x.double()).reshape(5, -1).sum(1)
    torch.testing.assert_close(log_prob, exact, rtol=1e-12, atol=1e-12)


def test_prior_log_prob_keeps_its_digits_in_many_dimensions():
    x = torch.full((1, 3, 256, 256), 0.1)
    exact = Normal(0.0, 1.0).log_prob(x.double()).sum()
    torch.testing.assert_close(VPSDE().prior_log_prob(x)[0], exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()], ids=str)
def test_prior_sample_follows_the_prior(sde):
    # Fails by chance with probability 1e-4 per SDE; the seed is fixed.
    x = sde.prior_sample((5_000, 2, 2), generator=torch.Generator().manual_seed(1))
    assert x.shape == (5_000, 2, 2)
    assert x.dtype == torch.float32
    law = stats.norm(0, sde.prior_std)
    assert stats.kstest(x.flatten().numpy(), law.cdf).pvalue > 1e-4


def test_equal_generators_give_equal_samples():
    sde = VESDE()
    first = sde.prior_sample((4, 2), generator=torch.Generator().manual_seed(7))
    again = sde.prior_sample((4, 2), generator=torch.Generator().manual_seed(7))
    other = sde.prior_sample((4, 2), generator=torch.Generator().manual_seed(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.random.get_rng_state()
    sde.prior_sample((4, 2), generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was touched"
    torch.manual_seed(7)
    assert torch.equal(sde.prior_sample((4, 2)), first)
    wide = sde.prior_sample((4, 2), device="cpu", dtype=torch.float64)
    assert wide.dtype == torch.float64


def test_random_numbers_are_drawn_where_the_generator_lives():
    # The meta device stands for an accelerator: numbers of a CPU generator are moved to it.
    z = random_normal((3,), generator=torch.Generator().manual_seed(0), device="meta")
    assert z.device.type == "meta"


@every_sde
@pytest.mark.parametrize("event", [(), (2,), (4,), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perturb_scales_and_adds_noise_example_by_example(sde, event, dtype):
    generator = torch.Generator().manual_seed(2)
    x, z = torch.randn((2, 4, *event), generator=generator, dtype=dtype)
    t = double([1e-5, 0.1, 0.5, 1.0])
    noisy = sde.perturb(x, t, z)
    assert noisy.dtype == dtype
    for i in range(4):
        alpha, sigma = sde.marginal(t[i])
        torch.testing.assert_close(noisy[i], alpha.to(dtype) * x[i] + sigma.to(dtype) * z[i])
    one = sde.perturb(x, t[1], z)
    torch.testing.assert_close(one[1], noisy[1])
    torch.testing.assert_close(one, sde.perturb(x, t[1].expand(4), z))


def test_expand_to_follows_the_example_axis():
    x = torch.zeros(3, 2, 2)
    v = expand_to(double([1.0, 2.0, 3.0]), x)
    assert v.shape == (3, 1, 1)
    assert v.dtype == torch.float32
    assert expand_to(double(2.0), x).shape == ()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VPSDE(beta_min=0.0), r"VPSDE: beta_min=0\.0.* need 0 < beta_min <= beta_max"),
        (lambda: VPSDE(beta_min=2.0, beta_max=1.0), r"beta_min=2\.0, beta_max=1\.0"),
        (lambda: SubVPSDE(beta_min=-1.0), r"SubVPSDE: beta_min=-1\.0"),
        (lambda: SubVPSDE(beta_max=math.nan), r"beta_max=nan"),
        (lambda: SubVPSDE(beta_max=math.inf), r"beta_max=inf"),
        (lambda: VESDE(sigma_min=0.0), r"VESDE: sigma_min=0\.0.* need 0 < sigma_min < sigma_max"),
        (lambda: VESDE(sigma_min=50.0, sigma_max=50.0), r"sigma_min=50\.0, sigma_max=50\.0"),
        (lambda: VESDE(sigma_max=math.inf), r"sigma_max=inf"),
        (lambda: ReciprocalVESDE(sigma_max=1e-4), r"ReciprocalVESDE: .*sigma_max=0\.0001"),
        (lambda: ReciprocalVESDE(eps=0.0), r"ReciprocalVESDE: eps=0\.0: need 0 < eps < 1"),
        (lambda: ReciprocalVESDE(eps=1.0), r"eps=1\.0"),
        (lambda: ReciprocalVESDE(eps=math.nan), r"eps=nan"),
    ],
)
def test_an_impossible_sde_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sdes_are_values():
    assert VPSDE() == VPSDE(0.1, 20)
    assert hash(VPSDE()) == hash(VPSDE())
    assert VPSDE() != SubVPSDE()
    with pytest.raises(FrozenInstanceError):
        VPSDE().beta_min = 1.0
