"""A model that is told something: bound, guided, in parts and in any order.

The truth is a mixture in the plane whose label chooses the component: what a network would say of a
label, and of none, is known in closed form.
"""

import pytest
import torch
from exact import Gaussian, Mixture
from torch import Tensor, nn

from softtrunc import (
    VPSDE,
    HardTruncation,
    ImportanceTimes,
    ScoreModel,
    SoftTruncationLoss,
    guided,
    likelihood_weight,
)
from softtrunc.density import nelbo, probability_flow_nll
from softtrunc.samplers import Chimera, DPMSolver, Heun, ProbabilityFlow, autocast_score, encode
from softtrunc.sde import expand_to

SDE = VPSDE()
MEANS = torch.tensor([[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], dtype=torch.float64)
STDS = torch.tensor([0.05, 0.2, 0.1], dtype=torch.float64)
ALL = Mixture(SDE, MEANS, STDS, torch.full((3,), 1 / 3, dtype=torch.float64))
LABELS = torch.tensor([2, 0, 1, 1, 0, 2])


class Exact(nn.Module):
    """Called as a network is: the noise of the component y, or of the mixture without a label."""

    def forward(self, x: Tensor, label: Tensor, y: Tensor | None = None, scale: float = 1.0):
        t = label / 999.0
        sigma = expand_to(SDE.marginal(t).sigma, x)
        if y is None:
            return -sigma * ALL.score(x, t)
        assert len(y) == len(x)
        alpha = expand_to(SDE.marginal(t).alpha, x)
        variance = (alpha * expand_to(STDS[y], x)).square() + sigma.square()
        return sigma * (x - scale * alpha * MEANS[y]) / variance


MODEL = ScoreModel(Exact(), SDE)


def component(k: int) -> Gaussian:
    return Gaussian(SDE, MEANS[k], STDS[k].expand(2))


def data(labels: Tensor) -> Tensor:
    z = torch.randn(len(labels), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return MEANS[labels] + STDS[labels, None] * z


X = data(LABELS)
T = torch.linspace(1e-3, 1.0, len(X), dtype=torch.float64)


def test_a_bound_model_is_the_component_and_an_unbound_one_the_mixture():
    score = MODEL.given(y=LABELS).score(X, T)
    for i, k in enumerate(LABELS):
        torch.testing.assert_close(score[i : i + 1], component(k).score(X[i : i + 1], T[i : i + 1]))
    torch.testing.assert_close(MODEL.given().score(X, T), ALL.score(X, T))
    torch.testing.assert_close(MODEL.score(X, T, y=LABELS), score)
    bound = MODEL.given(y=LABELS)
    alpha, sigma = (expand_to(v, X) for v in SDE.marginal(T))
    torch.testing.assert_close(bound.denoise(X, T), (X - sigma * bound.noise(X, T)) / alpha)


def test_rows_take_what_belongs_to_examples_and_leave_what_is_for_all():
    index = torch.tensor([4, 1, 1, 3])
    tables = {"table": torch.zeros(7, 3), "one": torch.zeros(1, 6), "word": "cat", "w": 2.0}
    part = MODEL.given(y=LABELS, **tables).rows(index, 6)
    assert part.condition["y"].tolist() == [0, 0, 0, 1]
    assert {name: part.condition[name] for name in tables} == tables
    alone = MODEL.given(y=LABELS, one=tables["one"], w=2.0).rows(index)
    assert alone.condition["y"].tolist() == [0, 0, 0, 1]
    assert MODEL.given(y=LABELS[:1]).rows(torch.zeros(3, dtype=torch.int64)).condition[
        "y"
    ].shape == (3,)
    with pytest.raises(ValueError, match=r"y has 6, table has 7.*leading 1"):
        MODEL.given(y=LABELS, **tables).rows(index)


def test_the_loss_of_a_bound_model_is_that_of_its_components():
    loss = SoftTruncationLoss(SDE, HardTruncation(), ImportanceTimes(SDE), likelihood_weight(SDE))
    draw = loss.draw(6, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = loss(MODEL.given(y=LABELS), X, draw=draw, noise=noise).loss
    for i, k in enumerate(LABELS):
        row = slice(i, i + 1)
        alone = loss(component(k), X[row], draw=draw.part(i, i + 1), noise=noise[row]).loss
        torch.testing.assert_close(together[row], alone)


@pytest.mark.parametrize("measure", [probability_flow_nll, nelbo])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_densities_are_of_the_own_component_in_any_order(measure, chunk_size):
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    flow = measure is probability_flow_nll
    options = {"data_std": 0.2, "rtol": 1e-3, "atol": 1e-3} if flow else {}
    here = measure(MODEL.given(y=LABELS), X, seeds=range(6), chunk_size=chunk_size, **options)
    there = measure(
        MODEL.given(y=LABELS[order]), X[order], seeds=order, chunk_size=chunk_size, **options
    )
    torch.testing.assert_close(here.nats[order], there.nats, rtol=1e-6, atol=1e-5)
    for i, k in enumerate(LABELS):
        alone = measure(component(k), X[i : i + 1], seeds=[i], **options)
        torch.testing.assert_close(here.nats[i], alone.nats[0], rtol=1e-6, atol=1e-5)


def test_the_likelihood_of_the_own_component_is_the_exact_one():
    model = MODEL.given(y=LABELS)
    found = probability_flow_nll(model, X, residual=False, divergence="exact", rtol=1e-4, atol=1e-4)
    low = torch.tensor(1e-5, dtype=torch.float64)
    truth = torch.cat([component(k).log_prob(X[i : i + 1], low) for i, k in enumerate(LABELS)])
    # At T the components still lie alpha = 0.0066 away from the standard normal.
    torch.testing.assert_close(-found.nats, truth, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "sampler",
    [DPMSolver(steps=25, order=3), Heun(steps=20), ProbabilityFlow(rtol=1e-4, atol=1e-4)],
    ids=lambda s: type(s).__name__,
)
def test_samples_are_of_their_labels_and_depend_on_nothing_else(sampler):
    """Each of 300 samples lies within 5.5 spreads of its component: wrong once in 1e4 runs."""
    labels = torch.arange(300) % 3
    options = {"dtype": torch.float64}
    drawn = sampler.sample(MODEL.given(y=labels), (300, 2), seeds=range(300), **options).x
    assert ((drawn - MEANS[labels]) / STDS[labels, None]).norm(dim=1).max() < 5.5
    part = torch.tensor([299, 4, 31])
    alone = sampler.sample(MODEL.given(y=labels[part]), (3, 2), seeds=part.tolist(), **options).x
    torch.testing.assert_close(drawn[part], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.5])
def test_guidance_is_the_formula_of_the_two_exact_scores(scale):
    own = torch.cat([component(k).score(X[i : i + 1], T[i : i + 1]) for i, k in enumerate(LABELS)])
    exact = (1 + scale) * own - scale * ALL.score(X, T)
    model = guided(MODEL, scale, {"y": LABELS})
    torch.testing.assert_close(model.score(X, T), exact)
    index = torch.tensor([5, 0, 2])
    torch.testing.assert_close(model.rows(index).score(X[index], T[index]), exact[index])


def test_guidance_applies_within_its_interval_alone():
    sigma = SDE.marginal(T).sigma
    low, high = float(sigma[1]), float(sigma[3])
    model = guided(MODEL, 2.0, {"y": LABELS}, interval=(low, high))
    plain, full = MODEL.given(y=LABELS).score(X, T), guided(MODEL, 2.0, {"y": LABELS}).score(X, T)
    inside = ((low <= sigma) & (sigma <= high))[:, None]
    assert inside.sum() == 3
    torch.testing.assert_close(model.score(X, T), torch.where(inside, full, plain))
    asked = []
    hook = MODEL.network.register_forward_hook(lambda *_: asked.append(1))
    model.score(X, T[5])
    hook.remove()
    assert len(asked) == 1


@pytest.mark.parametrize(("scale", "interval"), [(float("nan"), None), (1.0, (0.5, 0.5))])
def test_guidance_that_makes_no_sense_is_refused(scale, interval):
    with pytest.raises(ValueError, match="guided: "):
        guided(MODEL, scale, {"y": LABELS}, interval=interval)


def test_every_wrapper_hands_on_the_right_rows():
    """The flow's solver asks for the examples still under way: narrow components take longer."""
    bound = MODEL.given(y=LABELS)
    flow = ProbabilityFlow(rtol=1e-2, atol=1e-2)
    seeds, options = list(range(6)), {"dtype": torch.float64}
    plain = flow.sample(bound, (6, 2), seeds=seeds, **options).x
    for wrapped in (
        Chimera(bound, bound, 0.3),
        autocast_score(bound),
        guided(MODEL, 0.0, {"y": LABELS}),
    ):
        drawn = flow.sample(wrapped, (6, 2), seeds=seeds, **options).x
        torch.testing.assert_close(drawn, plain, rtol=1e-5, atol=1e-5)
    hooked = flow.sample(MODEL, (6, 2), seeds=seeds, score_fn=autocast_score(bound), **options).x
    torch.testing.assert_close(hooked, plain, rtol=1e-5, atol=1e-5)
    latents = encode(bound, X, score_fn=autocast_score(bound)).x
    torch.testing.assert_close(latents, encode(bound, X).x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"rows\(index\)"):
        flow.sample(bound, (6, 2), seeds=seeds, score_fn=lambda x, t: bound.score(x, t), **options)
