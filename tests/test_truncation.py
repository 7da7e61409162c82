"""The law of tau: densities obey probability, samples obey densities, formulas are the paper's."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import mpmath
import pytest
import torch
from exact import Gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from integrals import truncated_loss
from mpmath import mpf
from scipy import integrate, stats
from torch import Tensor

from softtrunc import (
    VESDE,
    VPSDE,
    HardTruncation,
    PowerPrior,
    PriorWeight,
    ReciprocalVESDE,
    SubVPSDE,
    TruncationPrior,
    likelihood_weight,
    variance_weight,
)
from softtrunc.truncation import WeightPrior

EXPONENTS = [0.0, 0.8, 0.9, 1.0, 1.1, 2.0, 3.0, 50.0]
every_k = pytest.mark.parametrize("k", EXPONENTS)
ranges = pytest.mark.parametrize(("eps", "tau_max"), [(1e-5, 1.0), (1e-3, 0.2)])

QUANTILES = [0.0, 1e-9, 1e-4, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0]


def double(v: float | list[float]) -> Tensor:
    return torch.tensor(v, dtype=torch.float64)


def exact_cdf(prior: PowerPrior, tau: float) -> mpf:
    """The method's formula as written, in enough digits for eps^(1 - k)."""
    with mpmath.workdps(60):
        eps, top, tau, k = (mpf(v) for v in (prior.eps, prior.tau_max, tau, prior.k))
        if k == 1:
            return mpmath.log(tau / eps) / mpmath.log(top / eps)
        return (eps ** (1 - k) - tau ** (1 - k)) / (eps ** (1 - k) - top ** (1 - k))


@ranges
@every_k
def test_samples_follow_the_cdf(k, eps, tau_max):
    # A Kolmogorov-Smirnov test fails by chance with probability 1e-4: 1.6e-3 over the sixteen
    # laws, once, for the seed is fixed.
    prior = PowerPrior(k, eps, tau_max)
    tau = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert tau.dtype == torch.float64
    assert tau.shape == (20_000,)
    assert eps <= tau.min()
    assert tau.max() <= tau_max
    assert stats.kstest(tau.numpy(), lambda v: prior.cdf(double(v)).numpy()).pvalue > 1e-4


@ranges
@every_k
def test_cdf_and_quantile_are_the_formulas_of_the_method(k, eps, tau_max):
    prior = PowerPrior(k, eps, tau_max)
    for tau in (eps, eps * 1.01, eps * 3, 0.1 * tau_max, 0.9 * tau_max, tau_max):
        assert math.isclose(
            prior.cdf(double(tau)), exact_cdf(prior, tau), rel_tol=1e-12, abs_tol=1e-13
        )
    if tau_max != 1.0:
        return
    for u in (1e-9, 0.1, 0.5, 0.9, 0.999):
        with mpmath.workdps(60):
            e, v = mpf(eps), mpf(u)
            if k == 1:
                exact = e ** (1 - v)
            else:
                exact = e / (1 - v * (1 - e ** (mpf(k) - 1))) ** (1 / (mpf(k) - 1))
        assert math.isclose(prior.icdf(double(u)), exact, rel_tol=1e-12)


@ranges
@every_k
def test_icdf_inverts_cdf(k, eps, tau_max):
    prior = PowerPrior(k, eps, tau_max)
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    assert (prior.cdf(prior.icdf(u)) - u).abs().max() < 1e-10

    s = torch.linspace(0, math.log(tau_max / eps), 1_001, dtype=torch.float64)
    tau = (eps * s.exp()).clamp(eps, tau_max)
    # Where the cdf is flat its last bit stands for a wide range of tau: float64 allows no more.
    slope = (prior.log_prob(tau) + tau.log()).exp()
    allowed = slope > 1e-5
    assert allowed.sum() > 5
    back = prior.icdf(prior.cdf(tau))
    torch.testing.assert_close(back[allowed], tau[allowed], rtol=1e-10, atol=0)


@ranges
@every_k
def test_quantiles_begin_at_eps_and_end_at_tau_max(k, eps, tau_max):
    prior = PowerPrior(k, eps, tau_max)
    tau = prior.icdf(double(QUANTILES))
    assert (tau.diff() > 0).all()
    assert tau[0] == eps
    # At k = 3 the last bit of 1 - u moves tau by 1e-7.
    assert tau[-1] == pytest.approx(tau_max, rel=1e-6)
    assert eps <= tau.min()
    assert tau.max() <= tau_max
    outside = double([-1.0, 0.0, eps / 2, eps, tau_max, 1.5, math.inf])
    assert prior.cdf(outside).tolist() == pytest.approx([0, 0, 0, 0, 1, 1, 1], rel=1e-15, abs=0)


@ranges
@every_k
def test_log_prob_integrates_to_one_and_to_the_cdf(k, eps, tau_max):
    prior = PowerPrior(k, eps, tau_max)
    top = math.log(tau_max / eps)

    def density(s: float) -> float:
        """Of s = log(tau / eps); the ends are inside, whatever exp has rounded them to."""
        tau = double(min(max(eps * math.exp(s), eps), tau_max))
        return math.exp(float(prior.log_prob(tau)) + math.log(tau))

    total, _ = integrate.quad(density, 0, top, epsabs=0, epsrel=1e-11, limit=400)
    assert abs(total - 1) < 1e-9
    for u in (0.01, 0.3, 0.9):
        s = math.log(float(prior.icdf(double(u))) / eps)
        part, _ = integrate.quad(density, 0, s, epsabs=0, epsrel=1e-11, limit=400)
        assert abs(part - u) < 1e-9


@ranges
@every_k
def test_density_is_the_derivative_of_the_cdf_and_a_power_of_tau(k, eps, tau_max):
    prior = PowerPrior(k, eps, tau_max)
    tau = prior.icdf(double([0.05, 0.2, 0.5, 0.8, 0.95]))
    h = 1e-5 * tau
    slope = (prior.cdf(tau + h) - prior.cdf(tau - h)) / (2 * h)
    torch.testing.assert_close(prior.log_prob(tau).exp(), slope, rtol=1e-6, atol=0)
    ratio = prior.log_prob(tau) - prior.log_prob(tau[0])
    torch.testing.assert_close(ratio, -k * (tau / tau[0]).log(), rtol=1e-11, atol=1e-11)


@ranges
@every_k
def test_there_is_no_density_outside_the_support(k, eps, tau_max):
    prior = PowerPrior(k, eps, tau_max)
    outside = double([-1.0, 0.0, eps * (1 - 1e-9), tau_max * (1 + 1e-9), 2.0, math.inf])
    assert (prior.log_prob(outside) == -math.inf).all()
    assert prior.log_prob(double([eps, tau_max])).isfinite().all()


@pytest.mark.parametrize("step", [1e-9, -1e-9, 1e-13, -1e-13])
def test_nothing_jumps_at_k_equal_to_one(step):
    one, near = PowerPrior(1.0), PowerPrior(1.0 + step)
    u = double(QUANTILES)
    tau = one.icdf(u)
    torch.testing.assert_close(near.icdf(u), tau, rtol=1e-7, atol=0)
    torch.testing.assert_close(near.cdf(tau), one.cdf(tau), rtol=1e-7, atol=0)
    torch.testing.assert_close(near.log_prob(tau), one.log_prob(tau), rtol=0, atol=1e-7)


def test_large_k_tends_to_hard_truncation():
    hard = HardTruncation(1e-5)
    u = double([0.1, 0.5, 0.9])
    for k in (1e2, 1e4, 1e6):
        prior = PowerPrior(k)
        # log(tau / eps) tends to an exponential variable of rate k - 1.
        excess = (prior.icdf(u) / hard.icdf(u)).log() * (k - 1)
        torch.testing.assert_close(excess, -torch.log1p(-u), rtol=1e-6, atol=0)
        tau = double([0.5e-5, 1e-5 * (1 + 50 / k)])
        torch.testing.assert_close(prior.cdf(tau), hard.cdf(tau), rtol=0, atol=1e-12)
        assert prior.log_prob(double(1e-5)).isfinite()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    k=st.floats(0, 200),
    eps=st.floats(1e-8, 0.1),
    tau_max=st.floats(0.11, 1.0),
    u=st.floats(0, 1),
)
def test_quantile_and_cdf_agree_for_every_law(k, eps, tau_max, u):
    prior = PowerPrior(k, eps, tau_max)
    tau = prior.icdf(double(u))
    assert eps <= tau <= tau_max
    assert abs(float(prior.cdf(tau)) - u) < 1e-10
    assert prior.log_prob(tau).isfinite()


def test_float32_arguments_are_widened():
    prior = PowerPrior(2)
    tau = torch.tensor([1e-4, 0.1])
    for method in (prior.cdf, prior.log_prob, HardTruncation().cdf, HardTruncation().log_prob):
        assert method(tau).dtype == torch.float64
        assert torch.equal(method(tau), method(tau.double()))
    assert prior.icdf(torch.tensor([0.5])).dtype == torch.float64
    assert HardTruncation().icdf(torch.tensor([0.5])).dtype == torch.float64


@pytest.mark.parametrize(
    "prior",
    [
        PowerPrior(1.1),
        HardTruncation(1e-3),
        WeightPrior(PowerPrior(1.1).cdf, torch.ones_like),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_every_prior_keeps_the_shape_and_the_generator(prior: TruncationPrior):
    for shape in ((), (3,), (2, 3)):
        v = torch.full(shape, 0.5, dtype=torch.float64)
        assert prior.cdf(v).shape == prior.icdf(v).shape == prior.log_prob(v).shape == shape
    first = prior.sample(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, prior.sample(5, generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(3)
    assert torch.equal(first, prior.sample(5))
    assert prior.sample(0).shape == (0,)


def test_hard_truncation_is_all_at_eps():
    prior = HardTruncation(1e-4)
    assert (prior.sample(100) == 1e-4).all()
    assert prior.cdf(double([0.0, 0.99e-4, 1e-4, 1.0])).tolist() == [0, 0, 1, 1]
    assert prior.log_prob(double([0.99e-4, 1e-4, 1.0])).tolist() == [-math.inf, 0, -math.inf]
    assert prior.icdf(double([0.0, 0.3, 1.0])).tolist() == [1e-4] * 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PowerPrior(-0.1), r"PowerPrior: k=-0\.1: need a finite k >= 0"),
        (lambda: PowerPrior(math.nan), r"k=nan"),
        (lambda: PowerPrior(math.inf), r"k=inf.*HardTruncation\(eps=1e-05\)"),
        (lambda: PowerPrior(1, eps=0.0), r"PowerPrior: eps=0\.0: need eps > 0"),
        (lambda: PowerPrior(1, eps=-1e-5), r"eps=-1e-05: need eps > 0"),
        (lambda: PowerPrior(1, eps=math.nan), r"eps=nan"),
        (lambda: PowerPrior(1, eps=0.1, tau_max=0.1), r"eps=0\.1, tau_max=0\.1: .*eps < tau_max"),
        (lambda: PowerPrior(1, eps=0.5, tau_max=0.1), r"eps=0\.5, tau_max=0\.1"),
        (lambda: PowerPrior(1, tau_max=1.5), r"tau_max=1\.5: need eps < tau_max <= 1"),
        (lambda: PowerPrior(1, tau_max=math.nan), r"tau_max=nan"),
        (lambda: HardTruncation(0.0), r"HardTruncation: eps=0\.0: need 0 < eps < 1"),
        (lambda: HardTruncation(1.0), r"eps=1\.0"),
        (lambda: HardTruncation(math.nan), r"eps=nan"),
    ],
)
def test_an_impossible_law_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_priors_are_values():
    assert PowerPrior(1) == PowerPrior(1.0, 1e-5, 1.0)
    assert hash(PowerPrior(2)) == hash(PowerPrior(2))
    assert PowerPrior(1) != PowerPrior(2)
    assert HardTruncation() == HardTruncation(1e-5)
    with pytest.raises(FrozenInstanceError):
        PowerPrior(1).k = 2.0


def discrepancy(u: Tensor) -> float:
    """The largest difference between the share of numbers below a quantile and the quantile."""
    return stats.kstest(u.numpy(), "uniform").statistic


# The prior of a wanted weight.


def sigmoid_prior(sde, center: float, **options) -> WeightPrior:
    def target(t):
        return likelihood_weight(sde)(t) * torch.sigmoid(center - sde.log_snr(t))

    return WeightPrior(target, likelihood_weight(sde), **options)


SIGMOIDS = [
    sigmoid_prior(VPSDE(), 2.0),
    sigmoid_prior(SubVPSDE(), -2.0, tau_max=0.4),
    sigmoid_prior(VESDE(), 0.0, eps=1e-3),
    sigmoid_prior(ReciprocalVESDE(), 2.0),
    sigmoid_prior(VPSDE(), 12.0),
]
every_sigmoid = pytest.mark.parametrize("prior", SIGMOIDS, ids=range(len(SIGMOIDS)))


@ranges
@pytest.mark.parametrize("k", [0.0, 0.4, 0.8, 1.0, 1.1, 2.0, 3.0])
def test_the_prior_of_a_power_weight_is_the_power_prior(k, eps, tau_max):
    power, base = PowerPrior(k, eps, tau_max), likelihood_weight(VPSDE())
    prior = WeightPrior(PriorWeight(base, power), base, eps, tau_max)
    u = torch.linspace(0, 1, 1_001, dtype=torch.float64)
    tau = power.icdf(u)
    torch.testing.assert_close(prior.cdf(tau), power.cdf(tau), rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.icdf(u), tau, rtol=2e-6, atol=1e-9)
    inner = tau[1:-1]
    torch.testing.assert_close(prior.log_prob(inner), power.log_prob(inner), rtol=0, atol=4e-3)


@every_sigmoid
def test_the_expected_weight_is_the_wanted_one(prior):
    """`w(t) P(tau <= t)` is the target up to a factor, until tau_max, where r stands still."""
    t = torch.logspace(math.log10(prior.eps), 0, 3_000, dtype=torch.float64)
    expected = PriorWeight(prior.weight, prior)(t)
    top = double(prior.tau_max)
    scale = prior.weight(top) / prior.target(top)
    wanted = torch.where(t <= top, prior.target(t) * scale, prior.weight(t))
    torch.testing.assert_close(expected, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("center", [-1.0, 2.0, 12.0])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), ReciprocalVESDE()], ids=lambda s: str(s)[:4])
def test_soft_truncation_under_it_is_the_loss_of_the_wanted_weight(sde, center):
    data = Gaussian(sde, double([0.4, -1.0]), double([0.3, 1.2]))
    model = Gaussian(sde, data.mean + 0.3, data.std * 1.5)
    prior = sigmoid_prior(sde, center)
    # The middle of each of 4,000 equal cells of the law stands for its draws, the mass at eps too.
    tau = prior.icdf((torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000)
    tau = tau.clamp(max=1 - 1e-12)
    averaged = truncated_loss(data, model, prior.weight, tau).mean()
    scale = prior.weight(double(1.0)) / prior.target(double(1.0))
    wanted = truncated_loss(data, model, prior.target, prior.eps) * scale
    torch.testing.assert_close(averaged, wanted, rtol=1e-3, atol=0)


@every_sigmoid
def test_quantiles_of_a_weight_prior_invert_its_cdf(prior):
    atom = float(prior.cdf(double(prior.eps)))
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    back = prior.cdf(prior.icdf(u))
    assert (back - u.clamp(min=atom)).abs().max() < 1e-8
    assert (prior.icdf(u[u < atom]) == prior.eps).all()
    assert prior.cdf(double([0.0, 0.99 * prior.eps, prior.tau_max, 2.0])).tolist() == [0, 0, 1, 1]
    tau = prior.icdf(u)[100:-100:99]
    slope = (prior.log_prob(tau) + tau.log()).exp()
    torch.testing.assert_close(
        prior.icdf(prior.cdf(tau))[slope > 1e-5], tau[slope > 1e-5], rtol=1e-8, atol=0
    )


@every_sigmoid
def test_samples_of_a_weight_prior_follow_it_and_its_density_is_one(prior):
    atom = float(prior.cdf(double(prior.eps)))
    tau = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    smooth = tau[tau > prior.eps]
    # Within 4 standard errors, and a Kolmogorov-Smirnov test that fails with probability 1e-4.
    assert abs(len(smooth) / 20_000 - (1 - atom)) <= 4 * math.sqrt(atom * (1 - atom) / 20_000)

    def above_the_mass(v):
        return ((prior.cdf(double(v)) - atom) / (1 - atom)).numpy()

    assert stats.kstest(smooth.numpy(), above_the_mass).pvalue > 1e-4
    # The density is level in log tau within a panel: the middle of each is exact.
    places = torch.arange(16_384, dtype=torch.float64) + 0.5
    extent = math.log(prior.tau_max / prior.eps)
    middle = prior.eps * (places * extent / 16_384).exp()
    total = (prior.log_prob(middle).exp() * middle).sum() * extent / 16_384
    assert abs(float(total) + atom - 1) < 1e-9
    assert prior.log_prob(double(prior.eps)).exp() == pytest.approx(atom, rel=1e-12)
    outside = double([-1.0, 0.0, 0.99 * prior.eps, 1.01 * prior.tau_max])
    assert (prior.log_prob(outside) == -math.inf).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: WeightPrior(variance_weight(VPSDE()), likelihood_weight(VPSDE())),
            r"WeightPrior: target / weight falls at t = 0\.\d+: no truncation has this weight",
        ),
        (lambda: WeightPrior(torch.neg, torch.ones_like), r"is to be finite, and > 0 at tau_max"),
        (lambda: WeightPrior(torch.ones_like, torch.zeros_like), r"is to be finite"),
        (lambda: WeightPrior(torch.ones_like, torch.ones_like, 0.0), r"WeightPrior: eps=0\.0"),
        (
            lambda: WeightPrior(torch.ones_like, torch.ones_like, 0.5, 0.1),
            r"eps=0\.5, tau_max=0\.1: need eps < tau_max <= 1",
        ),
    ],
)
def test_a_weight_that_no_truncation_has_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_prior_of_the_weight_itself_is_hard_truncation():
    prior = WeightPrior(likelihood_weight(VPSDE()), likelihood_weight(VPSDE()))
    assert (prior.sample(100) == 1e-5).all()
    assert prior.icdf(double([0.0, 0.3, 1.0])).tolist() == [1e-5] * 3
    assert prior.cdf(double([0.99e-5, 1e-5, 1.0])).tolist() == [0, 1, 1]
    # Under VE the variance weight is a multiple of the likelihood weight.
    same = WeightPrior(variance_weight(VESDE()), likelihood_weight(VESDE()))
    assert (same.sample(100) == 1e-5).all()
