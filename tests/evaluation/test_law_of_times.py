import math

import pytest
import torch

from softtrunc import (
    VESDE,
    VPSDE,
    HardTruncation,
    ImportanceTimes,
    MixedLoss,
    PowerPrior,
    PriorWeight,
    SoftTruncationLoss,
    SubVPSDE,
    UniformTimes,
    likelihood_weight,
    variance_weight,
)
from softtrunc.evaluation.law_of_times import law_of_times
from softtrunc.times import LogSNRTimes

EPS = 1e-5


def edges(sde, bins=12):
    ends = sde.log_snr(torch.tensor([EPS, 1.0], dtype=torch.float64))
    return torch.linspace(float(ends[0]), float(ends[1]), bins + 1, dtype=torch.float64)


def objective(sde, prior=None, times=None, weighting=None):
    return SoftTruncationLoss(
        sde,
        prior or HardTruncation(EPS),
        times or ImportanceTimes(sde),
        weighting or likelihood_weight(sde),
    )


PRIORS = [HardTruncation(EPS), PowerPrior(1.0), PowerPrior(0.0), PowerPrior(2.5)]
TIMES = [
    UniformTimes,
    ImportanceTimes,
    LogSNRTimes,
    lambda sde: UniformTimes(sde, average=True),
    lambda sde: LogSNRTimes(sde, average=True),
]


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda s: type(s).__name__)
def test_hard_truncation_with_importance_times_is_the_plain_likelihood(sde):
    found = law_of_times(objective(sde), edges(sde))
    torch.testing.assert_close(found.share, torch.full((12,), 1 / 12, dtype=torch.float64))
    torch.testing.assert_close(found.weight, torch.ones(12, dtype=torch.float64))
    assert found.clipped is None


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_shares_are_those_of_draws(prior, times):
    sde = VPSDE()
    loss = objective(sde, prior, times(sde))
    found = law_of_times(loss, edges(sde))
    assert float(found.share.sum()) == pytest.approx(1.0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    n = 100_000
    tau = prior.sample(n, generator=generator)
    draw = loss.times.draw(n, tau, generator=generator)
    # Falling edges: the count of the times in each bin.
    place = torch.bucketize(-sde.log_snr(draw.t), -edges(sde)[1:-1])
    counted = torch.bincount(place, minlength=12) / n
    assert (counted - found.share).abs().max() < 4.0 * math.sqrt(0.25 / n)
    # What a draw adds to the loss beside its error, over what it adds under the plain likelihood.
    each = loss.coefficient(_step(tau, draw)) * 2.0
    width = float(edges(sde)[0] - edges(sde)[1])
    sums = torch.zeros(12, dtype=torch.float64).index_add(0, place, each) / (n * width)
    squares = torch.zeros(12, dtype=torch.float64).index_add(0, place, each**2) / (n * width) ** 2
    seen = torch.bincount(place, minlength=12) > 1000
    assert (sums - found.weight)[seen].abs().le(5.0 * squares[seen].sqrt() + 1e-3).all()


def _step(tau, draw):
    from softtrunc.objective import StepDraw

    return StepDraw(tau[0], draw.t, draw.weight)


class Blind:
    """A model whose score is zero, so that its error is the noise's square."""

    def __init__(self, sde):
        self.sde = sde

    def score(self, x, t):
        return torch.zeros_like(x)


@pytest.mark.parametrize("average", [True, False])
def test_a_mixed_loss_has_the_law_of_its_halves(average):
    sde, prior = VPSDE(), PowerPrior(1.0)
    likelihood = objective(sde, prior)
    variance = objective(sde, prior, UniformTimes(sde, average=average), variance_weight(sde))
    loss = MixedLoss(likelihood, variance, coefficient=3.0)
    generator = torch.Generator().manual_seed(0)
    taus = prior.sample(500, generator=generator)
    norms = torch.where(taus < 0.01, 4.0, 0.5)
    found = law_of_times(loss, edges(sde), taus=taus, grad_norms=norms, clip=1.0)
    assert float(found.share.sum()) == pytest.approx(1.0, abs=1e-12)
    # What batches of unit error add up to in each bin; the plain likelihood loss is half its error.
    count, sums, clipped = (torch.zeros(12, dtype=torch.float64) for _ in range(3))
    ones, n = torch.ones(400, 1, dtype=torch.float64), 400 * len(taus)
    for tau, norm in zip(taus, norms, strict=True):
        terms = loss(Blind(sde), ones, tau=tau, noise=ones, generator=generator)
        place = torch.bucketize(-sde.log_snr(terms.t), -edges(sde)[1:-1])
        count += torch.bincount(place, minlength=12)
        added = torch.zeros(12, dtype=torch.float64).index_add(0, place, 2.0 * terms.loss)
        sums += added
        clipped += added * min(1.0, 1.0 / float(norm))
    width = float(edges(sde)[0] - edges(sde)[1])
    assert (count / n - found.share).abs().max() < 0.02
    known = law_of_times(loss, edges(sde), taus=taus, grad_norms=norms)  # these taus, unclipped
    for drawn, law in ((sums, known.clipped), (clipped, found.clipped)):
        torch.testing.assert_close(drawn / (n * width), law, rtol=0.1, atol=0.01)
    torch.testing.assert_close(known.clipped, found.weight, rtol=0.15, atol=0.02)


@pytest.mark.parametrize("weighting", [likelihood_weight, variance_weight])
@pytest.mark.parametrize("k", [0.0, 0.8, 1.0, 2.0])
def test_soft_truncation_and_its_expected_weight_weigh_alike(k, weighting):
    """`E_tau L(w, tau) = L(w_P, eps)`."""
    sde, prior = VPSDE(), PowerPrior(k)
    base = weighting(sde)
    soft = law_of_times(objective(sde, prior, weighting=base), edges(sde))
    expected = law_of_times(objective(sde, weighting=PriorWeight(base, prior)), edges(sde))
    torch.testing.assert_close(soft.weight, expected.weight, rtol=1e-9, atol=1e-12)
    if weighting is likelihood_weight:
        assert float(soft.weight[-1]) == pytest.approx(1.0, abs=0.1)
        assert (soft.weight.diff() > 0.0).all()


def test_clipping_takes_from_the_small_times():
    sde, prior = VPSDE(), PowerPrior(1.0)
    tau = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    plain = objective(sde, prior)
    loose = law_of_times(plain, edges(sde), taus=tau, grad_norms=torch.ones_like(tau), clip=1.0)
    assert loose.clipped is not None
    torch.testing.assert_close(loose.clipped, loose.weight, rtol=0.0, atol=0.02)
    # Norms that fall with tau: steps below the median are cut to a fifth.
    norms = torch.where(tau < float(prior.icdf(torch.tensor(0.5))), 5.0, 0.5)
    found = law_of_times(plain, edges(sde), taus=tau.tolist(), grad_norms=norms.tolist(), clip=1.0)
    assert found.clipped is not None
    torch.testing.assert_close(found.clipped[0] / loose.clipped[0], torch.tensor(0.2).double())
    assert float(found.clipped[-1]) == pytest.approx(0.6, abs=0.02)
    unclipped = law_of_times(plain, edges(sde), taus=tau, grad_norms=norms)
    torch.testing.assert_close(unclipped.clipped, loose.clipped)


def test_refusals():
    loss = objective(VPSDE())
    with pytest.raises(ValueError, match="balanced"):
        law_of_times(MixedLoss(loss, loss, 1.0, balanced=True), edges(VPSDE()))
    with pytest.raises(ValueError, match="edges"):
        law_of_times(loss, torch.tensor([1.0, 0.0, 0.5]))
    with pytest.raises(ValueError, match="or neither"):
        law_of_times(loss, edges(VPSDE()), taus=[0.1])
    with pytest.raises(ValueError, match="2 taus and 1 grad_norms"):
        law_of_times(loss, edges(VPSDE()), taus=[0.1, 0.2], grad_norms=[1.0], clip=1.0)
