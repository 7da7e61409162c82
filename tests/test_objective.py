"""The loss against the formula it estimates, and Soft Truncation against its own expectation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from exact import Gaussian
from integrals import expected_error, truncated_loss
from scipy import stats
from torch import Tensor, nn

from softtrunc import (
    SDE,
    VESDE,
    VPSDE,
    HardTruncation,
    ImportanceTimes,
    LossTerms,
    MixedLoss,
    PowerPrior,
    PriorWeight,
    ReciprocalVESDE,
    ScoreModel,
    SoftTruncationLoss,
    SubVPSDE,
    UniformTimes,
    likelihood_weight,
    variance_weight,
)
from softtrunc.sde import random_normal

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]
EVENTS = [(), (2,), (3, 8, 8)]

every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
every_event = pytest.mark.parametrize("event", EVENTS, ids=str)
both_weights = pytest.mark.parametrize("weight", [likelihood_weight, variance_weight])
both_laws = pytest.mark.parametrize("times", [UniformTimes, ImportanceTimes])

# Means of thousands of small batches: the signatures are checked in the other tests.
unhindered = pytest.mark.usefixtures("unchecked")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(sde: SDE, event: tuple[int, ...] = (2,)) -> tuple[Gaussian, Gaussian]:
    """Data, and a model that is off in mean and in width."""
    generator = seeded(10)
    mean = torch.randn(event, generator=generator, dtype=torch.float64)
    std = 0.3 + torch.rand(event, generator=generator, dtype=torch.float64)
    return Gaussian(sde, mean, std), Gaussian(sde, mean + 0.4, 1.5 * std)


def soft(
    sde: SDE, weight=likelihood_weight, times=ImportanceTimes, **options
) -> SoftTruncationLoss:
    prior = options.pop("prior", PowerPrior(1))
    return SoftTruncationLoss(sde, prior, times(sde), weight(sde), **options)


class Body(nn.Module):
    """A small network for events of shape (2,)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 16)
        self.outer = nn.Linear(16, 2)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([x, label[:, None] / 999], dim=1))))


def score_model(sde: SDE, dtype: torch.dtype = torch.float32) -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(Body(), sde).to(dtype)


def direct(loss: SoftTruncationLoss, model, w: str, x: Tensor, draw, noise: Tensor) -> Tensor:
    """`weight w(t) / 2 ||score - grad log p(x_t | x_0)||^2`, one example after the other."""
    values = []
    for x0, z, t, weight in zip(x.double(), noise.double(), draw.t, draw.weight, strict=True):
        alpha, sigma = loss.sde.marginal(t)
        noisy = alpha * x0 + sigma * z
        target = -(noisy - alpha * x0) / sigma**2
        squares = (model.score(noisy[None], t[None])[0] - target).square()
        distance = squares.mean() if loss.reduction == "mean" else squares.sum()
        w_t = {"likelihood_weight": loss.sde.diffusion(t) ** 2, "variance_weight": sigma**2}[w]
        values.append(0.5 * weight * w_t * distance)
    return torch.stack(values)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_event
@both_laws
@both_weights
@every_sde
def test_loss_is_half_the_weighted_squared_error_of_the_score(sde, weight, times, event, reduction):
    data, model = pair(sde, event)
    loss = soft(sde, weight, times, reduction=reduction)
    x = data.sample(6, generator=seeded(0))
    draw = loss.draw(6, tau=1e-4, generator=seeded(1))
    noise = random_normal(x.shape, generator=seeded(2), dtype=torch.float64)
    terms = loss(model, x, draw=draw, noise=noise)
    assert isinstance(terms, LossTerms)
    exact = direct(loss, model, weight.__name__, x, draw, noise)
    torch.testing.assert_close(terms.loss, exact, rtol=1e-7, atol=0)
    torch.testing.assert_close(terms.loss, loss.coefficient(draw) * terms.error)
    assert torch.equal(terms.t, draw.t)
    assert torch.equal(terms.tau, draw.tau)

    narrow = loss(model, x.float(), draw=draw, noise=noise.float())
    assert narrow.loss.dtype == narrow.error.dtype == torch.float32
    assert narrow.t.dtype == torch.float64
    torch.testing.assert_close(narrow.loss.double(), exact, rtol=1e-3, atol=1e-6)


@every_event
def test_sum_is_mean_times_the_number_of_dimensions(event):
    data, model = pair(VPSDE(), event)
    x = data.sample(4, generator=seeded(0))
    mean = soft(VPSDE())(model, x, generator=seeded(1))
    total = soft(VPSDE(), reduction="sum")(model, x, generator=seeded(1))
    torch.testing.assert_close(total.loss, mean.loss * data.mean.numel())
    torch.testing.assert_close(total.error, mean.error * data.mean.numel())


@every_sde
def test_importance_sampled_likelihood_loss_carries_its_normaliser(sde):
    """`1/2 Z(tau) ||sigma s + z||^2`: the same coefficient for every time of a step."""
    loss = soft(sde)
    for tau in (1e-5, 0.01, 0.7):
        draw = loss.draw(5, tau=tau, generator=seeded(3))
        z = -sde.log_snr(torch.tensor([tau, 1.0], dtype=torch.float64)).diff()
        torch.testing.assert_close(loss.coefficient(draw), 0.5 * z.expand(5), rtol=1e-11, atol=0)


def test_averaged_variance_loss_is_plain_noise_prediction():
    sde = VPSDE()
    loss = SoftTruncationLoss(
        sde, HardTruncation(), UniformTimes(sde, average=True), variance_weight(sde)
    )
    data, model = pair(sde)
    terms = loss(model, data.sample(5, generator=seeded(0)), generator=seeded(1))
    torch.testing.assert_close(terms.loss, 0.5 * terms.error)


@both_laws
@every_sde
def test_one_tau_for_the_batch_and_no_time_below_it(sde, times):
    data, model = pair(sde)
    x = data.sample(16, generator=seeded(0))
    loss = soft(sde, times=times)
    generator = seeded(4)
    taus = set()
    for _ in range(20):
        terms = loss(model, x, generator=generator)
        assert terms.tau.shape == ()
        assert terms.tau.dtype == torch.float64
        assert terms.loss.shape == terms.t.shape == terms.error.shape == (16,)
        assert terms.tau <= terms.t.min()
        assert terms.t.max() <= 1
        taus.add(float(terms.tau))
    assert len(taus) == 20, "tau is to be drawn anew for every step"


def mixed_even(loss: SoftTruncationLoss) -> MixedLoss:
    variance = replace(loss, weighting=variance_weight(loss.sde))
    return MixedLoss(loss, variance, 1.0)


@unhindered
def test_tau_of_the_steps_follows_its_prior():
    # A Kolmogorov-Smirnov test fails by chance with probability 1e-4; the seed is fixed.
    loss, generator = soft(VPSDE(), prior=PowerPrior(1.1)), seeded(5)
    tau = torch.stack([loss.draw(1, generator=generator).tau for _ in range(3_000)])
    cdf = PowerPrior(1.1).cdf
    assert stats.kstest(tau.numpy(), lambda v: cdf(torch.from_numpy(v)).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("tau", [0.2, torch.tensor(0.2, dtype=torch.float64)], ids=["float", "0-d"])
def test_a_given_tau_is_kept(tau):
    data, model = pair(VPSDE())
    terms = soft(VPSDE())(model, data.sample(8, generator=seeded(0)), tau=tau, generator=seeded(1))
    assert terms.tau == 0.2
    assert terms.tau.dtype == torch.float64
    assert (terms.t >= 0.2).all()


@every_event
@both_laws
def test_parts_of_a_step_make_the_whole(times, event):
    """Micro-batches and processes that share one draw repeat the undivided batch."""
    sde = VPSDE()
    data, model = pair(sde, event)
    x = data.sample(12, generator=seeded(0))
    loss = SoftTruncationLoss(sde, PowerPrior(1), times(sde, stratified=True), variance_weight(sde))
    draw = loss.draw(12, generator=seeded(1))
    noise = random_normal(x.shape, generator=seeded(2), dtype=torch.float64)
    whole = loss(model, x, draw=draw, noise=noise)
    parts = [
        loss(model, x[a:b], draw=draw.part(a, b), noise=noise[a:b])
        for a, b in [(0, 5), (5, 6), (6, 12)]
    ]
    for name in ("loss", "t", "error"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-14, atol=0)
    assert {float(part.tau) for part in parts} == {float(whole.tau)}


def test_equal_generators_give_equal_losses():
    data, model = pair(VPSDE())
    x = data.sample(4, generator=seeded(0))
    loss = soft(VPSDE())
    first, again = (loss(model, x, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.loss, loss(model, x, generator=seeded(2)).loss)
    # The order is tau, times, noise: who draws the times apart may go on with the same generator.
    generator = seeded(1)
    draw = loss.draw(4, generator=generator)
    assert torch.equal(first.loss, loss(model, x, draw=draw, generator=generator).loss)
    state = torch.random.get_rng_state()
    loss(model, x, generator=seeded(1))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was touched"


def test_gradient_is_that_of_the_formula_and_reaches_every_parameter():
    sde = VPSDE()
    model = score_model(sde, torch.float64)
    x = pair(sde)[0].sample(6, generator=seeded(0))
    loss = soft(sde)
    draw = loss.draw(6, generator=seeded(1))
    noise = random_normal(x.shape, generator=seeded(2), dtype=torch.float64)
    parameters = list(model.parameters())
    terms = loss(model, x, draw=draw, noise=noise)
    assert not terms.t.requires_grad
    gradient = torch.autograd.grad(terms.loss.mean(), parameters)
    exact = torch.autograd.grad(
        direct(loss, model, "likelihood_weight", x, draw, noise).mean(), parameters
    )
    for g, e in zip(gradient, exact, strict=True):
        assert (g != 0).all()
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-12)


# Soft Truncation in expectation. The model is wrong, so that the loss has something to say; means
# are held against quadrature within 4 standard errors, which a right loss misses with probability
# 6e-5. About 40 comparisons are made, with fixed seeds.


@pytest.mark.parametrize("tau", [1e-3, 0.2])
@pytest.mark.parametrize(
    ("sde", "times"),
    # One SDE is enough to show that uniform times integrate.
    [(VPSDE(), UniformTimes), *((sde, ImportanceTimes) for sde in SDES)],
    ids=lambda v: getattr(v, "__name__", type(v).__name__),
)
@both_weights
@unhindered
def test_expected_loss_at_a_given_tau_is_the_integral(sde, weight, times, tau):
    data, model = pair(sde)
    loss = soft(sde, weight, times, reduction="sum")
    x = data.sample(20_000, generator=seeded(6))
    terms = loss(model, x, tau=tau, generator=seeded(7))
    exact = truncated_loss(data, model, weight(sde), tau)
    error = terms.loss.std() / 20_000**0.5
    assert (terms.loss.mean() - exact).abs() < 4 * error
    assert error < 0.2 * exact


def test_the_true_score_has_the_least_error():
    data, model = pair(VPSDE())
    t = torch.logspace(-5, 0, 50, dtype=torch.float64)
    best = expected_error(data, data, t)
    assert (best < expected_error(data, model, t)).all()
    # By Tweedie's formula the rest is the posterior variance of the noise.
    alpha, sigma = (v[:, None] for v in data.sde.marginal(t))
    signal = (alpha * data.std) ** 2
    torch.testing.assert_close(best, (signal / (signal + sigma**2)).sum(1))


@pytest.mark.parametrize(
    ("sde", "weight", "times"),
    [
        (VPSDE(), likelihood_weight, ImportanceTimes),
        (VPSDE(), likelihood_weight, UniformTimes),
        (VPSDE(), variance_weight, ImportanceTimes),
        (VPSDE(), variance_weight, UniformTimes),
        (VESDE(), likelihood_weight, ImportanceTimes),
        (ReciprocalVESDE(), likelihood_weight, ImportanceTimes),
    ],
    ids=lambda v: getattr(v, "__name__", type(v).__name__),
)
@unhindered
def test_soft_truncation_averages_to_the_prior_weighted_loss(sde, weight, times):
    data, model = pair(sde)
    prior = PowerPrior(1.1, eps=1e-3)
    x = data.sample(32_000, generator=seeded(8))

    loss, generator = soft(sde, weight, times, prior=prior, reduction="sum"), seeded(9)
    steps = torch.stack(
        [loss(model, part, generator=generator).loss.mean() for part in x.split(32)]
    )

    weighted = replace(
        loss, prior=HardTruncation(prior.eps), weighting=PriorWeight(loss.weighting, prior)
    )
    single = weighted(model, x, generator=generator).loss

    soft_error = steps.std() / len(steps) ** 0.5
    single_error = single.std() / len(single) ** 0.5
    exact = truncated_loss(data, model, weighted.weighting, prior.eps)
    assert (steps.mean() - exact).abs() < 4 * soft_error
    assert (single.mean() - exact).abs() < 4 * single_error
    combined = (soft_error**2 + single_error**2).sqrt()
    assert (steps.mean() - single.mean()).abs() < 4 * combined
    assert combined < 0.1 * exact


def mixed(sde: SDE, coefficient: float = 100.0, *, balanced: bool = False) -> MixedLoss:
    return MixedLoss(
        soft(sde),
        soft(sde, variance_weight, UniformTimes, reduction="mean"),
        coefficient,
        balanced,
    )


@every_event
def test_mixed_loss_is_the_sum_of_its_halves(event):
    sde = VPSDE()
    data, model = pair(sde, event)
    loss = mixed(sde, 100)
    x = data.sample(8, generator=seeded(0))
    draw = loss.draw(8, generator=seeded(1))
    assert (draw.t >= draw.tau).all()
    noise = random_normal(x.shape, generator=seeded(2), dtype=torch.float64)
    terms = loss(model, x, draw=draw, noise=noise)
    halves = []
    for i, half in enumerate((loss.likelihood, loss.variance)):
        own = draw._replace(t=draw.t[i::2], weight=draw.weight[i::2])
        halves.append(half(model, x[i::2], draw=own, noise=noise[i::2]))
    density, sample = halves
    torch.testing.assert_close(terms.loss.mean(), density.loss.mean() + 100 * sample.loss.mean())
    torch.testing.assert_close(terms.loss[0::2], 2 * density.loss)
    torch.testing.assert_close(terms.loss[1::2], 200 * sample.loss)
    torch.testing.assert_close(terms.error[0::2], density.error)
    torch.testing.assert_close(terms.error[1::2], sample.error)
    assert torch.equal(terms.t, draw.t)
    assert terms.tau == draw.tau


def test_mixed_draw_follows_both_laws_and_shares_tau():
    loss = mixed(VPSDE())
    draw = loss.draw(10_000, tau=0.01, generator=seeded(3))
    assert draw.tau == 0.01
    log_snr = loss.likelihood.sde.log_snr
    low, high = log_snr(torch.tensor([1.0, 0.01], dtype=torch.float64)).tolist()
    density = (high - log_snr(draw.t[0::2])) / (high - low)
    sample = (draw.t[1::2] - 0.01) / 0.99
    # Each fails by chance with probability 1e-4; the seed is fixed.
    assert stats.kstest(density.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-4
    torch.testing.assert_close(draw.weight[1::2], torch.full((5_000,), 0.99, dtype=torch.float64))


def test_expected_mixed_loss_is_the_sum_of_both_integrals():
    sde = VPSDE()
    data, model = pair(sde)
    loss = mixed(sde, 3.0)
    x = data.sample(40_000, generator=seeded(4))
    values = loss(model, x, tau=0.01, generator=seeded(5)).loss
    exact = truncated_loss(data, model, likelihood_weight(sde), 0.01)
    exact = (exact + 3 * truncated_loss(data, model, variance_weight(sde), 0.01)) / 2  # D = 2
    error = values.reshape(-1, 2).mean(1).std() / 20_000**0.5
    assert (values.mean() - exact).abs() < 4 * error


def test_balanced_mixture_sets_the_proportion_without_gradient():
    sde = VPSDE()
    model = score_model(sde, torch.float64)
    loss = mixed(sde, 0.01, balanced=True)
    x = pair(sde)[0].sample(8, generator=seeded(0))
    draw = loss.draw(8, generator=seeded(1))
    noise = random_normal(x.shape, generator=seeded(2), dtype=torch.float64)
    parameters = list(model.parameters())

    def half(i: int, part: SoftTruncationLoss) -> Tensor:
        own = draw._replace(t=draw.t[i::2], weight=draw.weight[i::2])
        return part(model, x[i::2], draw=own, noise=noise[i::2]).loss

    density, sample = half(0, loss.likelihood), half(1, loss.variance)
    scale = 0.01 * float((density / sample).detach().mean())
    exact = density.mean() + scale * sample.mean()
    total = loss(model, x, draw=draw, noise=noise).loss.mean()
    torch.testing.assert_close(total, exact)
    for g, e in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(exact, parameters), strict=True
    ):
        torch.testing.assert_close(g, e)


def test_parts_of_a_mixed_step_make_the_whole():
    sde = VPSDE()
    data, model = pair(sde)
    x = data.sample(12, generator=seeded(0))
    loss = mixed(sde)
    draw = loss.draw(12, generator=seeded(1))
    noise = random_normal(x.shape, generator=seeded(2), dtype=torch.float64)
    whole = loss(model, x, draw=draw, noise=noise).loss
    parts = [
        loss(model, x[a:b], draw=draw.part(a, b), noise=noise[a:b]).loss
        for a, b in [(0, 4), (4, 12)]
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=0)


@dataclass(frozen=True)
class LatePrior(HardTruncation):
    """A law of tau of a user's own that leaves no time to look at."""

    def __post_init__(self) -> None: ...


@unhindered
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: soft(VPSDE(), reduction="avg"),
            r"""reduction 'avg' is unknown: write "mean" or""",
        ),
        (
            lambda: replace(soft(VPSDE()), times=UniformTimes(VESDE())),
            r"times were made for VESDE.*the loss for VPSDE",
        ),
        (lambda: replace(soft(VPSDE()), prior=LatePrior(1.0)), r"eps=1\.0: need eps < T"),
        (lambda: soft(VPSDE()).draw(2, tau=0.0), r"tau=0\.0: need 0 < tau < T"),
        (lambda: soft(VPSDE()).draw(2, tau=1.0), r"tau=1\.0"),
        (lambda: soft(VPSDE()).draw(2, tau=float("nan")), r"tau=nan"),
        (lambda: mixed(VPSDE()).draw(4, tau=1.0), r"tau=1\.0"),
        (lambda: mixed(VPSDE()).draw(7), r"batch of 7 .* even batch size"),
        (lambda: mixed(VPSDE(), 0.0), r"MixedLoss: coefficient=0\.0: need a number > 0"),
        (lambda: mixed(VPSDE(), float("nan")), r"coefficient=nan"),
        (
            lambda: MixedLoss(soft(VPSDE()), soft(VESDE()), 1.0),
            r"MixedLoss: both halves need the same SDE",
        ),
        (
            lambda: MixedLoss(soft(VPSDE()), soft(VPSDE(), prior=PowerPrior(2)), 1.0),
            r"the same prior of tau",
        ),
        (
            lambda: MixedLoss(soft(VPSDE()), soft(VPSDE(), reduction="sum"), 1.0),
            r"the same reduction",
        ),
    ],
)
def test_a_mistaken_loss_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drawn", [False, True])
def test_an_odd_batch_has_no_two_halves(drawn):
    data, model = pair(VPSDE())
    loss = mixed(VPSDE())
    draw = loss.draw(6, generator=seeded(0)).part(0, 3) if drawn else None
    with pytest.raises(ValueError, match=r"batch of 3 .* even batch size"):
        loss(model, data.sample(3, generator=seeded(1)), draw=draw, generator=seeded(2))


def test_losses_are_values():
    assert soft(VPSDE()) == soft(VPSDE())
    assert mixed(VPSDE()) == mixed(VPSDE())
    assert soft(VPSDE()) != soft(VPSDE(), reduction="sum")


# The loss over its running error. Gaussians again, so that the error at each time is known.


class Wrapped(nn.Module):
    """As data parallelism wraps: the model is `.module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@unhindered
def test_a_wrapped_model_is_refused_with_what_to_write():
    model = ScoreModel(nn.Identity(), VPSDE())
    with pytest.raises(TypeError, match=r"inside Wrapped.*LossModule\(model, loss\)"):
        soft(VPSDE())(Wrapped(model), torch.zeros(2, 3))


@unhindered
@pytest.mark.parametrize(
    ("sde", "x", "words"),
    [
        (VPSDE(), torch.zeros(2, 3, dtype=torch.uint8), r"torch.uint8.*x / 127.5 - 1"),
        (VESDE(), torch.zeros(2, 3, dtype=torch.int64), r"torch.int64.*x / 255"),
        (VPSDE(), torch.tensor([[0.0, 12.5, 251.25]]), r"0 to 251.25.*\[-1, 1\].*x / 127.5 - 1"),
        (VESDE(), torch.tensor([[3.0, 60.0, 255.0]]), r"3 to 255.*\[0, 1\].*x / 255 for"),
    ],
)
def test_images_as_they_are_stored_are_refused(sde, x, words):
    model = Gaussian(sde, torch.zeros(3), torch.ones(3))
    with pytest.raises((TypeError, ValueError), match=words):
        soft(sde)(model, x)


def test_wide_data_are_no_images_of_256_levels():
    """Negative values, or a range that says so: latents, or data in other units."""
    model = Gaussian(VPSDE(), torch.zeros(3), torch.ones(3))
    soft(VPSDE())(model, torch.tensor([[-40.0, 3.0, 90.0]]))
    wide = ScoreModel(Body(), VPSDE(), value_range=(0.0, 255.0))
    soft(VPSDE())(wide, torch.tensor([[0.0, 250.0]]))
