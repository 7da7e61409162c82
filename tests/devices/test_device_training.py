"""Losses, networks and training on a pretend GPU and a pretend Mac: see `pretend`."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from device_cases import SDES, SHAPE, Alone, AtOnce, data, images, model
from pretend import Held, move_module

from softtrunc import metrics, samplers
from softtrunc.data import to_uint8
from softtrunc.metrics.features import clean_resize
from softtrunc.metrics.synced import FeatureGatherer
from softtrunc.networks import ScoreUNet, UNet2DConfig, preset
from softtrunc.objective import MixedLoss, SoftTruncationLoss
from softtrunc.sde import VPSDE
from softtrunc.times import ImportanceTimes, LogNormalTimes, LogSNRTimes, UniformTimes
from softtrunc.training import (
    Monitor,
    Stopwatch,
    TrainingConfig,
    TrainState,
    find_checkpoint,
    fit,
    keep_averages,
    load_average,
    load_checkpoint,
    save_checkpoint,
)
from softtrunc.training import batches as training_batches
from softtrunc.truncation import HardTruncation, PowerPrior, WeightPrior
from softtrunc.weighting import PriorWeight, edm_weight, likelihood_weight, variance_weight

VP = SDES["vp"]
PLAIN = SoftTruncationLoss(
    VP, PowerPrior(1.0), ImportanceTimes(VP, stratified=True), likelihood_weight(VP)
)
MIXED = MixedLoss(
    PLAIN,
    SoftTruncationLoss(VP, PowerPrior(1.0), UniformTimes(VP), variance_weight(VP)),
    100.0,
    balanced=True,
)


def losses():
    laws = {
        "importance": lambda sde: ImportanceTimes(sde, stratified=True),
        "uniform": lambda sde: UniformTimes(sde, stratified=True, average=True),
        "log_snr": LogSNRTimes,
        "log_normal": LogNormalTimes,
    }
    weights = {
        "likelihood": likelihood_weight,
        "variance": variance_weight,
        "edm": edm_weight,
        "prior": lambda sde: PriorWeight(likelihood_weight(sde), PowerPrior(1.0)),
    }
    for (name, sde), law, weight in itertools.product(SDES.items(), laws, weights):
        usual = name == "vp" or law in ("importance", "log_normal")
        if (weight == "likelihood" and usual) or (name, law) == ("vp", "importance"):
            times, weighting = laws[law](sde), weights[weight](sde)
            loss = SoftTruncationLoss(sde, PowerPrior(1.0), times, weighting)
            yield pytest.param(loss, id=f"{name}-{law}-{weight}")
    yield pytest.param(MIXED, id="mixed")


@pytest.mark.parametrize("objective", list(losses()))
def test_losses(machine, waits, objective):
    network = model(getattr(objective, "sde", VP))
    x = data(machine)
    objective(network, x)  # the values of the first batch on a device are looked at
    for generator in (None, torch.Generator(), torch.Generator(machine.device)):

        def step(generator=generator):
            terms = objective(network, x, generator=generator)
            terms.loss.mean().backward()
            return terms

        terms, waited = waits(step)
        assert isinstance(terms.loss, Held)
        assert terms.t.dtype == (torch.float32 if machine.device.type == "mps" else torch.float64)
        # Times are sent pinned to a GPU. A Mac waits for them, and for noise of the CPU, where
        # normal quantiles are taken too: there and back.
        sent = 0
        if machine.device.type == "mps":
            here = generator is not None and generator.device == machine.device
            there = isinstance(getattr(objective, "times", None), LogNormalTimes)
            sent = (4 if there else 0) if here else 1 + (generator is not None)
        assert waited.total() == sent, waited
    objective(network, x, tau=torch.tensor(0.01, device=machine.device)).loss.mean().backward()


@pytest.mark.parametrize("prior", [PowerPrior(0.0), PowerPrior(1.0), PowerPrior(2.0), "hard", "w"])
def test_priors_and_times(machine, prior):
    sde = VPSDE()
    if prior == "hard":
        prior = HardTruncation()
    if prior == "w":
        prior = WeightPrior(lambda t: t * likelihood_weight(sde)(t), likelihood_weight(sde))
    on_device = torch.Generator(machine.device).manual_seed(0)
    tau = prior.sample(8, generator=on_device)
    assert isinstance(tau, Held)
    for found in (prior.log_prob(tau), prior.cdf(tau), prior.icdf(torch.rand_like(tau))):
        assert isinstance(found, Held)
    weight = PriorWeight(likelihood_weight(sde), prior)
    assert isinstance(weight(torch.rand(3, device=machine.device)), Held)
    for law in (ImportanceTimes(sde), LogNormalTimes(sde)):
        drawn = law.draw(8, 1e-3, generator=on_device)
        assert isinstance(drawn.t, Held)
        assert isinstance(law.cdf(drawn.t, torch.full_like(drawn.t, 1e-3)), Held)


def train(machine, state, config, steps, loss=PLAIN, **told):
    told = {"labels": config.labels, **told}
    return fit(state, loss, images(**told), config, steps=steps, accelerator=Alone(machine.device))


RUNS = {
    "resident": {},
    "streamed": {},
    "floats": {"dequantize": False},
    "mixed": {},
    "whole levels": {"dequantize": False, "flip": False},
    "labels": {"labels": True, "label_dropout": 0.5},
    "unclipped": {"grad_clip": None, "schedule": "cosine", "warmup_steps": 1, "steps": 9},
    "averages": {"posthoc_ema": True},
}


@pytest.mark.parametrize("name", RUNS)
def test_no_step_of_training_waits(machine, waits, monkeypatch, name):
    monkeypatch.setattr(training_batches, "RESIDENT_BYTES", 0 if name == "streamed" else 2**30)
    monkeypatch.setattr(training_batches, "ThreadPoolExecutor", AtOnce)
    config = TrainingConfig(batch_size=16, micro_batch_size=8, **RUNS[name])
    network = model(VP)
    state = TrainState.create(network, config)
    loss = MIXED if name == "mixed" else PLAIN
    monitor = Monitor(Alone(machine.device), dimensions=16, summed=False, clock=Stopwatch())
    records = train(machine, state, config, 5, loss, floats=name == "floats")
    next(records)  # brings the data, and the optimiser's moments
    _, waited = waits(lambda: [monitor.add(record) for record in records])
    # A Mac waits for what is sent: the times, and which images or those themselves; which labels.
    sent = 2 + config.labels if machine.device.type == "mps" else 0
    assert waited.total() == 4 * sent, waited
    row, waited = waits(monitor.row)
    assert row.step == 5
    assert waited.total() == 4
    with state.ema.applied(network):
        found = samplers.DPMSolver(steps=3).sample(network, SHAPE, seeds=range(4))
    assert to_uint8(found.x, levels=17, value_range=(-1, 1)).cpu().dtype is torch.uint8


def test_a_resumed_training_is_the_same(machine, tmp_path):
    config = TrainingConfig(batch_size=16, warmup_steps=0, posthoc_ema=True)
    whole, first = (TrainState.create(model(VP), config) for _ in range(2))
    assert len(list(train(machine, whole, config, 4))) == 4
    assert len(list(train(machine, first, config, 2))) == 2
    path = save_checkpoint(tmp_path / "checkpoints", first)
    keep_averages(first, tmp_path / "checkpoints", tmp_path / "averages")
    again = TrainState.create(model(VP), config)
    load_checkpoint(path, again)
    for slots in again.optimizer.state.values():
        assert {value.device for value in slots.values()} == {machine.device}
    assert len(list(train(machine, again, config, 4))) == 2
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours.inner, theirs.inner)
    save_checkpoint(tmp_path / "checkpoints", again)
    newest = find_checkpoint(tmp_path / "checkpoints")
    load_average(newest, tmp_path / "averages", again.model, 0.1)
    assert all(isinstance(parameter, Held) for parameter in again.model.parameters())


NETWORKS = {
    "ddpmpp": {"channel_multipliers": (1, 2)},
    "ncsnpp": {"channel_multipliers": (1, 2), "checkpoint_activations": True},
    "ncsnpp-256": {"channel_multipliers": (1, 2), "num_classes": 3},
    "tiny": {"patch_size": 2, "num_classes": 3, "image_size": (8, 16)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(machine, waits, name):
    options = {"base_channels": 8, "blocks_per_level": 1, "attention_resolutions": (4,)}
    spec = preset(name, **{"image_size": 8, "channels": 3} | options | NETWORKS[name])
    network = move_module(ScoreUNet(spec)).train()
    x = torch.rand(2, 3, *spec.size, device=machine.device)
    label = torch.rand(2, device=machine.device)
    told = (
        {"y": torch.zeros(2, device=machine.device, dtype=torch.long)} if spec.num_classes else {}
    )

    def step():
        network(x, label, **told).square().mean().backward()
        network(x, label)

    _, waited = waits(step)
    assert waited == Counter()


def test_the_network_of_diffusers(machine, waits):
    pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "block_out_channels": [8, 8], "layers_per_block": 1}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    network = UNet2DConfig(
        {**sizes, **blocks, "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
    )
    network = move_module(network.build())
    x, label = torch.rand(2, 1, 8, 8, device=machine.device), torch.rand(2, device=machine.device)
    found, waited = waits(lambda: network(x, label).sample)
    assert isinstance(found, Held)
    assert waited == Counter()


def test_metrics(machine, monkeypatch):
    features = torch.rand(40, 8, device=machine.device)
    statistics = metrics.FeatureStatistics(8)
    statistics.update(features)
    metrics.kernel_inception_distance(features, features, subsets=2, subset_size=8)
    metrics.precision_recall(features, features)
    metrics.inception_score(torch.softmax(features, 1), 4)
    shown = torch.randint(0, 256, (40, 1, 16, 16), device=machine.device, dtype=torch.uint8)
    fashion = metrics.Fashion16Features()
    moved = move_module(fashion._network)
    monkeypatch.setattr(moved, "to", lambda device: moved)
    assert isinstance(fashion(shown), Held)
    assert isinstance(fashion.classify(shown), Held)
    assert isinstance(clean_resize(shown, 12), Held)
    gatherer = FeatureGatherer(fashion, features=True, probabilities=True)  # states on the CPU
    gatherer.update(shown)
    assert gatherer.compute().statistics.count == 40


def test_metrics_of_features_on_two_devices(machine):
    here, there = torch.rand(40, 8), torch.rand(40, 8, device=machine.device)
    for real, generated in ((here, there), (there, here), (there, here.double())):
        metrics.kernel_inception_distance(real, generated, subsets=2, subset_size=8)
        metrics.precision_recall(real, generated)
        parts = ((x.mean(0), x.T @ x) for x in (real, generated))
        metrics.frechet_distance(*(v for part in parts for v in part))
