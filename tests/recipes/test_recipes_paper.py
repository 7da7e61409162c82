"""The recipes of the paper: every value against a table written from its specification.

The table is complete: a recipe without a row, and a row without a recipe, fail.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from softtrunc import HardTruncation, PowerPrior
from softtrunc.data import ImageDataset
from softtrunc.networks import parameter_count
from softtrunc.objective import MixedLoss
from softtrunc.recipes import load_recipe, recipe_names
from softtrunc.recipes.build import (
    build_model,
    build_network_config,
    build_objective,
    build_prior,
    build_sampler,
    build_sde,
    build_training,
)
from softtrunc.recipes.load import override_recipe
from softtrunc.samplers import PredictorCorrector, ProbabilityFlow
from softtrunc.training import TrainState, fit

INF = math.inf


class Net(NamedTuple):
    """What the specification says of a network, and its exact number of parameters."""

    base: int
    multipliers: tuple[int, ...]
    blocks: int
    fir: bool
    embedding: str
    embedding_size: int | None
    pyramids: tuple[str, str]
    dropout: float
    parameters: int


POSITIONAL: Any = ("positional", None, ("none", "none"))
FOURIER: Any = ("fourier", None, ("residual", "none"))
NETWORKS = {
    "ddpmpp": Net(128, (1, 2, 2, 2), 4, False, *POSITIONAL, 0.1, 61_804_419),
    "ddpmpp-nodrop": Net(128, (1, 2, 2, 2), 4, False, *POSITIONAL, 0.0, 61_804_419),
    "ddpmpp-deep": Net(128, (1, 2, 2, 2), 8, False, *POSITIONAL, 0.1, 106_632_579),
    "ddpmpp-512": Net(
        512, (1, 1, 1), 8, True, "positional", 128, ("none", "none"), 0.2, 373_929_475
    ),
    "ncsnpp": Net(128, (1, 2, 2, 2), 4, True, *FOURIER, 0.1, 62_758_915),
    "ncsnpp-48": Net(128, (1, 2, 2, 2), 4, True, *FOURIER, 0.1, 61_440_515),
    "ncsnpp-deep": Net(128, (1, 2, 2, 2), 8, True, *FOURIER, 0.1, 107_587_075),
    "ncsnpp-256": Net(
        128,
        (1, 1, 2, 2, 2, 2, 2),
        2,
        True,
        "fourier",
        None,
        ("input_skip", "output_skip"),
        0.0,
        65_574_549,
    ),
}


class VPRow(NamedTuple):
    """A row of the VP table; objective: "nll", "fid", or c and whether it is balanced."""

    data: str
    size: int
    net: str
    unbounded: bool
    objective: str | tuple[float, bool]
    k: float
    sampler: str
    eps: float = 1e-5


class VERow(NamedTuple):
    """A row of the VE / RVE table."""

    data: str
    size: int
    net: str
    kind: str
    s_min: float
    s_max: float
    k: float
    tau_max: float
    batch: int
    snr: float
    n: int


VP = {
    "cifar10-ddpmpp-vp-nll-st": VPRow("cifar10", 32, "ddpmpp", False, "nll", 1, "ode"),
    "cifar10-ddpmpp-deep-vp-nll-st": VPRow("cifar10", 32, "ddpmpp-deep", False, "nll", 1, "ode"),
    "cifar10-ddpmpp512-vp-nll-st": VPRow("cifar10", 32, "ddpmpp-512", False, (0.01, True), 2, "pc"),
    "cifar10-ddpmpp512-vp-fid-st": VPRow(
        "cifar10", 32, "ddpmpp-512", False, (100.0, False), 0.9, "pc"
    ),
    "cifar10-ddpmpp-vp-nll": VPRow("cifar10", 32, "ddpmpp", False, "nll", INF, "ode"),
    "cifar10-ddpmpp-vp-fid": VPRow("cifar10", 32, "ddpmpp", False, "fid", INF, "ode"),
    "cifar10-ddpmpp-deep-vp-nll": VPRow("cifar10", 32, "ddpmpp-deep", False, "nll", INF, "ode"),
    "cifar10-ddpmpp-deep-vp-fid": VPRow("cifar10", 32, "ddpmpp-deep", False, "fid", INF, "ode"),
    "imagenet32-ddpmpp-vp-nll-st": VPRow("imagenet32", 32, "ddpmpp-nodrop", False, "nll", 1, "ode"),
    "imagenet32-ddpmpp-vp-nll": VPRow(
        "imagenet32", 32, "ddpmpp-nodrop", False, "nll", INF, "ode", 5e-5
    ),
    "imagenet32-ddpmpp-vp-fid": VPRow("imagenet32", 32, "ddpmpp-nodrop", False, "fid", INF, "ode"),
    "celeba64-ddpmpp-vp-nll-st": VPRow("celeba64", 64, "ddpmpp", False, "nll", 1, "pc"),
    "celeba64-ddpmpp-vp-fid-st": VPRow("celeba64", 64, "ddpmpp", False, "fid", 1, "pc"),
    "celeba64-ddpmpp-vp-nll": VPRow("celeba64", 64, "ddpmpp", False, "nll", INF, "pc"),
    "celeba64-ddpmpp-vp-fid": VPRow("celeba64", 64, "ddpmpp", False, "fid", INF, "pc"),
    "celeba64-uddpmpp-vp-nll": VPRow("celeba64", 64, "ddpmpp", True, "nll", INF, "pc"),
    "celeba64-uddpmpp-vp-nll-st": VPRow("celeba64", 64, "ddpmpp", True, "nll", 1, "pc"),
    "celeba64-uddpmpp-vp-fid": VPRow("celeba64", 64, "ddpmpp", True, "fid", INF, "pc"),
    "celeba64-uddpmpp-vp-fid-st": VPRow("celeba64", 64, "ddpmpp", True, "fid", 1, "pc"),
}
VE = {
    "cifar10-uncsnpp-rve-st": VERow(
        "cifar10", 32, "ncsnpp-deep", "rve", 1e-3, 50, 2, 1 / 78_719, 128, 0.16, 1000
    ),
    "cifar10-uncsnpp-rve-st-shallow": VERow(
        "cifar10", 32, "ncsnpp", "rve", 1e-3, 50, 2, 1, 128, 0.16, 1000
    ),
    "stl10-uncsnpp-rve-st": VERow(
        "stl10", 48, "ncsnpp-48", "rve", 1e-3, 150, 2, 1, 192, 0.17, 1000
    ),
    "celeba64-uncsnpp-rve-st": VERow(
        "celeba64", 64, "ncsnpp", "rve", 1e-3, 90, 2, 1, 128, 0.17, 1000
    ),
    "celebahq256-uncsnpp-rve-st": VERow(
        "celebahq256", 256, "ncsnpp-256", "rve", 1e-3, 348, 2, 1, 40, 0.075, 2000
    ),
    "ffhq256-udm-rve-st": VERow(
        "ffhq256", 256, "ncsnpp-256", "rve", 1e-3, 348, 2, 1, 40, 0.075, 2000
    ),
    "bedroom256-udm-rve-st": VERow(
        "lsun-bedroom256", 256, "ncsnpp-256", "rve", 1e-3, 378, 2, 1, 40, 0.075, 2000
    ),
    "cifar10-ncsnpp-ve-st": VERow("cifar10", 32, "ncsnpp", "ve", 0.01, 50, 2, 1, 128, 0.16, 1000),
    "cifar10-ncsnpp-ve": VERow("cifar10", 32, "ncsnpp", "ve", 0.01, 50, INF, 1, 128, 0.16, 1000),
    "celeba64-ncsnpp-ve-st": VERow("celeba64", 64, "ncsnpp", "ve", 0.01, 90, 2, 1, 128, 0.17, 1000),
    "celeba64-ncsnpp-ve": VERow("celeba64", 64, "ncsnpp", "ve", 0.01, 90, INF, 1, 128, 0.17, 1000),
}
PAPER = [*VP, *VE]
OTHERS = [
    "cifar10-ddpmpp-vp-nll-st-cond",
    "cifar10-edm",
    "cifar10-edm-st",
    "cifar10-small",
    "cifar10-small-cond",
    "fashion-mnist-cond",
    "fashion16-cond",
    "cifar16-expected",
    "cifar16-expected-k0.8",
    "cifar16-hard",
    "cifar16-soft",
    "digits-rve-st",
    "digits-ve",
    "digits-ve-st",
    "digits-vp-fid",
    "digits-vp-fid-st",
    "digits-vp-nll",
    "digits-vp-nll-st",
    "fashion-mnist",
    "fashion16",
    "fashion16-expected",
    "fashion16-expected-k0.4",
    "fashion16-expected-k0.6",
    "fashion16-expected-k0.8",
    "fashion16-hard",
    "fashion16-soft",
    "fashion16-soft-k0.8",
    "fashion16-variance",
    "fashion16-ve-expected",
    "fashion16-ve-hard",
    "fashion16-ve-soft",
    "folder-256",
    "folder-32",
    "folder-64",
    "latents-small",
]
# FID, inception score, bits/dim.
REPORTED = {
    "stl10-uncsnpp-rve-st": (7.71, 13.43, None),
    "imagenet32-ddpmpp-vp-nll-st": (8.42, 11.82, 3.85),
    "celeba64-ddpmpp-vp-fid-st": (1.90, None, 2.10),
    "celeba64-ddpmpp-vp-nll-st": (2.90, None, 1.96),
    "celeba64-uncsnpp-rve-st": (None, None, 1.97),
    "ffhq256-udm-rve-st": (5.54, None, None),
    "bedroom256-udm-rve-st": (4.57, None, None),
    "celebahq256-uncsnpp-rve-st": (7.16, None, None),
    "cifar10-uncsnpp-rve-st": (2.33, 10.11, 3.04),
    "cifar10-uncsnpp-rve-st-shallow": (2.55, None, None),
    "cifar10-ddpmpp512-vp-fid-st": (2.47, None, 3.03),
}
# Published over TF-GAN's Inception; the rest over clean-fid's.
LEGACY = {"cifar10", "imagenet32"}


def row_of(name: str) -> VPRow | VERow:
    return VP[name] if name in VP else VE[name]


def test_the_table_and_the_recipes_are_the_same():
    assert sorted(recipe_names()) == sorted([*PAPER, *OTHERS])


@pytest.mark.parametrize("name", PAPER)
def test_what_all_share(name):
    recipe, row = load_recipe(name), row_of(name)
    training = recipe.training
    assert training.learning_rate == 2e-4
    assert (training.betas, training.adam_eps, training.weight_decay) == ((0.9, 0.999), 1e-8, 0.0)
    assert (training.warmup_steps, training.grad_clip) == (5000, 1.0)
    assert training.steps == (2_400_000 if row.size == 256 else 1_300_000)
    assert training.batch_size == (row.batch if isinstance(row, VERow) else 128)
    assert training.ema_rate == (0.999 if isinstance(row, VERow) else 0.9999)
    assert (recipe.data.preset, recipe.data.source) == (row.data, None)
    assert (recipe.data.image_size, recipe.data.channels) == (row.size, 3)
    assert recipe.data.flip
    # Bits/dim are reported on these three alone.
    assert recipe.data.dequantize == (row.data in ("cifar10", "imagenet32", "celeba64"))
    assert not recipe.objective.stratified
    assert not recipe.objective.expected
    assert recipe.evaluation.samples == 50_000
    assert recipe.evaluation.resize == ("legacy" if row.data in LEGACY else "clean")
    evaluation = recipe.evaluation
    assert (evaluation.solver, evaluation.rtol, evaluation.atol) == ("rk45", 1e-5, 1e-5)
    assert recipe.evaluation.eps == (row.eps if isinstance(row, VPRow) else 1e-5)
    assert recipe.truncation.eps == (row.eps if isinstance(row, VPRow) else 1e-5)
    paper = recipe.paper
    figures = None if paper is None else (paper.fid, paper.inception_score, paper.bits_per_dim)
    assert figures == REPORTED.get(name)


@pytest.mark.parametrize("name", PAPER)
def test_the_prior(name):
    row = row_of(name)
    if math.isinf(row.k):
        expected = HardTruncation(row.eps if isinstance(row, VPRow) else 1e-5)
    else:
        expected = PowerPrior(row.k, 1e-5, row.tau_max if isinstance(row, VERow) else 1.0)
    assert build_prior(load_recipe(name)) == expected


@pytest.mark.parametrize("name", VP)
def test_the_vp_table(name):
    recipe, row = load_recipe(name), VP[name]
    assert recipe.sde.model_dump() == {"kind": "vp", "beta_min": 0.1, "beta_max": 20.0}
    objective = recipe.objective
    assert objective.reduction == "mean"
    if isinstance(row.objective, tuple):
        assert objective.weighting == "mixed"
        assert objective.average
        assert (objective.mixed.coefficient, objective.mixed.balanced) == row.objective
        assert isinstance(build_objective(recipe), MixedLoss)
    else:
        laws = {
            "nll": ("likelihood", "importance", False),
            "fid": ("variance", "uniform", True),
        }
        assert (objective.weighting, objective.times, objective.average) == laws[row.objective]
    assert recipe.network.conditioning == ("unbounded_time" if row.unbounded else None)
    sampler = build_sampler(recipe.sampling, build_sde(recipe))
    if row.sampler == "ode":
        assert isinstance(sampler, ProbabilityFlow)
        assert (sampler.rtol, sampler.atol, sampler.t_end) == (1e-5, 1e-5, row.eps)
    else:
        assert isinstance(sampler, PredictorCorrector)
        # One call a step: every public file of these rows has no corrector.
        assert (sampler.steps, sampler.corrector_steps, sampler.t_end) == (1000, 0, 1e-3)
        assert sampler.predictor == "euler_maruyama"


@pytest.mark.parametrize("name", VE)
def test_the_ve_table(name):
    recipe, row = load_recipe(name), VE[name]
    sde = recipe.sde
    assert (sde.kind, sde.sigma_min, sde.sigma_max) == (row.kind, row.s_min, row.s_max)
    objective = recipe.objective
    assert (objective.weighting, objective.average, objective.reduction) == (
        "variance",
        True,
        "sum",
    )
    # In the clock in which log sigma is linear, both are the same law.
    assert objective.times == ("uniform" if row.kind == "ve" else "log_snr")
    assert recipe.network.conditioning == ("unbounded_sigma" if row.kind == "rve" else None)
    sampler = build_sampler(recipe.sampling, build_sde(recipe))
    assert isinstance(sampler, PredictorCorrector)
    assert (sampler.steps, sampler.snr, sampler.corrector_steps) == (row.n, row.snr, 1)
    assert sampler.predictor == "reverse_diffusion"


def test_the_middle_prior_begins_at_sigma_one_hundredth():
    recipe = load_recipe("cifar10-uncsnpp-rve-st")
    sigma = build_sde(recipe).marginal(torch.tensor(build_prior(recipe).tau_max)).sigma
    assert float(sigma) == pytest.approx(0.01, rel=1e-3)
    taus = build_prior(recipe).sample(20_000, generator=torch.Generator().manual_seed(0))
    # 1/tau is uniform on [78719, 1e5]; a mean of 20,000 is off by 4 standard errors once in 16,000.
    width = 1e5 - 78_719
    assert float((1 / taus).mean()) == pytest.approx(
        78_719 + width / 2, abs=4 * width / math.sqrt(12 * 20_000)
    )


@pytest.mark.parametrize("name", PAPER)
def test_the_network_and_its_exact_size(name):
    row = row_of(name)
    net = NETWORKS[row.net]
    config = build_network_config(load_recipe(name), channels=3, image_size=(row.size, row.size))
    assert (config.base_channels, config.channel_multipliers) == (net.base, net.multipliers)
    assert (config.blocks_per_level, config.attention_resolutions) == (net.blocks, (16,))
    assert (config.fir, config.fir_kernel) == (net.fir, (1, 3, 3, 1))
    assert (config.embedding, config.embedding_size) == (net.embedding, net.embedding_size)
    assert config.fourier_scale == 16.0
    assert (config.input_pyramid, config.output_pyramid) == net.pyramids
    assert config.input_combine == "sum"
    assert config.dropout == net.dropout
    assert (config.residual_block, config.nonlinearity) == ("biggan", "silu")
    assert config.skip_rescale
    assert config.init_scale == 0.0
    assert parameter_count(config) == net.parameters


def one_step(name: str, options: str, side: int, batch: int = 2) -> tuple[float, float]:
    """Train one step on random images; the loss, and how far the weights moved at most."""
    recipe = override_recipe(
        load_recipe(name),
        [f"network.options={options}", f"training.batch_size={batch}", "training.warmup_steps=0"],
        "here",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    data = ImageDataset.create(pixels, name="noise", split="train", source="here")
    model = build_model(recipe, channels=3, image_size=(side, side))
    before = [p.detach().clone() for p in model.parameters()]
    state = TrainState.create(model, build_training(recipe))
    (record,) = fit(
        state,
        build_objective(recipe),
        data,
        build_training(recipe),
        steps=1,
        value_range=model.value_range,
        accelerator=Accelerator(),
    )
    moved = max(
        float((p.detach() - q).abs().max()) for p, q in zip(model.parameters(), before, strict=True)
    )
    assert record.step == state.step == 1
    return float(record.loss.mean()), moved


# Full width, at the recipe's own image size, one block a level rather than 2 to 8 (a step of the
# whole network takes up to a minute on one core). The two of 256x256 with different sigma share a
# network: one is trained at 256, the other at 64.
SIDES = {"bedroom256-udm-rve-st": 64}

# Hard truncation and Soft Truncation of one model, and two data sets of one model: only the first
# of each pair is trained.
TWINS = {
    "cifar10-ddpmpp-vp-nll": "cifar10-ddpmpp-vp-nll-st",
    "cifar10-ddpmpp-deep-vp-nll": "cifar10-ddpmpp-deep-vp-nll-st",
    "imagenet32-ddpmpp-vp-nll": "imagenet32-ddpmpp-vp-nll-st",
    "celeba64-ddpmpp-vp-nll": "celeba64-ddpmpp-vp-nll-st",
    "celeba64-ddpmpp-vp-fid": "celeba64-ddpmpp-vp-fid-st",
    "celeba64-uddpmpp-vp-nll": "celeba64-uddpmpp-vp-nll-st",
    "celeba64-uddpmpp-vp-fid": "celeba64-uddpmpp-vp-fid-st",
    "cifar10-ncsnpp-ve": "cifar10-ncsnpp-ve-st",
    "celeba64-ncsnpp-ve": "celeba64-ncsnpp-ve-st",
    "ffhq256-udm-rve-st": "celebahq256-uncsnpp-rve-st",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAPER if name not in TWINS])
def test_one_step_at_full_width(name):
    side = SIDES.get(name, row_of(name).size)
    batch = 2 if load_recipe(name).objective.weighting == "mixed" else 1
    loss, moved = one_step(name, "{blocks_per_level: 1}", side, batch)
    assert math.isfinite(loss)
    assert loss > 0.0
    # Adam's first step moves what has a gradient by the learning rate.
    assert moved == pytest.approx(2e-4, rel=0.02)


@pytest.mark.parametrize("name", TWINS)
def test_twins_differ_in_truncation_or_data_alone(name):
    one, other = (load_recipe(n).model_dump() for n in (name, TWINS[name]))
    differing = {key for key in one if one[key] != other[key]} - {"name", "description", "paper"}
    if name == "ffhq256-udm-rve-st":
        assert differing == {"data"}
    elif name == "imagenet32-ddpmpp-vp-nll":  # eps 5e-5, where its evaluation ends too
        assert differing == {"truncation", "sampling", "evaluation"}
    else:
        assert differing == {"truncation"}
    build_objective(load_recipe(name)).draw(2)


def test_one_step_of_a_whole_network():
    loss, moved = one_step("cifar10-uncsnpp-rve-st-shallow", "{}", 32, batch=1)
    assert math.isfinite(loss)
    assert moved == pytest.approx(2e-4, rel=0.02)
