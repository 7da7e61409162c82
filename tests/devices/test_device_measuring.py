"""Densities and what decides them on a pretend GPU and a pretend Mac: see `pretend`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from device_cases import SDES, SHAPE, Alone, data, images, model
from pretend import Held, move_module, pretending

from softtrunc import density, samplers
from softtrunc.evaluation import by_time
from softtrunc.evaluation.bits import BitsMeasurement
from softtrunc.evaluation.law_of_times import law_of_times
from softtrunc.evaluation.protocol import DensityProtocol
from softtrunc.evaluation.regenerate import regenerate
from softtrunc.feedback.processes import company
from softtrunc.flow.adams import ADAMS
from softtrunc.flow.runge_kutta import BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54
from softtrunc.interop import choose_conditioning
from softtrunc.jobs import rate
from softtrunc.noise import Noise
from softtrunc.objective import SoftTruncationLoss
from softtrunc.recipes import load_recipe
from softtrunc.recipes.build import build_data
from softtrunc.runs.devices import Devices
from softtrunc.times import UniformTimes
from softtrunc.truncation import PowerPrior
from softtrunc.weighting import likelihood_weight

VP = SDES["vp"]
LOOSE = {"eps": 0.3, "rtol": 0.5, "atol": 0.5, "seeds": range(4)}
COSTS = {
    "adams": ADAMS.cost,
    "rk23": BOGACKI_SHAMPINE_32.cost,
    "rk45": DORMAND_PRINCE_54.cost,
}


def attempts(found, method="adams"):
    """How many steps the solver tried: the slope at the start, and so many calls in each."""
    steps, rest = divmod(int(found.nfe.inner.max()) - 1, COSTS[method])
    assert rest == 0
    return steps


def levels(machine):
    return torch.randint(0, 17, SHAPE, device=machine.device)


LIKELIHOODS = [
    *itertools.product(SDES, [{}]),
    ("vp", {"method": "rk23"}),
    ("vp", {"method": "rk45"}),
    ("vp", {"divergence": "exact"}),
    ("vp", {"probes": 3}),
    ("vp", {"residual": False}),
]


@pytest.mark.parametrize(("sde", "options"), LIKELIHOODS, ids=str)
def test_a_step_of_the_ode_waits_once(machine, waits, sde, options):
    network = model(SDES[sde], prediction="edm")  # bounded: VE's own would make many steps
    x = density.dequantize(levels(machine), 17, network.value_range, seeds=range(4))
    if sde == "table":  # its table is sent once
        network.sde.log_snr(torch.ones(1, device=machine.device))
    found, waited = waits(lambda: density.probability_flow_nll(network, x, **LOOSE, **options))
    assert isinstance(found.bits_per_dim(17), Held)
    if machine.device.type == "cuda":  # once before: are the data finite?
        assert waited.total() == 1 + attempts(found, options.get("method", "adams")), waited


def test_an_ode_in_parts(machine, waits):
    network, x = model(VP), data(machine)
    parts = [
        density.probability_flow_nll(network, x[i : i + 2], **LOOSE | {"seeds": range(i, i + 2)})
        for i in (0, 2)
    ]
    _, waited = waits(lambda: density.probability_flow_nll(network, x, chunk_size=2, **LOOSE))
    if machine.device.type == "cuda":
        assert waited.total() == 1 + sum(map(attempts, parts))


@pytest.mark.parametrize("name", ["given", "chimera"])
def test_a_step_of_the_ode_of_a_bound_model(machine, waits, name):
    drawn = model(VP).given(y=torch.arange(4) % 3)
    if name == "chimera":  # it looks which of the two its times belong to
        drawn = samplers.Chimera(drawn, model(VP), 0.6)
    x = data(machine)
    found, waited = waits(lambda: density.probability_flow_nll(drawn, x, **LOOSE))
    if machine.device.type == "cuda":
        calls = attempts(found) + 1 if name == "chimera" else 0
        assert waited.total() == 1 + attempts(found) + calls, waited
    _, waited = waits(lambda: density.nelbo(drawn, x, eps=0.3, draws=8, seeds=range(4)))
    if machine.device.type == "cuda":  # and once for the residual
        assert waited.total() == 1 + (9 if name == "chimera" else 0), waited


RECONSTRUCTIONS = {
    "density": {},
    "discrete": {"reconstruction": "discrete", "levels": 17},
    "truncated": {"reconstruction": "truncated", "levels": 17},
}


@pytest.mark.parametrize("law", RECONSTRUCTIONS)
@pytest.mark.parametrize("sde", ["vp", "rve"])
def test_reconstructions(machine, waits, sde, law):
    network, told = model(SDES[sde]), RECONSTRUCTIONS[law]
    spread = density.spread_range(17, network.value_range)
    x = density.bin_centers(levels(machine), 17, spread)
    told = told | {"value_range": spread, "seeds": range(4)}
    for draws in (2, 12):
        found, waited = waits(lambda n=draws: density.nelbo(network, x, eps=0.3, draws=n, **told))
        assert isinstance(found.bits_per_dim(17), Held)
        if machine.device.type == "cuda":
            # Are the data finite, and, at every residual, in the middle of their cells?
            looks = {"density": 1, "discrete": 1 + -(-draws // 8), "truncated": 2}
            assert waited.total() == looks[law], waited
    generated = told | {"seeds": None, "generator": torch.Generator(machine.device)}
    found = density.nelbo(network, x, eps=0.3, draws=2, **generated)
    density.probability_flow_nll(network, x, **LOOSE | told)
    assert isinstance(density.importance_weighted(found.nats.reshape(2, 2)), Held)


def test_seeds_on_the_device_are_read_at_once(machine, waits):
    seeds = torch.arange(50, device=machine.device)
    _, waited = waits(lambda: Noise(50, seeds, None))
    assert waited.total() == 1
    _, waited = waits(lambda: Noise(50, None, torch.Generator(machine.device), purpose="a test"))
    assert waited.total() == 1


def test_learned_dequantisation(machine, waits):
    network, shown = model(VP), levels(machine)
    flow = move_module(density.Dequantizer((1, 4, 4), levels=17, layers=2, width=8))
    drawn = flow.draw(shown, seeds=range(4))
    flow.log_prob(drawn.noise, shown)
    trained = density.train_dequantizer(flow, network, itertools.repeat(shown), steps=4)
    next(trained)
    losses, waited = waits(lambda: list(trained))
    assert len(losses) == 3
    if machine.device.type == "cuda":
        # The levels (twice), the noise in [0, 1]; the loss, which is yielded.
        assert waited.total() == 3 * 4, waited


def test_what_decides_density(machine, waits):
    network, x = model(VP), data(machine)
    found, waited = waits(lambda: by_time(network, x, eps=0.1, bins=3, draws=1, seeds=range(4)))
    assert found.bits.dtype is torch.float64
    if machine.device.type == "cuda":  # are the data finite; then what it returns
        assert waited.total() == 1 + 4, waited
    loss = SoftTruncationLoss(VP, PowerPrior(1.0), UniformTimes(VP), likelihood_weight(VP))
    law = law_of_times(loss, found.log_snr)
    there = law_of_times(
        loss,
        found.log_snr.float().to(machine.device),
        taus=torch.rand(5, device=machine.device),
        grad_norms=torch.rand(5, device=machine.device),
        clip=1.0,
    )
    torch.testing.assert_close(law.share, there.share, rtol=1e-5, atol=1e-6)
    assert there.clipped.dtype is torch.float64


@pytest.mark.parametrize("name", ["dpm", "ode"])
def test_what_decides_samples(machine, waits, name):
    sampler = samplers.DPMSolver(steps=4) if name == "dpm" else samplers.ProbabilityFlow(0.5, 0.5)
    network, x = model(VP), data(machine)
    found, waited = waits(lambda: regenerate(network, x, [0.3, 1.0], sampler=sampler))
    assert isinstance(found.x, Held)
    assert found.correlation.dtype is torch.float64
    if name == "dpm" and machine.device.type == "cuda":
        assert waited.total() == 2 + 2, waited  # are they finite; both sets of images


@pytest.mark.parametrize(("key", "draws"), [("nelbo", 1), ("nll_residual", 1), ("nll_residual", 3)])
def test_bits_of_a_conditional_model(machine, waits, key, draws):
    protocol = DensityProtocol(
        eps=0.3, rtol=0.5, atol=0.5, nelbo_draws=2, limit=2, labels=True, importance=draws
    )
    measured = BitsMeasurement(key, model(VP), images(labels=True), protocol)
    chunk, waited = waits(lambda: next(measured.chunks()))
    assert np.isfinite(chunk.columns["bits_per_dim"]).all()
    if key == "nelbo" and machine.device.type == "cuda":
        # Are the levels in range, the data finite; then all that is kept of them.
        assert waited.total() == 2 + len(chunk.columns), waited


def test_looks_at_data(machine, waits):
    shown = torch.randint(0, 17, (30, 1, 8, 8), device=machine.device)
    _, waited = waits(lambda: density.check_on_grid(shown, 17))
    assert waited.total() == 1
    density.check_levels(shown, 17)
    density.check_on_grid(density.bin_centers(shown, 17), 17)
    assert density.mean_with_error(torch.rand(5, device=machine.device)).n == 5


def test_choosing_a_conditioning(machine):
    models = {name: model(VP, conditioning=name) for name in VP.conditionings}
    chosen = choose_conditioning(models, data(machine))
    assert set(chosen.errors) == set(VP.conditionings)


def test_the_rate_of_a_mac_is_measured_and_has_its_name(monkeypatch):
    monkeypatch.setattr(rate.platform, "machine", lambda: "arm64")
    recipe = load_recipe("digits-vp-nll", ["network.options={base_channels: 8}"])
    images = build_data(recipe, "train")
    with pretending("mps") as machine:

        def build(*given, real=rate.build_model, **told):
            model = real(*given, **told)
            model.to = lambda device: move_module(model)
            return model

        monkeypatch.setattr(rate, "build_model", build)
        alone = Devices(Alone(machine.device), company())
        monkeypatch.setattr(rate, "find_devices", lambda *_, **__: alone)
        found = rate.training_rate(recipe, images, seconds=0.01)
    assert found.device == "this arm64 MPS"
    assert found.images > 0
    assert machine.waits  # it was there that the work was done
