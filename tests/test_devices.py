"""Every public path on a pretend GPU and a pretend Mac: see `pretend`."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pretend import Held, move_module, pretending
from torch import nn

from softtrunc import density, metrics, samplers
from softtrunc.data import ImageDataset, to_uint8
from softtrunc.feedback.processes import company
from softtrunc.jobs import rate
from softtrunc.networks import ScoreUNet, preset
from softtrunc.objective import MixedLoss, SoftTruncationLoss
from softtrunc.recipes import load_recipe
from softtrunc.recipes.build import build_data
from softtrunc.runs.devices import Devices
from softtrunc.score import ScoreModel
from softtrunc.sde import VESDE, VPSDE, ReciprocalVESDE, SubVPSDE
from softtrunc.times import ImportanceTimes, LogSNRTimes, UniformTimes
from softtrunc.training import Monitor, Stopwatch, TrainingConfig, TrainState, fit
from softtrunc.training import batches as training_batches
from softtrunc.truncation import HardTruncation, PowerPrior, WeightPrior
from softtrunc.weighting import PriorWeight, likelihood_weight, variance_weight

SDES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "rve": ReciprocalVESDE()}
SHAPE = (4, 1, 4, 4)


class Network(nn.Module):
    """Small, smooth and differentiable; it looks at its noise label."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, label):
        return x + 0.1 * torch.tanh(self.layer(x)) * torch.cos(label)[:, None, None, None]


def model(sde):
    torch.manual_seed(0)
    return move_module(ScoreModel(Network(), sde).eval())


@pytest.fixture(params=["cuda", "mps"])
def machine(request):
    """The pretend device; every kernel that a test used on it must exist."""
    with pretending(request.param) as found:
        yield found
        assert found.missing_kernels() == {}


def data(machine, dtype=torch.float32):
    return torch.rand(SHAPE, device=machine.device, dtype=dtype)


@pytest.fixture
def waits(machine):
    """The host's waits while a function runs."""

    def count(function):
        before = Counter(machine.waits)
        found = function()
        return found, machine.waits - before

    return count


def losses():
    laws = {
        "importance": lambda sde: ImportanceTimes(sde, stratified=True),
        "uniform": lambda sde: UniformTimes(sde, stratified=True, average=True),
        "log_snr": lambda sde: LogSNRTimes(sde),
    }
    weights = {
        "likelihood": likelihood_weight,
        "variance": variance_weight,
        "prior": lambda sde: PriorWeight(likelihood_weight(sde), PowerPrior(1.0)),
    }
    for (name, sde), law, weight in itertools.product(SDES.items(), laws, weights):
        if name == "vp" or weight == "likelihood":
            times, weighting = laws[law](sde), weights[weight](sde)
            loss = SoftTruncationLoss(sde, PowerPrior(1.0), times, weighting)
            yield pytest.param(loss, id=f"{name}-{law}-{weight}")
    vp = SDES["vp"]
    plain = SoftTruncationLoss(vp, PowerPrior(1.0), ImportanceTimes(vp), likelihood_weight(vp))
    other = SoftTruncationLoss(vp, PowerPrior(1.0), UniformTimes(vp), variance_weight(vp))
    yield pytest.param(MixedLoss(plain, other, 100.0, balanced=True), id="mixed")


@pytest.mark.parametrize("objective", list(losses()))
def test_losses(machine, waits, objective):
    network = model(objective.sde if isinstance(objective, SoftTruncationLoss) else SDES["vp"])
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
        # Times are sent pinned to a GPU; a Mac waits for them, and for noise of the CPU.
        drawn_here = generator is not None and generator.device == machine.device
        if machine.device.type == "cuda" and not drawn_here:
            assert waited == Counter()
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
    assert isinstance(ImportanceTimes(sde).draw(8, 1e-3, generator=on_device).t, Held)


def methods():
    return {
        "pc": samplers.PredictorCorrector(steps=4),
        "pc-ancestral": samplers.PredictorCorrector(steps=4, predictor="ancestral"),
        "euler": samplers.EulerMaruyama(steps=4),
        "ancestral": samplers.Ancestral(steps=4),
        "heun": samplers.Heun(steps=4),
        "heun-churn": samplers.Heun(steps=4, churn=3.0),
        "dpm": samplers.DPMSolver(steps=4),
        "dpm3": samplers.DPMSolver(steps=4, order=3),
        "dpm-stochastic": samplers.DPMSolver(steps=4, stochastic=True),
        "ode": samplers.ProbabilityFlow(rtol=0.5, atol=0.5),
    }


@pytest.mark.parametrize(
    ("sde", "name"),
    [*itertools.product(["vp"], methods()), *itertools.product(SDES, ["pc", "dpm", "ode"])],
)
def test_samplers(machine, waits, sde, name):
    network, sampler = model(SDES[sde]), methods()[name]
    sources = {
        "seeds": {"seeds": range(4)},
        "cpu": {"generator": torch.Generator().manual_seed(0)},
        "device": {"generator": torch.Generator(machine.device).manual_seed(0)},
    }
    for options in sources.values() if sde == "vp" else [sources["seeds"]]:
        found, waited = waits(lambda o=options: sampler.sample(network, SHAPE, **o))
        assert isinstance(found.x, Held)
        if machine.device.type == "cuda":
            # One look at the end whether all is finite; the ODE's solver chooses its steps.
            steps = found.nfe if name == "ode" else 0
            assert waited.total() <= 1 + steps + 2 * (name == "ode")


def test_edits(machine):
    network, x = model(SDES["vp"]), data(machine)
    mask = torch.rand(1, 1, 4, 4) > 0.5
    samplers.inpaint(samplers.PredictorCorrector(steps=3), network, x, mask)
    flow = samplers.ProbabilityFlow(0.5, 0.5)
    latent = samplers.encode(network, x, flow=flow).x
    samplers.decode(network, samplers.slerp(latent, latent.flip(0), 0.3), flow=flow)
    samplers.DPMSolver(steps=4).sample(network, SHAPE, callback=samplers.Trajectory(2))


@pytest.mark.parametrize(
    ("sde", "method", "divergence"),
    [
        ("vp", "adams", "hutchinson"),
        ("vp", "rk23", "hutchinson"),
        ("vp", "adams", "exact"),
        ("rve", "adams", "hutchinson"),
    ],
)
def test_likelihood(machine, waits, sde, method, divergence):
    network, levels = model(SDES[sde]), torch.randint(0, 17, SHAPE, device=machine.device)
    span = network.value_range
    x = density.dequantize(levels, 17, span, seeds=range(4))

    def measure():
        return density.probability_flow_nll(
            network, x, eps=0.3, rtol=0.5, atol=0.5, method=method, divergence=divergence,
            seeds=range(4),
        )  # fmt: skip

    found, waited = waits(measure)
    assert isinstance(found.nats, Held)
    if machine.device.type == "cuda":
        attempts = int(found.nfe.inner.max())  # at least one a step, whatever the method
        assert waited.total() <= 4 + 2 * attempts
        if method == "adams":
            assert waited.total() <= 4 + attempts
    discrete = {"reconstruction": "discrete", "levels": 17, "seeds": range(4)}
    truncated = discrete | {"reconstruction": "truncated"}
    spread = density.spread_range(17, span)
    centres = density.bin_centers(levels, 17, spread)
    for bound in (
        density.nelbo(network, x, eps=0.3, draws=2, seeds=range(4)),
        density.nelbo(network, x, eps=0.3, draws=2, generator=torch.Generator(machine.device)),
        density.nelbo(network, centres, eps=0.3, draws=2, value_range=spread, **discrete),
        density.probability_flow_nll(
            network, centres, eps=0.3, rtol=0.5, atol=0.5, value_range=spread, **discrete
        ),
        density.nelbo(network, centres, eps=0.3, draws=2, value_range=spread, **truncated),
        density.probability_flow_nll(
            network, centres, eps=0.3, rtol=0.5, atol=0.5, value_range=spread, **truncated
        ),
    ):
        assert isinstance(bound.bits_per_dim(17), Held)
        assert isinstance(density.importance_weighted(bound.nats.reshape(2, 2)), Held)


def test_bound_waits_for_nothing_but_its_checks(machine, waits):
    network, x = model(SDES["vp"]), data(machine)
    _, few = waits(lambda: density.nelbo(network, x, draws=2, seeds=range(4)))
    _, many = waits(lambda: density.nelbo(network, x, draws=12, seeds=range(4)))
    if machine.device.type == "cuda":
        assert few.total() == many.total() == 1


def test_learned_dequantisation(machine):
    network, levels = model(SDES["vp"]), torch.randint(0, 17, SHAPE, device=machine.device)
    flow = move_module(density.Dequantizer((1, 4, 4), levels=17, layers=2, width=8))
    drawn = flow.draw(levels, seeds=range(4))
    flow.log_prob(drawn.noise, levels)
    trained = density.train_dequantizer(flow, network, itertools.repeat(levels), steps=2)
    assert len(list(trained)) == 2


class Alone(Accelerator):
    """What `fit` asks of accelerate, with one process on the pretend device."""

    device = num_processes = process_index = is_main_process = None

    def __init__(self, device):
        self.device = device
        self.num_processes, self.process_index, self.is_main_process = 1, 0, True

    def prepare_model(self, module, evaluation_mode=False):
        return module

    def backward(self, loss):
        loss.backward()

    def no_sync(self, module):
        return nullcontext()

    def reduce(self, x, reduction):
        return x


class AtOnce:
    """In the place of a thread, which would not see the pretend device."""

    def __init__(self, *_, **__): ...

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self, **_): ...


@pytest.mark.parametrize("resident", [True, False])
def test_training(machine, waits, monkeypatch, resident):
    monkeypatch.setattr(training_batches, "RESIDENT_BYTES", 2**30 if resident else 0)
    monkeypatch.setattr(training_batches, "ThreadPoolExecutor", AtOnce)
    images = np.random.default_rng(0).integers(0, 17, (64, 1, 4, 4)).astype(np.uint8)
    images = ImageDataset.create(images, name="x", split="train", source="x", levels=17)
    network, sde = model(SDES["vp"]), SDES["vp"]
    config = TrainingConfig(batch_size=16, micro_batch_size=8)
    state = TrainState.create(network, config)
    loss = SoftTruncationLoss(
        sde, PowerPrior(1.0), ImportanceTimes(sde, stratified=True), likelihood_weight(sde)
    )
    alone = Alone(machine.device)
    monitor = Monitor(alone, dimensions=16, summed=False, clock=Stopwatch())
    records = fit(state, loss, images, config, steps=5, accelerator=alone)
    next(records)  # brings the data, and the optimiser's moments
    _, waited = waits(lambda: [monitor.add(record) for record in records])
    if machine.device.type == "cuda":
        # One a step is the pretend device's own: clipping asks where the gradients really are.
        assert waited.total() == 4
        assert {line.partition(": ")[2] for line in waited} == {"from the device"}
    row = monitor.row()
    assert row is not None
    assert row.step == 5
    with state.ema.applied(network):
        found = samplers.DPMSolver(steps=3).sample(network, SHAPE, seeds=range(4))
    assert to_uint8(found.x, levels=17, value_range=(-1, 1)).cpu().dtype is torch.uint8


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


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_networks(machine, name):
    options = {"base_channels": 8, "blocks_per_level": 1, "attention_resolutions": (4,)}
    spec = preset(name, image_size=8, channels=3, channel_multipliers=(1, 2), **options)
    network = move_module(ScoreUNet(spec)).train()
    x = torch.rand(2, 3, 8, 8, device=machine.device)
    network(x, torch.rand(2, device=machine.device)).square().mean().backward()


def test_metrics(machine):
    features = torch.rand(40, 8, device=machine.device)
    statistics = metrics.FeatureStatistics(8)
    statistics.update(features)
    metrics.kernel_inception_distance(features, features, subsets=2, subset_size=8)
    metrics.precision_recall(features, features)
    metrics.inception_score(torch.softmax(features, 1), 4)


def test_the_pretend_device_refuses_what_a_real_one_does(machine):
    x, on_cpu = data(machine), torch.rand(SHAPE)
    with pytest.raises(RuntimeError, match="both devices"):
        x + on_cpu
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=machine.device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="not pinned"):
        on_cpu.to(machine.device, non_blocking=True)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    before = machine.waits.total()
    float(x.sum()), x[x > 0.5], x.tolist(), on_cpu.to(machine.device)
    assert machine.waits.total() == before + 4
    if machine.device.type == "mps":
        with pytest.raises(TypeError, match="float64"):
            x.double()
        torch.special.log_ndtr(x)
        assert list(machine.missing_kernels()) == ["special_log_ndtr.default"]
        machine.kernels.clear()
