import itertools
import math

import pytest
import torch
from exact import Mixture

from softtrunc import VPSDE
from softtrunc.density import (
    Dequantizer,
    bits_per_dim,
    dequantize,
    mean_with_error,
    train_dequantizer,
)

DOUBLE = {"dtype": torch.float64}
LEVELS = 4


def shaken(event, levels=LEVELS, layers=3):
    """A dequantizer that is far from uniform, as if trained."""
    torch.manual_seed(0)
    flow = Dequantizer(event, levels=levels, layers=layers, width=12).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if len(event) == 1 else 0.12)
    return flow


EVENTS = [(1,), (3,), (1, 3, 3), (3, 2, 2)]


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_log_density_against_the_jacobian(event):
    """Uniform numbers have density 1: what becomes of them has that of the inverse determinant."""
    flow = shaken(event)
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(LEVELS, (4, *event), generator=generator)
    uniform = torch.rand((4, *event), generator=generator, **DOUBLE)
    found = flow.transform(uniform, levels)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda u, i=i: flow.transform(u[None], levels[i : i + 1]).noise[0], uniform[i]
        ).reshape(uniform[i].numel(), -1)
        truth = -torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(found.log_prob[i], truth, rtol=1e-9, atol=1e-9)
    assert found.log_prob.abs().min() > 0.05


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_the_way_back_leads_to_the_same_density(event):
    flow = shaken(event)
    levels = torch.randint(LEVELS, (20, *event), generator=torch.Generator().manual_seed(2))
    drawn = flow.draw(levels, seeds=range(20))
    assert ((drawn.noise > 0.0) & (drawn.noise < 1.0)).all()
    torch.testing.assert_close(
        flow.log_prob(drawn.noise, levels), drawn.log_prob, rtol=1e-6, atol=1e-6
    )
    some = flow.draw(levels[[7, 3]], seeds=[7, 3])
    torch.testing.assert_close(some.noise, drawn.noise[[7, 3]])


def test_the_density_integrates_to_one():
    """On a grid of logits, since much of the mass may lie close to the edges."""
    flow = shaken((2,))
    axis = torch.linspace(-18.0, 18.0, 361, **DOUBLE)
    logits = torch.cartesian_prod(axis, axis)
    u = torch.sigmoid(logits)
    area = (u * (1.0 - u)).prod(1) * float(axis[1] - axis[0]) ** 2
    for x in ([0, 3], [2, 1]):
        with torch.no_grad():
            density = flow.log_prob(u, torch.tensor([x]).expand(len(u), 2)).exp()
        assert float((density * area).sum()) == pytest.approx(1.0, abs=1e-3)
        assert float(((density - 1.0).abs() * area).sum()) > 0.3  # far from uniform


def test_it_begins_as_uniform_dequantisation():
    flow = Dequantizer((1, 4, 4), levels=17)
    levels = torch.randint(17, (5, 1, 4, 4))
    drawn = flow.draw(levels, generator=torch.Generator().manual_seed(0))
    assert (drawn.log_prob == 0.0).all()
    uniform = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(flow.transform(uniform, levels).noise, uniform)
    assert flow.describe()["training_steps"] == 0


@pytest.fixture(scope="module")
def toy():
    """Two dimensions of four levels; the model's density has peaks far narrower than a cell."""
    means = torch.tensor([[-0.75, 0.2], [0.3, -0.2], [0.8, 0.75]], **DOUBLE)
    weights = torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
    return Mixture(VPSDE(), means, torch.tensor([0.06, 0.1, 0.08], **DOUBLE), weights)


def cell_bits(toy, levels):
    """-log2 of the probability that the density gives to each cell, per dimension."""
    edges = torch.linspace(-1.0, 1.0, LEVELS + 1, **DOUBLE)
    edges[0], edges[-1] = -1.0, 1.0
    total = torch.zeros(len(levels), **DOUBLE)
    for mean, std, weight in zip(toy.means, toy.stds, toy.weights, strict=True):
        law = torch.distributions.Normal(mean, std)
        mass = law.cdf(edges[levels + 1]) - law.cdf(edges[levels])
        total += weight * mass.prod(1)
    return -total.log2() / 2


def bound_bits(toy, flow, levels, generator):
    """`-log p(x + u) + log q(u | x)` with the model's exact density at a very small time."""
    drawn = flow.draw(levels, generator=generator)
    y = dequantize(levels, LEVELS, noise=drawn.noise, dtype=torch.float64)
    nats = -toy.log_prob(y, torch.tensor(1e-9, **DOUBLE)) + drawn.log_prob
    return bits_per_dim(nats, 2, levels=LEVELS)


def data(toy, n, generator):
    y = toy.sample(n, generator=generator).clamp(-0.999, 0.999)
    return ((y + 1.0) * LEVELS / 2.0).floor().long()


def test_the_bound_is_never_better_than_the_truth(toy):
    """For every pair of levels and dequantizers of any kind; one-sided, 3 standard errors."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    for flow in (Dequantizer((2,), levels=LEVELS).double(), shaken((2,))):
        for pair in itertools.product(range(LEVELS), repeat=2):
            levels = torch.tensor([pair]).expand(300, 2)
            truth = float(cell_bits(toy, levels[:1]))
            mean, error, _ = mean_with_error(bound_bits(toy, flow, levels, generator))
            assert mean > truth - 3 * error


def test_training_tightens_a_loose_bound(toy):
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(0)
    flow = Dequantizer((2,), levels=LEVELS, layers=2, width=24)
    held_out = data(toy, 2000, generator)
    truth = float(cell_bits(toy, held_out).mean())
    uniform = mean_with_error(bound_bits(toy, flow, held_out, generator))

    def batches():
        while True:
            yield data(toy, 128, generator)

    losses = list(train_dequantizer(flow, toy, batches(), steps=250, learning_rate=1e-2))
    assert sum(losses[-50:]) < sum(losses[:50])
    assert flow.describe()["training_steps"] == 250
    learned = mean_with_error(bound_bits(toy, flow, held_out, generator))
    assert uniform.mean - truth > 1.0
    assert truth - 3 * learned.standard_error < learned.mean < truth + 0.35
    assert learned.standard_error < 0.5 * uniform.standard_error


def test_the_model_is_frozen_while_the_dequantizer_learns():
    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.sde = VPSDE()

        def score(self, x, t):
            return -self.layer(x)

    body = Body()
    before = body.layer.weight.detach().clone()
    flow = Dequantizer((2,), levels=LEVELS)
    steps = train_dequantizer(flow, body, itertools.repeat(torch.zeros(8, 2).long()), steps=3)
    next(steps)
    assert not body.layer.weight.requires_grad
    list(steps)
    assert body.layer.weight.requires_grad
    assert body.layer.weight.grad is None
    assert torch.equal(body.layer.weight, before)
    # Runs repeat by their seed.
    torch.manual_seed(0)
    flows = [Dequantizer((2,), levels=LEVELS) for _ in range(2)]
    flows[1].load_state_dict(flows[0].state_dict())
    losses = [
        list(train_dequantizer(f, body, itertools.repeat(torch.ones(8, 2).long()), steps=3))
        for f in flows
    ]
    assert losses[0] == losses[1]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"need \(D,\) or \(C, H, W\)"):
        Dequantizer((2, 2))
    with pytest.raises(ValueError, match="layers >= 0"):
        Dequantizer((2,), layers=-1)
    flow = Dequantizer((2,), levels=LEVELS)
    with pytest.raises(ValueError, match="allows 0 to 3"):
        flow.draw(torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match=r"examples of shape \(2,\)"):
        flow.draw(torch.zeros(1, 3).long())
    rate = {"steps": 1, "learning_rate": 1e-3}
    broken = Mixture(VPSDE(), torch.full((1, 2), math.nan), torch.ones(1), torch.ones(1))
    with pytest.raises(ArithmeticError, match="lower its learning rate"):
        list(train_dequantizer(flow, broken, itertools.repeat(torch.zeros(4, 2).long()), **rate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_at_their_ends_become_finite_noise(dtype):
    flow = Dequantizer((3,), levels=17, layers=1, width=4).to(dtype)
    shown = torch.full((2, 3), 16)
    ends = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 0.0]], dtype=dtype)
    drawn = flow.transform(ends, shown)
    assert bool(drawn.log_prob.isfinite().all())
    assert bool(((drawn.noise >= 0.0) & (drawn.noise <= 1.0)).all())
    closest = max(1e-9, 0.5 * torch.finfo(dtype).eps)
    kept = torch.tensor([[closest, 0.5, 1.0 - closest]], dtype=dtype)
    assert torch.equal(drawn.noise[:1], flow.transform(kept, shown[:1]).noise)
    # Nearer to 1 than float32 tells: a number of float64 all the same.
    near = torch.full((1, 3), 1.0 - 1e-8, dtype=torch.float64)
    assert bool(flow.log_prob(near, shown[:1]).isfinite().all())
