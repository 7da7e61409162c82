"""From a recipe to objects: the only place where names become things."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from softtrunc.data import DataCard, ImageDataset, find_preset, open_dataset
from softtrunc.data.classes import counted
from softtrunc.feedback.errors import UserError, missing_packages, nearest, user_errors
from softtrunc.feedback.progress import Progress, Silent, counting
from softtrunc.guidance import guided
from softtrunc.networks import NetworkConfig, UNet2DConfig, build_network, preset
from softtrunc.objective import MixedLoss, SoftTruncationLoss
from softtrunc.recipes import schema
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    autocast_score,
)
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.sde import SDE, SDES, TabulatedVPSDE
from softtrunc.times import ImportanceTimes, LogNormalTimes, LogSNRTimes, TimeLaw, UniformTimes
from softtrunc.training import TrainingConfig
from softtrunc.truncation import HardTruncation, PowerPrior, TruncationPrior
from softtrunc.weighting import (
    PriorWeight,
    Weighting,
    edm_weight,
    likelihood_weight,
    variance_weight,
)

# Image files that decode to more bytes than this are to be prepared once, not at every start.
_LARGEST_UNPREPARED = 4 << 30

# What the `sampling` section says of the model that is sampled, not of the sampler.
_OF_THE_MODEL = {"sampler", "precision", "label", "guidance", "guidance_interval"}

_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "pc": PredictorCorrector,
    "euler_maruyama": EulerMaruyama,
    "ancestral": Ancestral,
    "ode": ProbabilityFlow,
    "heun": Heun,
    "dpm_solver": DPMSolver,
}


def build_sde(recipe: schema.Recipe) -> SDE:
    """The forward diffusion."""
    spec = recipe.sde
    with user_errors("sde"):
        if isinstance(spec, schema.Tabulated):
            dtype = torch.float32 if spec.single else torch.float64
            if spec.betas is not None:
                return TabulatedVPSDE.from_betas(spec.betas, dtype)
            return TabulatedVPSDE.from_schedule(
                spec.schedule, spec.steps, spec.beta_start, spec.beta_end, dtype
            )
        return SDES[spec.kind](**spec.model_dump(exclude={"kind"}))


def build_prior(recipe: schema.Recipe) -> TruncationPrior:
    """The law of the truncation time."""
    spec, sde = recipe.truncation, build_sde(recipe)
    with user_errors("truncation.eps"):
        sde.check_smallest_time(spec.eps)
    with user_errors("truncation"):
        if spec.hard:
            return HardTruncation(spec.eps)
        return PowerPrior(spec.k, spec.eps, spec.tau_max)


def build_objective(recipe: schema.Recipe) -> SoftTruncationLoss | MixedLoss:
    """The loss."""
    spec, sde, prior = recipe.objective, build_sde(recipe), build_prior(recipe)
    # EDM's numbers are those of data in [-1, 1].
    low, high = recipe.network.value_range or sde.default_value_range
    mean, std = spec.log_normal.mean + math.log(0.5 * (high - low)), spec.log_normal.std
    sigma_data = recipe.network.sigma_data * 0.5 * (high - low)
    weights = {
        "likelihood": likelihood_weight(sde),
        "variance": variance_weight(sde),
        "edm": edm_weight(sde, sigma_data, mean, std),
    }
    laws: dict[str, TimeLaw] = {
        "importance": ImportanceTimes(sde, stratified=spec.stratified),
        "uniform": UniformTimes(sde, stratified=spec.stratified, average=spec.average),
        "log_snr": LogSNRTimes(sde, stratified=spec.stratified, average=spec.average),
        "log_normal": LogNormalTimes(sde, mean, std, stratified=spec.stratified),
    }

    def loss(times: str, weight: Weighting, prior: TruncationPrior) -> SoftTruncationLoss:
        return SoftTruncationLoss(sde, prior, laws[times], weight, spec.reduction)

    with user_errors("objective"):
        if spec.weighting == "mixed":
            return MixedLoss(
                loss("importance", weights["likelihood"], prior),
                loss("uniform", weights["variance"], prior),
                coefficient=spec.mixed.coefficient,
                balanced=spec.mixed.balanced,
            )
        weight = weights[spec.weighting]
        if spec.expected:
            weight, prior = PriorWeight(weight, prior), HardTruncation(prior.eps)
        return loss(spec.times, weight, prior)


def build_network_config(
    recipe: schema.Recipe, *, channels: int, image_size: tuple[int, int]
) -> NetworkConfig:
    """The network's configuration for images of this shape."""
    with user_errors(f"network {recipe.network.preset!r}"), missing_packages():
        if recipe.network.preset == schema.DIFFUSERS:
            return _diffusers_config(recipe.network.options, channels, image_size)
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in recipe.network.options.items()
        }
        return preset(recipe.network.preset, image_size=image_size, channels=channels, **options)


def _diffusers_config(
    options: Mapping[str, Any], channels: int, image_size: tuple[int, int]
) -> UNet2DConfig:
    """The configuration of diffusers' U-Net, which says itself for what images it is."""
    side: object = image_size[0] if image_size[0] == image_size[1] else list(image_size)
    own = {"sample_size": side, "in_channels": channels, "out_channels": channels}
    config = UNet2DConfig(own | dict(options))
    if (config.channels, *config.size) != (channels, *image_size):
        raise ValueError(
            f"the network is for images of {config.channels} x {config.size.height} x "
            f"{config.size.width}, these are {channels} x {image_size[0]} x {image_size[1]}"
        )
    return config


def build_model(recipe: schema.Recipe, *, channels: int, image_size: tuple[int, int]) -> ScoreModel:
    """Network and SDE with the random start that the recipe's seed decides."""
    config = build_network_config(recipe, channels=channels, image_size=image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        with user_errors("network"):
            network = build_network(config)
    with user_errors("network"):
        return ScoreModel(
            network,
            build_sde(recipe),
            conditioning=recipe.network.conditioning,
            prediction=recipe.network.prediction,
            value_range=recipe.network.value_range,
            sigma_data=recipe.network.sigma_data,
        )


def build_training(recipe: schema.Recipe) -> TrainingConfig:
    """How to optimise."""
    told = recipe.training.model_dump() | recipe.data.model_dump()
    with user_errors("training"):
        return TrainingConfig(**{field.name: told[field.name] for field in fields(TrainingConfig)})


def build_sampler(spec: schema.Sampling, sde: SDE) -> Sampler:
    """The sampler of a recipe's `sampling` section, for a model of this SDE."""
    options = spec.model_dump(exclude=_OF_THE_MODEL)
    with user_errors("sampling"):
        sampler = _SAMPLERS[spec.sampler](**options)
        sampler.check(sde)
    return sampler


def build_drawn(
    spec: schema.Sampling, model: ScoreModel, y: Int64[Tensor, " b"] | None = None
) -> ScoreFunction:
    """What samples are drawn from: the model as a recipe's `sampling` section takes it.

    Args:
        spec: guidance and precision.
        model: of the run.
        y: the class of each sample; None: the model knows none.
    """
    drawn: ScoreFunction = model
    if y is not None and spec.guidance:
        with user_errors("sampling"):
            drawn = guided(model, spec.guidance, {"y": y}, interval=spec.guidance_interval)
    elif y is not None:
        drawn = model.given(y=y)
    if spec.precision == "fp32":
        return drawn
    return autocast_score(drawn, {"bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision])


def with_classes(recipe: schema.Recipe, card: DataCard) -> schema.Recipe:
    """The recipe with as many classes as the data have, where it asks for labels.

    Raises:
        UserError: if the data have no labels, or another number of classes than the recipe says.
    """
    if not recipe.data.labels:
        return recipe
    found, told = len(card.classes), recipe.network.options.get("num_classes")
    if not found and card.label_fingerprint:
        raise UserError(
            f"data.labels: true: the labels of {card.name} are no numbers of classes: number "
            "the classes 0, 1, ..., or write data.labels: false"
        )
    if not found:
        raise UserError(
            f"data.labels: true: {card.name} has no labels: put the images of each class into a "
            "folder of their own, or write data.labels: false"
        )
    if told not in (None, found):
        raise UserError(
            f"network.options.num_classes={told}: {card.name} has {found} classes: write {found}, "
            "or leave it out"
        )
    options = {**recipe.network.options, "num_classes": found}
    network = recipe.network.model_copy(update={"options": options})
    return recipe.model_copy(update={"network": network})


def class_numbers(
    recipe: schema.Recipe, card: DataCard, numbers: Sequence[int], unless_told: str | None = None
) -> Int64[Tensor, " n"] | None:
    """The class of samples with these numbers, by the recipe's `sampling` section.

    Args:
        recipe: of the run.
        card: of its data.
        numbers: of the samples; where every class takes its turn, sample i is of class i modulo
            their number.
        unless_told: what stands for `sampling.label: null`.

    Returns:
        For each sample its class, or the number of classes for any; None if the run knows none.

    Raises:
        UserError: if the run knows no classes or none of that name.
    """
    spec, classes = recipe.sampling, card.classes
    if not recipe.data.labels:
        for key, value in (("label", spec.label), ("guidance", spec.guidance)):
            if value:
                raise UserError(f"sampling.{key}={value}: the run was trained without labels")
        return None
    label = unless_told if spec.label is None else spec.label
    if (label == "none" or spec.guidance) and not recipe.training.label_dropout:
        asked = "label=none" if label == "none" else f"guidance={spec.guidance:g}"
        raise UserError(
            f"sampling.{asked}: the run was trained with training.label_dropout: 0 and does not "
            "know what images of any class look like: name a class, or train with 0.1"
        )
    if label is None:
        return torch.tensor(list(numbers)) % len(classes)
    if label == "none":
        number = len(classes)
    elif label in classes:
        number = classes.index(label)
    elif label in counted(len(classes)):
        number = int(label)
    else:
        raise UserError(f"sampling.label={label}: {nearest(label, [*classes, 'none'])}")
    return torch.full((len(numbers),), number)


def build_data(recipe: schema.Recipe, split: str, progress: Progress | None = None) -> ImageDataset:
    """The images of one split ("train" or "test"), with a bar while files are read.

    Raises:
        UserError: if the recipe names no data, or they cannot be read.
    """
    spec = recipe.data
    if spec.source is None:
        raise UserError(f"recipe {recipe.name}: {what_to_give(spec)}")
    with (
        counting(progress or Silent(), f"read {split} images") as count,
        user_errors("data"),
        missing_packages(),
    ):
        return open_dataset(
            spec.source,
            split,
            image_size=spec.image_size,
            channels=spec.channels,
            preset=spec.preset,
            largest=_LARGEST_UNPREPARED,
            value_range=spec.value_range,
            progress=count,
        )


def what_to_give(spec: schema.Data) -> str:
    """What a recipe without data asks for.

    Raises:
        UserError: if its `data.preset` is unknown.
    """
    if spec.preset is None:
        return "it is for your own images: add --data PATH (a folder of images)"
    with user_errors("data"):
        known = find_preset(spec.preset)
    return (
        f"it is for {known.title}: add --data PATH (the data as released, or what `softtrunc data "
        f"prepare PATH --preset {known.name} --out DIR` wrote)"
    )
