"""Random times are an integration rule: their weighted means are integrals over [tau, T].

Means are held against quadrature within 4 standard errors, which a right rule misses with
probability 6e-5; Kolmogorov-Smirnov tests miss with 1e-4. About 100 such comparisons are made, so
that a fresh set of seeds would fail by chance once in 100 times; the seeds are fixed.
"""

from __future__ import annotations

import pytest
import torch
from integrals import integrate
from scipy import stats
from torch import Tensor

from softtrunc import (
    SDE,
    VESDE,
    VPSDE,
    HardTruncation,
    ImportanceTimes,
    PowerPrior,
    ReciprocalVESDE,
    SubVPSDE,
    TimeDraw,
    UniformTimes,
)
from softtrunc.times import LogNormalTimes, LogSNRTimes, TimeLaw

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
TRUNCATIONS = [1e-5, 1e-3, 0.3]

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
every_tau = pytest.mark.parametrize("tau", TRUNCATIONS)
every_law = pytest.mark.parametrize(
    "law", [UniformTimes, ImportanceTimes, LogSNRTimes, LogNormalTimes]
)

# Tests of thousands of small draws: the signatures are checked in the others.
unhindered = pytest.mark.usefixtures("unchecked")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rate(sde: SDE, t: Tensor) -> Tensor:
    """How fast log-SNR falls."""
    return sde.diffusion(t).square() / sde.marginal(t).sigma.square()


def quantile(times: TimeLaw, t: Tensor, tau: float) -> Tensor:
    """Where t lies in the law on [tau, T], by its definition: in time, log-SNR or a normal law."""
    low = torch.tensor(tau, dtype=torch.float64)
    if isinstance(times, LogNormalTimes):
        law = stats.norm(times.mean, times.std)
        above = [
            torch.from_numpy(law.sf((-0.5 * times.sde.log_snr(v)).numpy()))
            for v in (low[None], t, torch.ones_like(low)[None])
        ]
        return (above[0] - above[1]) / (above[0] - above[2])
    if isinstance(times, UniformTimes):
        return (t - low) / (1.0 - low)
    l_max, l_min = times.sde.log_snr(low), times.sde.log_snr(torch.ones_like(low))
    return (l_max - times.sde.log_snr(t)) / (l_max - l_min)


def assert_within_errors(values: Tensor, exact: Tensor, rounding: float = 1e-12) -> None:
    error = values.std() / len(values) ** 0.5
    # What is constant has no error but rounding.
    bound = 4 * error + rounding * exact.abs()
    assert (values.mean() - exact).abs() <= bound, (values.mean(), exact, error)


def test_the_quadrature_itself_is_exact():
    low = torch.tensor(TRUNCATIONS, dtype=torch.float64)
    torch.testing.assert_close(integrate(torch.ones_like, low), 1 - low, rtol=1e-13, atol=0)
    torch.testing.assert_close(integrate(torch.reciprocal, low), -low.log(), rtol=1e-13, atol=0)
    exact = (low.log() * low - low).neg() - 1
    torch.testing.assert_close(integrate(torch.log, low), exact, rtol=1e-12, atol=0)
    for sde in SDES:
        z = sde.log_snr(low) - sde.log_snr(torch.ones_like(low))
        total = integrate(lambda t, sde=sde: rate(sde, t), low)
        torch.testing.assert_close(total, z, rtol=1e-11, atol=0)


@unhindered
@pytest.mark.parametrize("stratified", [False, True])
@every_tau
@pytest.mark.parametrize("h", [torch.ones_like, lambda t: (6 * t).cos(), lambda t: 1 / (0.1 + t)])
def test_uniform_times_integrate(h, tau, stratified):
    times = UniformTimes(VPSDE(), stratified=stratified)
    # Means over batches are independent, whether or not the draws within one are.
    draws = [times.draw(50, tau, generator=seeded(i)) for i in range(200)]
    means = torch.stack([(d.weight * h(d.t)).mean() for d in draws])
    assert_within_errors(means, integrate(h, tau))


@unhindered
@pytest.mark.parametrize("stratified", [False, True])
@every_tau
@every_sde
def test_importance_times_integrate(sde, tau, stratified):
    times = ImportanceTimes(sde, stratified=stratified)
    draws = [times.draw(50, tau, generator=seeded(i)) for i in range(200)]
    # Functions of the size that a g^2 loss has; the last one is large where the rate is small.
    for h in (
        lambda t: rate(sde, t) * (6 * t).cos(),
        lambda t: rate(sde, t) / (1 + sde.log_snr(t) ** 2),
        lambda t: rate(sde, t).sqrt(),
    ):
        means = torch.stack([(d.weight * h(d.t)).mean() for d in draws])
        assert_within_errors(means, integrate(h, tau))


@every_tau
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("h", [torch.ones_like, lambda t: (6 * t).cos()])
def test_importance_times_integrate_what_does_not_follow_the_rate(h, sde, tau):
    # Not for reciprocal VE: there 1 of 10^5 draws would carry the integral.
    draw = ImportanceTimes(sde).draw(100_000, tau, generator=seeded(1))
    assert_within_errors(draw.weight * h(draw.t), integrate(h, tau))


@every_tau
@every_sde
def test_importance_weight_times_rate_is_the_normaliser(sde, tau):
    draw = ImportanceTimes(sde).draw(1_000, tau, generator=seeded(2))
    ends = torch.tensor([tau, 1.0], dtype=torch.float64)
    z = sde.log_snr(ends)[0] - sde.log_snr(ends)[1]
    torch.testing.assert_close(draw.weight * rate(sde, draw.t), z.expand(1_000), rtol=1e-12, atol=0)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_average_convention_divides_by_the_length(stratified):
    tau = 0.3
    plain = UniformTimes(VPSDE(), stratified).draw(64, tau, generator=seeded(3))
    mean = UniformTimes(VPSDE(), stratified, average=True).draw(64, tau, generator=seeded(3))
    assert torch.equal(mean.t, plain.t)
    assert (mean.weight == 1).all()
    torch.testing.assert_close(plain.weight, mean.weight * (1 - tau))


@every_tau
@every_sde
@every_law
def test_single_draws_follow_the_law(law, sde, tau):
    t = law(sde).draw(5_000, tau, generator=seeded(4)).t
    assert stats.kstest(quantile(law(sde), t, tau).numpy(), "uniform").pvalue > 1e-4


@unhindered
@every_law
def test_stratified_draws_keep_the_marginal_law(law):
    times = law(VPSDE(), stratified=True)
    # The first of each batch: were the cells not dealt in random order, it would be the smallest.
    t = torch.stack([times.draw(8, 1e-5, generator=seeded(i)).t[0] for i in range(3_000)])
    assert stats.kstest(quantile(times, t, 1e-5).numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 2, 7, 128])
@every_sde
@every_law
def test_stratified_draws_put_one_in_each_cell(law, sde, n):
    times = law(sde, stratified=True)
    for seed in range(5):
        t = times.draw(n, 1e-5, generator=seeded(seed)).t
        cells = (quantile(times, t, 1e-5) * n).floor().long()
        assert torch.equal(cells.sort().values, torch.arange(n))


@unhindered
@every_sde
@every_law
def test_stratified_draws_have_less_variance(law, sde):
    def means(stratified: bool) -> Tensor:
        times = law(sde, stratified=stratified)
        draws = [times.draw(16, 1e-3, generator=seeded(i)) for i in range(300)]
        value = [d.weight * (quantile(times, d.t, 1e-3) * 3).cos() for d in draws]
        if law is ImportanceTimes:
            value = [v * rate(sde, d.t) for v, d in zip(value, draws, strict=True)]
        if law is LogNormalTimes:
            value = [v * times.density(d.t) for v, d in zip(value, draws, strict=True)]
        return torch.stack([v.mean() for v in value])

    # For a smooth integrand the variance falls as n^-3 instead of n^-1: 256 times at n = 16.
    assert means(True).var() < means(False).var() / 100


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("tau", [1e-5, 0.1, 1 - 1e-9])
@every_sde
@every_law
def test_all_times_lie_between_tau_and_the_end(law, sde, tau, stratified):
    draw = law(sde, stratified=stratified).draw(20_000, tau, generator=seeded(5))
    assert isinstance(draw, TimeDraw)
    assert draw.t.dtype == draw.weight.dtype == torch.float64
    assert draw.t.shape == draw.weight.shape == (20_000,)
    assert tau <= draw.t.min()
    assert draw.t.max() <= 1
    # In its far tail a normal law has less than float64 tells from nothing.
    assert (draw.weight >= 0).all() if law is LogNormalTimes else (draw.weight > 0).all()


@unhindered
@every_sde
@every_law
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_extreme_random_numbers_stay_inside(law, sde, u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), u, dtype=torch.float64))
    for tau in torch.logspace(-5, -0.01, 200, dtype=torch.float64).tolist():
        t = float(law(sde).draw(1, tau).t)
        assert tau <= t <= 1


@every_sde
@every_law
def test_each_example_may_have_its_own_tau(law, sde):
    tau = torch.tensor([1e-5, 0.01, 0.5, 0.9], dtype=torch.float64)
    each = law(sde).draw(4, tau, generator=seeded(6))
    assert each.t.shape == each.weight.shape == (4,)
    for i in range(4):
        one = law(sde).draw(4, float(tau[i]), generator=seeded(6))
        torch.testing.assert_close(each.t[i], one.t[i], rtol=1e-14, atol=0)
        torch.testing.assert_close(each.weight[i], one.weight[i], rtol=1e-14, atol=0)


@pytest.mark.parametrize("stratified", [False, True])
@every_law
def test_equal_generators_give_equal_times(law, stratified):
    times = law(VPSDE(), stratified=stratified)
    first = times.draw(6, 0.1, generator=seeded(7))
    again = times.draw(6, torch.tensor(0.1, dtype=torch.float64), generator=seeded(7))
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.t, times.draw(6, 0.1, generator=seeded(8)).t)
    state = torch.random.get_rng_state()
    times.draw(6, 0.1, generator=seeded(7))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was touched"
    torch.manual_seed(7)
    assert torch.equal(first.t, times.draw(6, 0.1).t)


@unhindered
@every_tau
@every_sde
def test_log_snr_times_integrate_over_log_snr(sde, tau):
    """The integral of h dl is that of h g^2 / sigma^2 dt, since dl/dt = -g^2 / sigma^2."""
    draw = LogSNRTimes(sde).draw(20_000, tau, generator=seeded(9))
    other = ImportanceTimes(sde).draw(20_000, tau, generator=seeded(9))
    torch.testing.assert_close(draw.t, other.t, rtol=0, atol=0)
    weight = other.weight * rate(sde, other.t)
    torch.testing.assert_close(draw.weight, weight, rtol=1e-9, atol=0)
    average = LogSNRTimes(sde, average=True).draw(4, tau, generator=seeded(9))
    assert torch.equal(average.weight, torch.ones(4, dtype=torch.float64))


@every_tau
def test_log_snr_times_of_a_ve_are_its_uniform_times(tau):
    ours = LogSNRTimes(VESDE(), average=True).draw(100, tau, generator=seeded(10))
    flipped = UniformTimes(VESDE(), average=True)
    # One counts from T, the other from tau: the same law, the same numbers backwards.
    u = torch.rand(100, generator=seeded(10), dtype=torch.float64)
    torch.testing.assert_close(ours.t, tau + (1 - tau) * u, rtol=1e-9, atol=1e-12)
    assert torch.equal(ours.weight, flipped.draw(100, tau, generator=seeded(10)).weight)


def test_log_snr_times_do_not_see_the_clock():
    """A reciprocal VE and the VE with its end points draw the same noise levels."""
    rve, ve = ReciprocalVESDE(1e-3, 50.0), VESDE(1e-3, 50.0)
    slow = LogSNRTimes(rve).draw(1_000, 1e-5, generator=seeded(11))
    # t = 1e-5 of the one is t = 0 of the other, as near as its clock goes.
    fast = LogSNRTimes(ve).draw(1_000, 1e-12, generator=seeded(11))
    sigmas = [sde.marginal(d.t).sigma for sde, d in ((rve, slow), (ve, fast))]
    torch.testing.assert_close(*sigmas, rtol=1e-8, atol=0)
    torch.testing.assert_close(slow.weight, fast.weight, rtol=1e-9, atol=0)


@unhindered
@pytest.mark.parametrize("stratified", [False, True])
@every_tau
@every_sde
def test_log_normal_times_integrate(sde, tau, stratified):
    times = LogNormalTimes(sde, mean=-0.5, std=1.5, stratified=stratified)
    draws = [times.draw(50, tau, generator=seeded(i)) for i in range(200)]
    # Functions of the size that EDM's loss has: the density of the times, and bounded factors.
    for h in (times.density, lambda t: times.density(t) / (1 + sde.log_snr(t) ** 2)):
        means = torch.stack([(d.weight * h(d.t)).mean() for d in draws])
        # An RVE has nearly all its noise at tau = 0.3: what is left of the law is a difference.
        assert_within_errors(means, integrate(h, tau), rounding=1e-9)


@every_sde
def test_the_density_of_log_normal_times_is_the_slope_of_their_cdf(sde):
    times, low = LogNormalTimes(sde), torch.tensor(1e-3, dtype=torch.float64)
    # Where an RVE has no noise to speak of, its density is 0 to any digit.
    t = torch.tensor([0.01, 0.2, 0.5, 0.9], dtype=torch.float64)
    h = 1e-5 * t
    slope = (times.cdf(t + h, low) - times.cdf(t - h, low)) / (2 * h)
    share = 1 - float(stats.norm.cdf((-0.5 * float(sde.log_snr(low)) + 1.2) / 1.2))
    share -= float(stats.norm.sf((-0.5 * float(sde.log_snr(torch.ones_like(low))) + 1.2) / 1.2))
    torch.testing.assert_close(slope * share, times.density(t), rtol=1e-4, atol=1e-9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_mistaken_normal_law_is_refused(mean, std):
    with pytest.raises(ValueError, match="need a finite mean and std > 0"):
        LogNormalTimes(VESDE(), mean, std)


@every_tau
@every_sde
@every_law
def test_the_cdf_of_a_law_is_where_its_times_lie(law, sde, tau):
    low = torch.tensor(tau, dtype=torch.float64)
    u = torch.linspace(0, 1 - 1e-9, 101, dtype=torch.float64)
    t = law(sde)._at(u, low).t
    atol = 1e-8 if law is LogNormalTimes else 1e-10  # of its far tail, see above
    torch.testing.assert_close(law(sde).cdf(t, low), u, rtol=0, atol=atol)
    ends = torch.tensor([0.9 * tau, tau, 1.0], dtype=torch.float64)
    torch.testing.assert_close(law(sde).cdf(ends, low), ends.new_tensor([0.0, 0.0, 1.0]))


# Times in proportion to a weight: those of the expected loss, whose examples then count the same.

PRIORS = [PowerPrior(0.4), PowerPrior(1.0), PowerPrior(2.0, tau_max=0.3), HardTruncation(1e-5)]
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=str)


def integral(h, low: float | Tensor, kink: float) -> Tensor:
    """Of h over [low, T], in two pieces where the prior's cdf has a corner."""
    low = torch.as_tensor(low, dtype=torch.float64)
    if kink == 1.0:
        return integrate(h, low)
    return integrate(h, low.clamp(max=kink), kink) + integrate(h, low.clamp(min=kink))
