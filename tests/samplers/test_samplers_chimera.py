import math

import pytest
import torch
from exact import Spoiled
from sampler_cases import SAMPLERS, SDES, gaussian, generator
from torch import nn

from softtrunc import VESDE, VPSDE, ScoreModel
from softtrunc.density import nelbo, probability_flow_nll
from softtrunc.samplers import (
    Chimera,
    DPMSolver,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    sample_from,
)


class Net(nn.Module):
    """A small network with dropout and parameters, whose rounding may depend on the batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(13, 64), nn.Linear(64, 12)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, label):
        hidden = torch.cat([x, label[:, None] / 1000], dim=1)
        return self.second(self.dropout(torch.relu(self.first(hidden))))


def network(seed: int = 0, sde=None) -> ScoreModel:
    return ScoreModel(Net(seed), sde or VPSDE())


FEW = {
    "dpm": DPMSolver(steps=12),
    "heun": Heun(steps=8),
    "pc": PredictorCorrector(steps=15),
    "flow": ProbabilityFlow(rtol=1e-3, atol=1e-3),
}


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("name", FEW)
def test_a_chimera_of_a_model_with_itself_is_the_model(name, t):
    model, sampler = network(), FEW[name]
    seeds = range(5)
    alone = sampler.sample(model, (5, 12), seeds=seeds)
    both = sampler.sample(Chimera(model, model, t), (5, 12), seeds=seeds)
    copy = sampler.sample(Chimera(model, network(), t), (5, 12), seeds=seeds)
    assert torch.equal(both.x, alone.x)
    assert torch.equal(copy.x, alone.x)
    assert both.nfe == alone.nfe
    assert model.training


def test_densities_of_a_chimera_of_a_model_with_itself():
    model = network().eval()
    chimera = Chimera(model, model, 0.3)
    x = torch.randn(4, 12, generator=generator(0))
    bounds = [nelbo(m, x, draws=8, seeds=range(4)).nats for m in (model, chimera)]
    assert torch.equal(*bounds)
    flows = [
        probability_flow_nll(m, x, rtol=0.05, atol=0.05, seeds=range(4)).nats
        for m in (model, chimera)
    ]
    assert torch.equal(*flows)


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_each_time_is_asked_of_its_own(t):
    above, below = network(1).eval(), network(2).eval()
    chimera = Chimera(above, below, t)
    x = torch.randn(6, 12, generator=generator(0))
    times = torch.tensor([1e-5, 0.2, 0.4, 0.41, 0.9, 1.0])
    found = chimera.score(x, times)
    high = (times > t)[:, None]
    assert torch.equal(found, torch.where(high, above.score(x, times), below.score(x, times)))
    for time in times:
        one = (above if time > t else below).score(x, time)
        assert torch.equal(chimera.score(x, time), one)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", ["dpm2", "heun", "flow", "pc", "ancestral", "euler_maruyama"])
def test_every_sampler_takes_one_of_exact_models(sde, name):
    model = gaussian(sde, 8)
    samples = SAMPLERS[name].sample(Chimera(model, model, 0.5), (3, 8), seeds=range(3))
    assert torch.equal(samples.x, SAMPLERS[name].sample(model, (3, 8), seeds=range(3)).x)


@pytest.mark.parametrize("spoiled_above", [True, False])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_a_spoiled_score_shows_on_its_side_of_the_curve(sde, spoiled_above):
    """Where one model takes over says which of its times are the bad ones."""
    exact, sampler, middle = gaussian(sde, 8), DPMSolver(steps=50), 1.0
    ends = (-math.inf, middle) if spoiled_above else (middle, math.inf)
    spoiled = Spoiled(exact, *ends)
    log_snr = torch.tensor([6.0, 4.5, 3.0, 1.5, 0.5, -1.0, -2.5, -4.0], dtype=torch.float64)
    times = sde.time_of_log_snr(log_snr).tolist()  # rising; four below t*, four above it

    def draw(model):
        return sampler.sample(model, (64, 8), seeds=range(64)).x

    def distances(samples):
        return torch.stack([(x - truth).square().mean().sqrt() for x in samples])

    truth, bad = draw(exact), draw(spoiled)
    worst = float(distances([bad]))
    assert worst > 0.01
    for above in (exact, spoiled):
        below = spoiled if above is exact else exact
        drawn = [draw(Chimera(above, below, t)) for t in times]
        found = distances(drawn)
        # No spoiled time is asked of the other model, or all are: which depends on the side of t*.
        same, moving = (slice(0, 4), slice(4, 8)) if spoiled_above else (slice(4, 8), slice(0, 4))
        end = bad if (above is spoiled) == spoiled_above else truth
        for x in drawn[same]:
            assert torch.equal(x, end)
        # The larger t, the more times are the lower model's.
        steps = found[moving].diff() * (1.0 if below is spoiled else -1.0)
        assert (steps > 0.02 * worst).all()
        assert ((found[moving] > 0.0) & (found[moving] < worst)).all()


def test_refusals():
    with pytest.raises(ValueError, match="same SDE"):
        Chimera(network(), gaussian(VESDE(), 12), 0.5)
    narrow = ScoreModel(Net(), VPSDE(), value_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="same value_range"):
        Chimera(network(), narrow, 0.5)
    with pytest.raises(ValueError, match=r"t=1\.5"):
        Chimera(network(), network(), 1.5)
    assert Chimera(network(), gaussian(VPSDE(), 12), 0.5).value_range == (-1.0, 1.0)


@pytest.mark.parametrize("name", FEW)
def test_starting_at_the_top_is_sampling(name):
    model, sampler = network(), FEW[name]
    x = torch.randn(5, 12, generator=generator(1))
    whole = sampler.sample(model, (5, 12), x_init=x, seeds=range(5))
    assert torch.equal(sample_from(sampler, model, x, 1.0, seeds=range(5)).x, whole.x)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_starting_in_the_middle_keeps_the_law(sde):
    model = gaussian(sde, 4)
    t = float(sde.time_of_log_snr(torch.tensor(0.0, dtype=torch.float64)))
    at = torch.tensor(t, dtype=torch.float64)
    x = model.sample(4000, generator=generator(2))
    x_t = sde.perturb(x, at, torch.randn(x.shape, generator=generator(3), dtype=x.dtype))
    for sampler in (SAMPLERS["dpm2"], SAMPLERS["flow"]):
        found = sample_from(sampler, model, x_t, t)
        assert 0 < found.nfe < sampler.sample(model, (4, 4), seeds=range(4)).nfe
        torch.testing.assert_close(found.x.std(0), model.std, rtol=0.06, atol=0.0)
        torch.testing.assert_close(found.x.mean(0), model.mean, rtol=0.0, atol=0.08)


def test_starting_outside_is_refused():
    with pytest.raises(ValueError, match=r"t=0\.0"):
        sample_from(DPMSolver(), network(), torch.zeros(2, 12), 0.0)
