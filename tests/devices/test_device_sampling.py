"""Samplers and models on a pretend GPU and a pretend Mac: see `pretend`."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import get_args

import pytest
import torch
from device_cases import SDES, SHAPE, data, model
from pretend import Held

from softtrunc import samplers
from softtrunc.guidance import guided
from softtrunc.score import Conditioning, Prediction

VP = SDES["vp"]
FLOW = samplers.ProbabilityFlow(rtol=0.5, atol=0.5)
METHODS = {
    "pc": samplers.PredictorCorrector(steps=4),
    "pc-ancestral": samplers.PredictorCorrector(steps=4, predictor="ancestral"),
    "pc-euler": samplers.PredictorCorrector(steps=4, predictor="euler_maruyama"),
    "euler": samplers.EulerMaruyama(steps=4),
    "ancestral": samplers.Ancestral(steps=4),
    "heun": samplers.Heun(steps=4),
    "heun-churn": samplers.Heun(steps=4, churn=3.0),
    "ddim": samplers.DPMSolver(steps=4, order=1),
    "dpm": samplers.DPMSolver(steps=4),
    "dpm3": samplers.DPMSolver(steps=4, order=3),
    "dpm-stochastic": samplers.DPMSolver(steps=4, stochastic=True),
    "dpm-noisy-end": samplers.DPMSolver(steps=4, denoise_final=False),
    "ode": FLOW,
    "ode-noisy-end": samplers.ProbabilityFlow(rtol=0.5, atol=0.5, denoise_final=False),
}


def waits_of(sampler, nfe, a_call=0):
    """One look at the end whether all is finite; the ODE's solver looks once in a step.

    `a_call`: how often the model looks in each call whose times the host does not know.
    """
    if not isinstance(sampler, samplers.ProbabilityFlow):
        return 1
    calls = nfe - sampler.denoise_final  # the slope at the start, and six in each step
    assert calls % 6 == 1
    return 1 + calls // 6 + a_call * calls


@pytest.mark.parametrize(
    ("sde", "name"),
    [*itertools.product(["vp"], METHODS), *itertools.product(SDES, ["pc", "dpm", "ode"])],
)
def test_samplers(machine, waits, sde, name):
    network, sampler = model(SDES[sde]), METHODS[name]
    sources = {
        "device": {"generator": torch.Generator(machine.device).manual_seed(0)},
        "seeds": {"seeds": range(4)},
        "cpu": {"generator": torch.Generator().manual_seed(0)},
    }
    if sde == "table":  # its table is sent once
        sampler.sample(network, SHAPE, **sources["seeds"])
    for source, options in sources.items() if sde == "vp" else [("seeds", sources["seeds"])]:
        found, waited = waits(lambda o=options: sampler.sample(network, SHAPE, **o))
        assert isinstance(found.x, Held)
        if machine.device.type == "cuda":
            assert waited.total() == waits_of(sampler, found.nfe), waited
        elif source == "device" and "ode" not in name:  # a Mac waits for all that is sent
            assert waited.total() == 1, waited


def bound_models():
    """Of network calls at 4 times, T first, how many each makes; and how often it looks in one."""
    vp = model(VP)
    y = torch.arange(4) % 3  # on the CPU, as recipes have it
    low = guided(vp, 1.5, {"y": y}, interval=(0.0, 0.9))
    below = guided(model(VP), 1.0, {"y": y}, interval=(0.3, 0.6))
    return {
        "given": (vp.given(y=y), 0),
        "guided": (guided(vp, 1.5, {"y": y}), 0),
        "interval": (low, 1),
        "chimera": (samplers.Chimera(vp, model(VP), 0.5), 1),
        "half": (samplers.autocast_score(low), 1),
        "nested": (samplers.Chimera(vp.given(y=y), below, 0.5), None),
    }


@pytest.mark.parametrize("name", ["given", "guided", "interval", "chimera", "half", "nested"])
def test_bound_models(machine, waits, name):
    drawn, a_call = bound_models()[name]
    generator = torch.Generator(machine.device).manual_seed(0)
    for sampler in (METHODS["heun"], METHODS["dpm"], FLOW):
        found, waited = waits(lambda s=sampler: s.sample(drawn, SHAPE, generator=generator))
        assert isinstance(found.x, Held)
        fixed = not isinstance(sampler, samplers.ProbabilityFlow)
        if machine.device.type == "cuda" and (fixed or a_call is not None):
            assert waited.total() == waits_of(sampler, found.nfe, a_call), waited


def test_binding_and_rows_wait_for_nothing_on_a_gpu(machine, waits):
    vp, x, t = model(VP), data(machine), torch.rand(4, device=machine.device)
    index = torch.tensor([2, 0, 3])
    there = index.to(machine.device)

    def ask():
        bound = guided(vp, 1.0, {"y": torch.arange(4) % 3})
        for places in (index, there):
            part = bound.rows(places)
            assert part.conditional.condition["y"].tolist() == [2, 0, 0]
            part.score(x[:3], t[:3])
        return bound

    _, waited = waits(ask)
    if machine.device.type == "cuda":
        assert waited == Counter({"a test: tolist": 2})


def test_what_a_time_decides_it_decides_alike_on_host_and_device(machine):
    x = data(machine)
    for drawn, _ in bound_models().values():
        for t in (1.0, 0.7, 0.5, 0.2, 1e-3):
            there = torch.full((4,), t, device=machine.device)
            known = drawn.at(t).score(x, there)
            assert torch.equal(known.inner, drawn.score(x, there).inner)


def test_a_score_hook_in_half_precision_asks_for_no_time(machine, waits):
    drawn, _ = bound_models()["half"]
    hook = {"seeds": range(4), "score_fn": drawn}
    _, waited = waits(lambda: METHODS["dpm"].sample(model(VP), SHAPE, **hook))
    if machine.device.type == "cuda":
        assert waited.total() == 1


def test_edits(machine, waits):
    network, x = model(VP), data(machine)
    mask = torch.rand(1, 1, 4, 4) > 0.5
    fixed = samplers.PredictorCorrector(steps=3)
    samplers.inpaint(fixed, network, x, mask)
    samplers.colorize(fixed, model(VP, channels=3), x, seeds=range(4))
    latent = samplers.encode(network, x, flow=FLOW).x
    samplers.decode(network, samplers.slerp(latent, latent.flip(0), 0.3), flow=FLOW)
    for sampler in (METHODS["dpm"], FLOW):
        sampler.sample(network, SHAPE, x_init=latent)
        found, waited = waits(lambda s=sampler: samplers.sample_from(s, network, x, 0.4))
        assert isinstance(found.x, Held)
        if machine.device.type == "cuda":
            assert waited.total() == waits_of(sampler, found.nfe)


def test_a_callback_costs_the_ode_one_look_a_step(machine, waits):
    way = samplers.Trajectory(2)
    METHODS["dpm"].sample(model(VP), SHAPE, callback=way)
    seen = []
    found, waited = waits(lambda: FLOW.sample(model(VP), SHAPE, callback=seen.append))
    if machine.device.type == "cuda":
        assert waited.total() == waits_of(FLOW, found.nfe) + len(seen) - 1


@pytest.mark.parametrize("sde", SDES)
def test_sdes(machine, waits, sde):
    sde = SDES[sde]
    t = torch.linspace(1e-3, 1.0, 5, device=machine.device)
    sde.log_snr(t)  # what tables there are is sent once
    x, generator = data(machine), torch.Generator(machine.device)

    def ask():
        # Of one time too: a single place in a table is no number of the host.
        for times in (t, t[2]):
            for function in (sde.drift, sde.diffusion, sde.log_alpha, sde.marginal):
                function(times)
            sde.time_of_log_snr(sde.log_snr(times))
        z = sde.prior_sample(SHAPE, generator=generator, device=machine.device)
        sde.prior_log_prob(sde.perturb(x, t[:4], z))

    _, waited = waits(ask)
    assert waited == Counter()


@pytest.mark.parametrize("sde", SDES)
def test_every_prediction_and_conditioning(machine, waits, sde):
    x = data(machine)
    for prediction in get_args(Prediction):
        network = model(SDES[sde], prediction=prediction)
        for t in (torch.rand(4, device=machine.device), torch.tensor(0.5)):
            for ask in (network.score, network.noise, network.denoise, network.given().denoise):
                assert isinstance(ask(x, t), Held)
    for conditioning in get_args(Conditioning):
        try:
            network = model(SDES[sde], conditioning=conditioning)
        except ValueError:  # which this SDE has not
            continue
        t = torch.rand(4, device=machine.device)
        found, waited = waits(lambda n=network, t=t: n.score(x, t))
        assert torch.isfinite(found.inner).all()
        assert waited == Counter()
