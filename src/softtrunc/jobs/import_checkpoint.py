"""A public checkpoint becomes a run folder, as if it had been trained here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from softtrunc.data import DataCard, ImageDataset, to_model_range
from softtrunc.feedback.errors import UserError, nearest, user_errors
from softtrunc.feedback.files import whole_folder
from softtrunc.interop import (
    AdamMoments,
    ConditioningChoice,
    ScoreSDECheckpoint,
    choose_conditioning,
    describe_public_config,
    read_public_config,
)
from softtrunc.interop.conditioning import random_images
from softtrunc.interop.recipe import image_shape, score_unet_config
from softtrunc.networks import ScoreUNet, ScoreUNetConfig, preset
from softtrunc.recipes import schema
from softtrunc.recipes.build import (
    build_data,
    build_model,
    build_sde,
    build_training,
)
from softtrunc.recipes.load import load_recipe, override_recipe, parse_recipe
from softtrunc.runs.folder import UNKNOWN_FINGERPRINT, Run
from softtrunc.score import Conditioning, ScoreModel
from softtrunc.sde import SDE, SDES, TabulatedVPSDE
from softtrunc.training import TrainState, Weights, save_checkpoint

_ENDS = {"start": "min", "end": "max"}
_KINDS = {known: kind for kind, known in SDES.items()}
# What the public code gives to its Runge-Kutta solver, of samples and of likelihoods.
_PUBLIC_TOLERANCE = 1e-5
# How images came to the Inception network: by itself for these, by clean-fid for all others.
_RESIZE = {"cifar10": "legacy", "imagenet32": "legacy"}
# Images on which candidate conditionings are compared.
_PROBES = 64


@dataclass(frozen=True)
class Imported:
    """What was imported.

    - `step`: optimiser steps that the checkpoint has behind it.
    - `conditioning`: what the network is told of the noise.
    - `errors`: denoising error by conditioning, where it was chosen; else empty.
    - `moments`: whether Adam's moments were in the file; training goes on with fresh ones without.
    """

    step: int
    conditioning: Conditioning
    errors: dict[Conditioning, float]
    moments: bool


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    recipe: str | None = None,
    config: Path | None = None,
    weights: Weights = "ema",
    conditioning: str | None = None,
    overrides: Sequence[str] = (),
) -> Imported:
    """Write a public checkpoint as a run that sample, evaluate and report accept.

    The run has no metrics, and says of its data what is known: all where the recipe names them,
    else the shape of an image alone.

    Args:
        path: the checkpoint.
        out: the run folder; new or empty.
        recipe: name of the recipe that describes the model, or a YAML file.
        config: instead of a recipe, the public configuration as a JSON file.
        weights: what the run samples with: the averaged weights, or the last ones for both.
        conditioning: what the network is told of the noise; None takes what recipe or
            configuration intend, "auto" what denoises better on the recipe's images (on random
            ones without).
        overrides: `a.b=c` changes of the recipe.

    Raises:
        UserError: if the folder is taken, or recipe, configuration or checkpoint are not usable
            or do not fit.
    """
    run = Run(out)
    run.check_vacant()
    allowed = (*get_args(Conditioning), "auto")
    if conditioning is not None and conditioning not in allowed:
        raise UserError(f"--conditioning {conditioning}: {nearest(conditioning, allowed)}")
    resolved = _resolve(recipe, config, overrides, out.name)
    if conditioning not in (None, "auto"):
        resolved = _conditioned(resolved, conditioning)
    data = None if resolved.data.source is None else build_data(resolved, "train")
    card = data_card(resolved, data)
    channels, size = card.channels, (card.height, card.width)
    network = score_unet_config(resolved, channels=channels, image_size=size)
    with user_errors():
        checkpoint = ScoreSDECheckpoint.read(path)
        # Before the network takes the memory that the configuration asks for.
        checkpoint.check(network, build_sde(resolved), weights)
    model = build_model(resolved, channels=channels, image_size=size)
    body = cast(ScoreUNet, model.network)
    with user_errors():
        checkpoint.fill(body, model.sde, weights)
    errors: dict[Conditioning, float] = {}
    if conditioning == "auto":
        choice = _choose_conditioning(model.eval(), data, card)
        model.conditioning, errors = choice.conditioning, choice.errors
    resolved = _conditioned(resolved, model.conditioning)
    state = TrainState.create(model, build_training(resolved))
    with user_errors():
        if weights == "ema":  # the average has them; the model itself goes on from the last ones
            checkpoint.fill(body, model.sde, "raw")
        moments = checkpoint.moments(body)
    if moments is not None:
        _remember(state, body, moments)
    state.step = checkpoint.step
    state.ema.updates = checkpoint.ema_updates
    with whole_folder(out) as partial:
        save_checkpoint(Run(partial).checkpoints, state)
        Run(partial).start(resolved, card)
    return Imported(state.step, model.conditioning, errors, moments is not None)


def _remember(state: TrainState, network: ScoreUNet, moments: AdamMoments) -> None:
    """Adam goes on with what it knew of every parameter."""
    for name, parameter in network.named_parameters():
        if name in moments.first:
            state.optimizer.state[parameter] = {
                "step": torch.tensor(float(moments.steps)),
                "exp_avg": moments.first[name],
                "exp_avg_sq": moments.second[name],
            }


def _resolve(
    recipe: str | None, config: Path | None, overrides: Sequence[str], name: str
) -> schema.Recipe:
    """The recipe of the run, from whichever of the two is given."""
    if (recipe is None) == (config is None):
        raise UserError("give either --recipe NAME or --config JSON")
    if recipe is not None:
        return load_recipe(recipe, overrides)
    assert config is not None
    with user_errors():
        public = read_public_config(config)
        where = f"configuration {config}"
        resolved = recipe_of_public_config(public, name=name, where=where)
    return override_recipe(resolved, overrides, where)


def _conditioned(recipe: schema.Recipe, conditioning: str | None) -> schema.Recipe:
    network = recipe.network.model_copy(update={"conditioning": conditioning})
    return recipe.model_copy(update={"network": network})


def data_card(recipe: schema.Recipe, data: ImageDataset | None) -> DataCard:
    """What is known of the data: everything, or the shape of an image."""
    if data is not None:
        return data.card
    channels, height, width = image_shape(recipe)
    return DataCard(
        name="unknown",
        split="train",
        source="unknown",
        count=0,
        channels=channels,
        height=height,
        width=width,
        levels=256,
        preprocessing="unknown",
        fingerprint=UNKNOWN_FINGERPRINT,
    )


def _choose_conditioning(
    model: ScoreModel, data: ImageDataset | None, card: DataCard
) -> ConditioningChoice:
    """What denoises better, on the data or on random images."""
    generator = torch.Generator().manual_seed(0)
    if data is None:
        shape = (_PROBES, card.channels, card.height, card.width)
        images = random_images(shape, model.value_range, generator=generator)
    else:
        levels = data.batch(torch.randint(len(data), (_PROBES,), generator=generator))
        noise = torch.rand(levels.shape, generator=generator)
        images = to_model_range(
            levels, levels=card.levels, value_range=model.value_range, noise=noise
        )
    models = {
        name: ScoreModel(
            model.network,
            model.sde,
            conditioning=name,
            prediction=model.prediction,
            value_range=model.value_range,
        )
        for name in model.sde.conditionings
    }
    return choose_conditioning(models, images, generator=generator)


def recipe_of_public_config(
    config: Mapping[str, Any], *, name: str, where: str = "configuration"
) -> schema.Recipe:
    """The recipe that says what a public configuration says.

    What decides the model is read strictly (`describe_public_config`); of the rest, what a recipe
    has a word for, with the recipe's default where the configuration is silent.

    Raises:
        ValueError: if the configuration describes no model, or one that no recipe can describe.
        UserError: if a value is out of the range that recipes allow.
    """
    description = describe_public_config(config, where=where)
    kind = _KINDS[type(description.sde)]
    natural = description.sde.default_value_range
    if description.value_range != natural:
        low, high = natural
        raise ValueError(
            f"{where}: data.centered = {config['data']['centered']}: recipes of this SDE have "
            f"data in [{low:g}, {high:g}]; load the model with load_score_sde_checkpoint instead"
        )
    network = description.network
    sections = {
        "name": name,
        "description": f"Imported; configured by {where.removeprefix('configuration ')}.",
        "data": {
            "image_size": network.image_size,
            "channels": network.channels,
            "flip": config["data"].get("random_flip"),
            "dequantize": config["data"].get("dequantization") == "uniform"
            or config["data"].get("uniform_dequantization") is True,
        },
        "sde": _sde(description.sde, config),
        "truncation": _truncation(config, kind) | _first_step(description.sde),
        "objective": _objective(config, kind),
        "network": _network(network) | {"conditioning": description.conditioning},
        "training": _training(config),
        "sampling": _sampling(config),
        "evaluation": _evaluation(config) | _first_step(description.sde),
    }
    spoken = _spoken(sections)
    if spoken["training"].get("grad_clip", 1.0) < 0:  # the public way of saying "none"
        spoken["training"]["grad_clip"] = None
    return parse_recipe(spoken, where)


def _sde(sde: SDE, config: Mapping[str, Any]) -> dict[str, Any]:
    """The SDE in the words of a recipe."""
    if not isinstance(sde, TabulatedVPSDE):
        return {"kind": _KINDS[type(sde)], **asdict(sde)}
    model, steps = config["model"], sde.steps
    ends = {f"beta_{end}": model[f"beta_{key}"] / steps for end, key in _ENDS.items()}
    return {"kind": _KINDS[type(sde)], "schedule": "linear", "steps": steps, **ends}


def _first_step(sde: SDE) -> dict[str, float]:
    """Where the densities of a model of discrete steps end, whatever its configuration says."""
    return {"eps": sde.t_end} if isinstance(sde, TabulatedVPSDE) else {}


def _spoken(value: Any) -> Any:
    """Without the keys on which the configuration is silent."""
    if not isinstance(value, Mapping):
        return value
    return {key: _spoken(item) for key, item in value.items() if item is not None}


def _network(network: ScoreUNetConfig) -> dict[str, Any]:
    """The nearer of the two families, and how the network differs from it."""
    name = "ncsnpp" if network.embedding == "fourier" else "ddpmpp"
    base = preset(name, image_size=network.image_size, channels=network.channels).to_dict()
    options = {key: value for key, value in network.to_dict().items() if value != base[key]}
    return {"preset": name, "options": options}


def _truncation(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Soft truncation as the configuration means it, also where the public code forgot it."""
    training = config["training"]
    if not training.get("st", False):
        k = math.inf
    elif kind == "rve":
        k = 2.0  # 1/tau uniform
    else:
        # Configurations of VE switch it on and leave k open.
        k = training.get("k", 2.0 if kind == "ve" else 1.0)
    return {"k": k, "eps": training.get("truncation_time")}


def _objective(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    training = config["training"]
    importance = training.get("importance_sampling", False)
    likelihood = importance or training.get("likelihood_weighting", False)
    mixed = training.get("mixed", False)
    # Uniform in an RVE's own time, nearly every draw would see sigma at its maximum: the public
    # code draws 1/t uniformly there.
    even = "log_snr" if kind == "rve" else "uniform"
    return {
        "weighting": "mixed" if mixed else "likelihood" if likelihood else "variance",
        "times": "importance" if importance or mixed else even,
        "stratified": False,
        # The public code draws uniform times and leaves their range out of the weight.
        "average": mixed or not importance,
        "reduction": "mean" if training.get("reduce_mean", False) else "sum",
        "mixed": {
            "coefficient": training.get("ddpm_weight"),
            "balanced": training.get("balanced"),
        },
    }


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    training, optim = config["training"], config.get("optim", {})
    return {
        "steps": training.get("n_iters", 1_300_000),
        "batch_size": training.get("batch_size"),
        "learning_rate": optim.get("lr"),
        "betas": (optim["beta1"], 0.999) if "beta1" in optim else None,
        "adam_eps": optim.get("eps"),
        "weight_decay": optim.get("weight_decay"),
        "warmup_steps": optim.get("warmup"),
        "grad_clip": optim.get("grad_clip"),
        "ema_rate": config["model"].get("ema_rate"),
        "seed": config.get("seed"),
    }


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    sampling = config.get("sampling", {})
    common = {
        "t_end": sampling.get("truncation_time"),
        "denoise_final": sampling.get("noise_removal"),
    }
    if sampling.get("method") == "ode":
        return {"sampler": "ode", **common, **_tolerances(sampling)}
    if sampling.get("method") != "pc":
        return {"sampler": schema.DPMSolverSampling().sampler, **common}
    langevin = sampling.get("corrector") == "langevin"
    predictor = sampling.get("predictor")
    known = ("reverse_diffusion", "euler_maruyama")
    return {
        "sampler": "pc",
        "steps": config["model"].get("num_scales"),
        "snr": sampling.get("snr"),
        "corrector_steps": sampling.get("n_steps_each") if langevin else 0,
        "predictor": predictor if predictor in known else "ancestral" if predictor else None,
        **common,
    }


def _tolerances(section: Mapping[str, Any]) -> dict[str, Any]:
    """Of the ODE: the configuration's own, or those that the public code has built in."""
    return {key: section.get(key, _PUBLIC_TOLERANCE) for key in ("rtol", "atol")}


def _evaluation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bits/dim and distances as the public code measures them."""
    return {
        "eps": config["training"].get("truncation_time"),
        "solver": "rk45",
        **_tolerances(config.get("eval", {})),
        "resize": _RESIZE.get(str(config["data"].get("dataset")).lower(), "clean"),
    }
