"""Soft Truncation on EDM is a recipe line, and the baseline is EDM's own training."""

from __future__ import annotations

import math

import pytest
import torch

from softtrunc import VESDE, HardTruncation, PowerPrior, ScoreModel
from softtrunc.jobs.plan import describe
from softtrunc.networks import parameter_count
from softtrunc.recipes import UserError, load_recipe
from softtrunc.recipes.build import (
    build_model,
    build_network_config,
    build_objective,
    build_sampler,
    build_sde,
    build_training,
)
from softtrunc.samplers import Heun
from softtrunc.times import LogNormalTimes
from softtrunc.training import TrainState
from softtrunc.weighting import edm_weight

pytestmark = pytest.mark.usefixtures("unchecked")

SMALL = [
    "network.options={base_channels: 8, channel_multipliers: [1, 1], blocks_per_level: 1, "
    "attention_resolutions: []}",
    "training.warmup_steps=0",
]


def test_the_baseline_is_that_of_the_paper():
    recipe = load_recipe("cifar10-edm")
    assert build_sde(recipe) == VESDE(0.002, 80.0)
    objective = build_objective(recipe)
    assert objective.prior == HardTruncation(1e-5)
    assert objective.times == LogNormalTimes(VESDE(0.002, 80.0), -1.2, 1.2)
    assert objective.weighting == edm_weight(VESDE(0.002, 80.0), 0.5, -1.2, 1.2)
    training = recipe.training
    assert training.steps * training.batch_size == 200_000_000
    assert training.warmup_steps * training.batch_size == pytest.approx(10e6, rel=1e-4)
    halved = math.log(0.5) / math.log(training.ema_rate) * training.batch_size
    assert halved == pytest.approx(500_000, rel=0.01)
    assert (training.learning_rate, training.grad_clip) == (1e-3, None)
    sampler = build_sampler(recipe.sampling, build_sde(recipe))
    assert sampler == Heun(steps=18, grid="edm")
    config = build_network_config(recipe, channels=3, image_size=(32, 32))
    assert (config.base_channels, config.channel_multipliers) == (128, (2, 2, 2))
    assert (config.blocks_per_level, config.dropout) == (4, 0.13)
    assert parameter_count(config) == 55_732_739  # the paper's 55.7 million
    assert "55,732,739" in describe(recipe)


def test_soft_truncation_is_one_line():
    hard, soft = (load_recipe(n).model_dump() for n in ("cifar10-edm", "cifar10-edm-st"))
    differing = {key for key in hard if hard[key] != soft[key]}
    assert differing == {"name", "description", "truncation"}
    assert build_objective(load_recipe("cifar10-edm-st")).prior == PowerPrior(1.0)


def test_another_range_of_data_is_the_same_model_in_other_units():
    """Sigma, its law and sigma_data shrink with the range; the loss per image stays."""
    one = load_recipe("cifar10-edm", SMALL)
    half = load_recipe(
        "cifar10-edm",
        [*SMALL, "network.value_range=[0, 1]", "sde={sigma_min: 1e-3, sigma_max: 40}"],
    )
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = []
    for recipe, images in ((one, 2 * x - 1), (half, x)):
        model = build_model(recipe, channels=3, image_size=(8, 8)).eval()
        # The last convolution starts at zero; let it say something.
        torch.nn.init.normal_(
            model.network.head.conv.weight, std=0.1, generator=torch.Generator().manual_seed(2)
        )
        objective = build_objective(recipe)
        generator = torch.Generator().manual_seed(1)
        losses.append(objective(model, images, generator=generator).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cifar10-edm", "cifar10-edm-st"])
def test_one_step(name):
    recipe = load_recipe(name, SMALL)
    model = build_model(recipe, channels=3, image_size=(32, 32))
    assert isinstance(model, ScoreModel)
    assert (model.prediction, model.conditioning) == ("edm", "edm")
    assert (model.sigma_data, model.value_range) == (0.5, (-1.0, 1.0))
    state = TrainState.create(model, build_training(recipe))
    before = [p.detach().clone() for p in model.parameters()]
    x = 2 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    terms = build_objective(recipe)(model, x, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(terms.loss.mean().item())
    terms.loss.mean().backward()
    state.optimizer.step()
    moved = max((p - q).abs().max().item() for p, q in zip(model.parameters(), before, strict=True))
    assert moved == pytest.approx(1e-3, rel=0.05)


def test_a_mean_has_no_place_beside_a_law_of_its_own():
    with pytest.raises(UserError, match="average: true belongs to uniform times"):
        load_recipe("cifar10-edm", ["objective.average=true"])
