import math

import pytest
import torch
from exact import Levels, Mixture

from softtrunc import VESDE, VPSDE
from softtrunc.density import (
    SIGMAS,
    TruncatedNormal,
    bin_centers,
    importance_weighted,
    mean_with_error,
    nelbo,
    probability_flow_nll,
    spread_range,
    truncated_times,
)
from softtrunc.noise import Noise

DOUBLE = {"dtype": torch.float64}
LEVELS = 5
P = torch.tensor([0.5, 0.02, 0.3, 0.01, 0.17], **DOUBLE)
CELLS = spread_range(LEVELS)
KINDS = {"first": 0, "inner": 1, "last": LEVELS - 1}


def law_of(edge, *indices):
    index = torch.tensor(indices)[:, None]
    return TruncatedNormal(torch.tensor(edge, **DOUBLE), index == 0, index == LEVELS - 1)


def limits(edge, kind):
    return (-12.0 if kind == "first" else -edge), (12.0 if kind == "last" else edge)


def integral(values, axis):
    return float(torch.trapezoid(values, axis))


@pytest.mark.parametrize("edge", [1e-3, 0.1, 1.0, 3.0, 9.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_is_a_density_with_these_moments_and_this_entropy(edge, kind):
    law = law_of(edge, KINDS[kind])
    axis = torch.linspace(*limits(edge, kind), 40_001, **DOUBLE)
    log_q = torch.stack([law.log_prob(part[None, None]) for part in axis[:: len(axis) - 1]])
    log_q = log_q[0] + 0.5 * axis[0].square() - 0.5 * axis.square()
    q = log_q.exp()
    assert integral(q, axis) == pytest.approx(1.0, abs=1e-6)
    assert float(law.mean()) == pytest.approx(integral(q * axis, axis), abs=1e-6)
    assert float(law.mean_square()) == pytest.approx(integral(q * axis**2, axis), abs=1e-6)
    assert float(law.entropy()) == pytest.approx(integral(-q * log_q, axis), abs=1e-6)


@pytest.mark.parametrize("edge", [1e-3, 1.0, 9.0])
@pytest.mark.parametrize("kind", KINDS)
def test_uniform_numbers_become_quantiles(edge, kind):
    law = law_of(edge, KINDS[kind])
    u = torch.tensor([0.0, 1e-9, 0.01, 0.3, 0.5, 0.9, 1.0 - 1e-9], **DOUBLE)
    z = torch.cat([law.icdf(v[None, None]) for v in u]).squeeze(1)
    assert z.isfinite().all()
    low, high = limits(edge, kind)
    assert (z >= low).all()
    assert (z <= high).all()
    below, mass = torch.special.ndtr(z), torch.special.ndtr(torch.tensor([low, high], **DOUBLE))
    # The lowest level counts from its limit to the left, all others to the right.
    share = (below - mass[0]) / (mass[1] - mass[0])
    torch.testing.assert_close(1.0 - share if kind == "last" else share, u, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("gap", [1e-3, 0.5, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_slope_of_the_cut_noise_after_diffusion(gap, kind):
    """Against the density of r z + s fresh by quadrature over z."""
    edge = 1.3
    law = law_of(edge, KINDS[kind])
    r, s = math.exp(-gap / 2), math.sqrt(-math.expm1(-gap))
    axis = torch.linspace(*limits(edge, kind), 200_001, **DOUBLE)

    def log_density(z_t):
        kernel = (-0.5 * axis.square() - 0.5 * ((z_t - r * axis) / s).square()).exp()
        return torch.trapezoid(kernel, axis).log()

    share, rest = law._shares(torch.tensor([gap], **DOUBLE))
    for place in (-1.5, -1.25, 0.2, 1.32):
        z_t = torch.tensor(place, **DOUBLE)
        step = 1e-5
        slope = (log_density(z_t + step) - log_density(z_t - step)) / (2 * step)
        found = law._target(z_t[None, None], share, rest)
        assert float(found) == pytest.approx(-float(slope), rel=1e-4, abs=1e-4)


def test_the_target_stays_finite_where_the_cut_is_far_away_or_at_hand():
    law = law_of(0.5, *range(LEVELS))
    for gap in (0.0, 1e-18, 1e-9, 1.0, 30.0):
        shares = law._shares(torch.full((LEVELS,), gap, **DOUBLE))
        for place in (-0.5, 0.0, 0.5, *((-8.0, 8.0) if gap > 1e-12 else ())):
            found = law._target(torch.full((LEVELS, 1), place, **DOUBLE), *shares)
            assert found.isfinite().all()


def test_noise_of_later_times_has_the_moments_that_are_told():
    law = TruncatedNormal(
        torch.tensor(0.8, **DOUBLE),
        *((torch.arange(3) == i).expand(40_000, 3) for i in (0, 2)),
    )
    gap = torch.full((40_000,), 0.3, **DOUBLE)
    later = law.later(Noise(40_000, None, torch.Generator().manual_seed(0)), gap)
    mean, square = law.moments(gap)
    for found, truth in ((later.z, mean), (later.target, torch.zeros_like(mean))):
        assert ((found - truth).mean(0).abs() < 4.5 * found.std(0) / 200).all()
    found = later.z.square().sum(1)
    assert (found - square).mean().abs() < 4.5 * found.std() / 200


def test_times_are_where_half_a_cell_is_so_many_sigmas():
    for sde, span in ((VPSDE(), (-1.0, 1.0)), (VESDE(sigma_min=1e-4), (0.0, 1.0))):
        times = truncated_times(sde, 256, span)
        assert list(times.values()) == sorted(times.values(), reverse=True)
        assert times.keys() <= {*SIGMAS} or min(times.values()) == 1e-5
        for count, time in times.items():
            alpha, sigma = sde.marginal(torch.tensor(time, **DOUBLE))
            half = 0.5 * (span[1] - span[0]) / 256
            assert float(half * alpha / sigma) == pytest.approx(count, rel=1e-6)
    few = truncated_times(VESDE(), 256, (0.0, 1.0), sigmas=(1 / 16, 1.0, 2.0))
    assert few[1 / 16] > 0.1  # a cell is a fifth of the noise that there is at least
    assert list(few.values())[1:] == [1e-5]
    assert list(few)[1] == pytest.approx(0.5 / 256 / 0.01, rel=1e-3)
    with pytest.raises(ValueError, match="2 levels over"):
        truncated_times(VESDE(sigma_max=0.05), 2, (-1.0, 1.0))


def exact(sde):
    return Levels(sde, bin_centers(torch.arange(LEVELS), LEVELS, CELLS, **DOUBLE), P)


def bits_of(found):
    return found.bits_per_dim(LEVELS)


def measured_at(sde, sigmas, count):
    """The exact model, levels in their cells, and what `density` takes beside them."""
    model, generator = exact(sde), torch.Generator().manual_seed(1)
    ((_, eps),) = truncated_times(sde, LEVELS, CELLS, sigmas=(sigmas,)).items()
    x = bin_centers(model.sample((count, 6), generator=generator), LEVELS, CELLS, **DOUBLE)
    options = {"reconstruction": "truncated", "levels": LEVELS, "value_range": CELLS}
    return model, x, options | {"eps": eps, "seeds": range(count)}


def nats_of(model, x, eps, purpose):
    """What the closed forms say, of the noise of this purpose."""
    t = torch.tensor(eps, **DOUBLE)
    alpha, sigma = model.sde.marginal(t)
    law = TruncatedNormal.around(x, alpha, sigma, LEVELS, CELLS)
    z = law.draw(Noise(len(x), range(len(x)), None, purpose=purpose))
    return law.log_prob(z) - 6 * sigma.log() - model.log_prob(alpha * x + sigma * z, t)


@pytest.mark.parametrize(("sde", "sigmas"), [(VPSDE(), 1.0), (VESDE(), 2.0)])
def test_the_flow_gives_what_the_law_and_the_exact_density_say(sde, sigmas):
    model, x, options = measured_at(sde, sigmas, 12)
    found = probability_flow_nll(model, x, rtol=1e-4, atol=1e-4, **options)
    truth = nats_of(model, x, options["eps"], "probability flow")
    # What is left is the prior's: at T it is not quite the law of x_T.
    assert (found.nats - truth).abs().max() < 0.05


@pytest.mark.parametrize(("sde", "sigmas"), [(VPSDE(), 1.0), (VPSDE(), 4.0), (VESDE(), 2.0)])
def test_the_bound_is_tight_for_an_exact_score(sde, sigmas):
    """In the mean: within 4 standard errors, which are small, and the prior's part."""
    model, x, options = measured_at(sde, sigmas, 2000)
    found = nelbo(model, x, draws=32, **options)
    truth = nats_of(model, x, options["eps"], "other")
    gap, error, _ = mean_with_error((found.nats - truth) / (6 * math.log(2.0)))
    assert abs(gap) < 4 * error + 0.003
    assert error < 0.02
    assert (found.nfe == 32).all()
    torch.testing.assert_close(found.nats, found.prior + found.flow + found.residual)


def test_bounds_are_above_the_entropy_and_near_it_where_the_cut_is_far():
    model, generator = exact(VPSDE()), torch.Generator().manual_seed(2)
    levels = model.sample((200, 8), generator=generator)
    x = bin_centers(levels, LEVELS, CELLS, **DOUBLE)
    truth = -P.log2()[levels].mean(1)
    gaps = {}
    for sigmas, eps in truncated_times(VPSDE(), LEVELS, CELLS, sigmas=(0.5, 1.5, 4.0)).items():
        found = nelbo(
            model,
            x,
            eps=eps,
            draws=16,
            reconstruction="truncated",
            levels=LEVELS,
            value_range=CELLS,
            generator=generator,
        )
        gap, error, _ = mean_with_error(bits_of(found) - truth)
        assert gap > -4 * error
        gaps[sigmas] = gap
    entropy = model.entropy() / math.log(2.0)
    assert gaps[4.0] < 0.02 * entropy
    assert gaps[0.5] > 0.1 * entropy


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("sigmas", [0.5, 1.0, 3.0])
def test_probabilities_of_all_levels_of_a_dimension_sum_to_no_more_than_one(draws, sigmas):
    """Of a model that is wrong: exp(-bound), the mean over the noise by quadrature."""
    sde = VPSDE()
    model = Levels(sde, exact(sde).positions + 0.1, P.flip(0))
    ((_, eps),) = truncated_times(sde, LEVELS, CELLS, sigmas=(sigmas,)).items()
    t = torch.tensor(eps, **DOUBLE)
    alpha, sigma = sde.marginal(t)
    u = (torch.arange(400, **DOUBLE) + 0.5) / 400
    total = 0.0
    for level in range(LEVELS):
        x = bin_centers(torch.full((400, 1), level), LEVELS, CELLS, **DOUBLE)
        law = TruncatedNormal.around(x, alpha, sigma, LEVELS, CELLS)
        z = law.icdf(u[:, None])
        nats = law.log_prob(z) - sigma.log() - model.log_prob(alpha * x + sigma * z, t)
        if draws == 2:
            nats = importance_weighted(torch.cartesian_prod(nats, nats))
        total += math.exp(-float(nats.mean()))
    assert 0.2 < total <= 1.0 + 1e-6


def test_importance_weights_of_several_draws():
    nats = torch.tensor([[1.0, 1.0, 1.0], [0.0, 900.0, 900.0], [800.0, 801.0, 802.0]])
    found = importance_weighted(nats)
    truth = 800.0 - math.log((1 + math.exp(-1) + math.exp(-2)) / 3)
    torch.testing.assert_close(found, torch.tensor([1.0, math.log(3.0), truth], **DOUBLE))


def test_an_example_does_not_see_its_batch_and_may_share_its_probe():
    generator = torch.Generator().manual_seed(0)
    x = bin_centers(torch.randint(LEVELS, (4, 6), generator=generator), LEVELS, CELLS)
    quarter = torch.full((4,), 0.25, **DOUBLE)
    model = Mixture(VPSDE(), x.double(), quarter, quarter)
    options = {"eps": 1e-3, "reconstruction": "truncated", "levels": LEVELS, "value_range": CELLS}
    for measure in (nelbo, probability_flow_nll):
        whole = measure(model, x, seeds=range(4), **options)
        some = measure(model, x[[3, 1]], seeds=[3, 1], **options)
        assert (bits_of(some) - bits_of(whole)[[3, 1]]).abs().max() < 1e-4
    twice = x[[0, 0]]
    own = probability_flow_nll(model, twice, seeds=[7, 7], **options)
    shared = probability_flow_nll(model, twice, seeds=[7, 7], probe_seeds=[1, 1], **options)
    other = probability_flow_nll(model, twice, seeds=[7, 7], probe_seeds=[1, 2], **options)
    assert own.nats[0] == own.nats[1]
    assert shared.nats[0] == shared.nats[1] != own.nats[0]
    assert other.nats[0] == shared.nats[0] != other.nats[1]
    assert (own.residual == other.residual).all()


def test_levels_alone_are_measured():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="bin_centers"):
        probability_flow_nll(exact(VPSDE()), x, reconstruction="truncated")
    with pytest.raises(ValueError, match="truncated reconstruction is a residual"):
        probability_flow_nll(exact(VPSDE()), x, reconstruction="truncated", residual=False)
