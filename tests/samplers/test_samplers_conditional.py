"""Latents, and sampling with a part held in place."""

from __future__ import annotations

import pytest
import torch
from exact import Mixture
from sampler_cases import SDES, gaussian, generator, mixture

from softtrunc.samplers import (
    DPMSolver,
    PredictorCorrector,
    ProbabilityFlow,
    colorize,
    decode,
    encode,
    inpaint,
    slerp,
)
from softtrunc.sde import VESDE, VPSDE


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_encode_is_the_exact_flow_and_decode_its_inverse(sde):
    truth = gaussian(sde, 16)
    x = truth.sample(20, generator=generator())
    flow = ProbabilityFlow(rtol=1e-7, atol=1e-7)
    latent = encode(truth, x, flow=flow)
    times = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_end, sde.t_max))
    exact = truth.flow_map(x, *times)
    torch.testing.assert_close(latent.x, exact, rtol=1e-5, atol=1e-5 * sde.prior_std)
    torch.testing.assert_close(decode(truth, latent.x, flow=flow).x, x, rtol=1e-5, atol=1e-5)


def test_round_trip_of_a_mixture_at_the_default_tolerance():
    truth = mixture(VPSDE())
    x = truth.sample(200, generator=generator()).float()
    back = decode(truth, encode(truth, x).x).x
    assert back.dtype == torch.float32
    assert (back - x).abs().median() < 1e-4
    assert (back - x).abs().max() < 2e-2


def test_slerp_stays_on_the_sphere_and_meets_its_ends():
    a, b = torch.randn(2, 5, 3, 4, generator=generator(), dtype=torch.float64)
    a, b = (v / v.flatten(1).norm(dim=1)[:, None, None] for v in (a, b))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.3)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(5).double())
    cosine = (a * middle).flatten(1).sum(1)
    torch.testing.assert_close(cosine.acos(), 0.3 * (a * b).flatten(1).sum(1).acos())
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def two_points(sde, shape):
    """Data near all -1 or all +1, so that a part tells the whole."""
    means = torch.stack([-torch.ones(shape), torch.ones(shape)]).double()
    return Mixture(sde, means, torch.tensor([0.1, 0.1]).double(), torch.tensor([0.5, 0.5]).double())


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
@pytest.mark.parametrize(
    "sampler",
    [PredictorCorrector(steps=100), DPMSolver(steps=60, stochastic=True)],
    ids=["pc", "dpm"],
)
def test_inpainting_keeps_what_is_known_and_agrees_with_it(sde, sampler):
    model = two_points(sde, (1, 2, 4))
    known = torch.ones(60, 1, 2, 4)
    known[:30] = -1.0
    mask = torch.tensor([True, True, False, False])
    x = inpaint(sampler, model, known, mask, generator=generator()).x
    assert torch.equal(x[..., :2], known[..., :2])
    agrees = (x[..., 2:].sign() == known[..., 2:].sign()).flatten(1).all(1)
    assert agrees.double().mean() > 0.95
    # Without the held part every second sample would disagree.
    free = sampler.sample(model, known.shape, generator=generator()).x
    assert (free[:30].mean((1, 2, 3)) > 0).double().mean() > 0.2


def test_what_is_outside_the_mask_is_not_read():
    model = two_points(VPSDE(), (4,))
    known = torch.ones(3, 4)
    mask = torch.tensor([True, True, False, False])
    spoilt = torch.where(mask, known, torch.nan)
    a, b = (
        inpaint(DPMSolver(stochastic=True), model, k, mask, seeds=[1, 2, 3]).x
        for k in (known, spoilt)
    )
    assert torch.equal(a, b)


def test_a_seeded_conditional_sample_does_not_depend_on_its_batch():
    model, mask = two_points(VPSDE(), (4,)), torch.tensor([True, False, False, False])
    sampler, known = PredictorCorrector(steps=20), torch.ones(3, 4)
    together = inpaint(sampler, model, known, mask, seeds=[1, 2, 3]).x
    alone = inpaint(sampler, model, known[1:2], mask, seeds=[2]).x
    torch.testing.assert_close(alone, together[1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_colourisation_keeps_the_grey_value_and_finds_the_colours(sde):
    # Two colours of different brightness: the grey value tells which.
    colours = torch.tensor([[0.9, 0.3, 0.6], [-0.8, -0.2, -0.6]], dtype=torch.float64)
    means = colours[:, :, None, None].expand(2, 3, 2, 2)
    model = Mixture(
        sde, means, torch.tensor([0.1, 0.1]).double(), torch.tensor([0.5, 0.5]).double()
    )
    which = torch.arange(40) % 2
    gray = means[which].mean(1, keepdim=True).float()
    x = colorize(PredictorCorrector(steps=100), model, gray, generator=generator()).x
    torch.testing.assert_close(x.mean(1, keepdim=True), gray, rtol=1e-5, atol=1e-5)
    assert ((x - means[which]).square().mean((1, 2, 3)).sqrt() < 0.2).double().mean() > 0.95


class Watched:
    """A model that keeps what it is shown."""

    def __init__(self, model):
        self.model, self.sde, self.seen = model, model.sde, []

    def score(self, x, t):
        self.seen.append((x, t))
        return self.model.score(x, t)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_the_held_part_carries_the_noise_of_its_time(sde):
    # 3000 draws: standard errors of 1.3 % in the spread and 1.8 % in the mean, bounds at 4 of them.
    model = Watched(two_points(sde, (3, 1, 1)))
    sampler, half = DPMSolver(steps=8), torch.full((3000, 1, 1, 1), 0.5)
    mask = torch.tensor([True, False, False])[:, None, None]
    inpaint(sampler, model, half.expand(3000, 3, 1, 1), mask, generator=generator())
    inpainted, model.seen = model.seen[1:], []
    colorize(sampler, model, half, generator=generator())
    for seen, held, share in (
        (inpainted, lambda x: x[:, 0], 1.0),
        (model.seen[1:], lambda x: x.mean(1), 3**-0.5),
    ):
        assert len(seen) == 7
        for x, t in seen:
            alpha, sigma = (float(v[0]) for v in sde.marginal(t))
            z = (held(x) - 0.5 * alpha) / (share * sigma)
            assert abs(z.mean()) < 0.075
            assert z.std() == pytest.approx(1.0, abs=0.055)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: inpaint(DPMSolver(), m, x, torch.ones(4)), "bool"),
        (lambda m, x: inpaint(DPMSolver(), m, x, torch.ones(3, dtype=torch.bool)), "does not fit"),
        (lambda m, x: inpaint(ProbabilityFlow(), m, x, torch.ones(4).bool()), "fixed-step"),
        (lambda m, x: colorize(DPMSolver(), m, torch.zeros(2, 3, 4, 4)), "batch, 1"),
        (lambda m, x: colorize(DPMSolver(), m, torch.zeros(2, 1, 4), channels=1), "at least 2"),
        (lambda m, x: encode(m, x.half()), "float32"),
        (lambda m, x: decode(m, x[0]), "batch"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(two_points(VPSDE(), (4,)), torch.ones(2, 4))
