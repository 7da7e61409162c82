"""A pipeline of diffusers becomes a run folder, as if it had been trained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softtrunc.feedback.errors import UserError, missing_packages, user_errors
from softtrunc.feedback.files import whole_folder
from softtrunc.interop.diffusers_pipeline import INDEX_FILE, DiffusersPipeline, read_pipeline
from softtrunc.jobs.import_checkpoint import Imported, data_card
from softtrunc.pretrained import check_shapes, load_exactly
from softtrunc.recipes import schema
from softtrunc.recipes.build import build_data, build_model, build_training
from softtrunc.recipes.load import override_recipe, parse_recipe
from softtrunc.runs.folder import Run
from softtrunc.training import TrainState, save_checkpoint

SCHEME = "hf://"


def is_pipeline(source: str) -> bool:
    """Whether what is to be imported is a repository of the Hub, or a folder."""
    return source.startswith(SCHEME) or Path(source).is_dir()


def import_pipeline(source: str, out: Path, *, overrides: Sequence[str] = ()) -> Imported:
    """Write a DDPM-family pipeline as a run that sample, evaluate, anatomy and train accept.

    The recipe says how such models are trained: hard truncation at the first step 1 / N, the
    sigma^2 weighting. All densities end there as well; whoever trains on says how far down.

    Args:
        source: a folder that diffusers wrote, or `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`.
        out: the run folder; new or empty.
        overrides: `a.b=c` changes of the recipe.

    Raises:
        UserError: if the folder is taken, or the pipeline is not there or of another kind.
    """
    run = Run(out)
    run.check_vacant()
    with user_errors(), missing_packages():
        found = _read(source)
    if found.network.conditional:
        raise UserError(
            f"{source}: the network is told classes, which a run of a pipeline does not know: load "
            "it with softtrunc.interop.from_diffusers and give it class_labels"
        )
    where = f"import {source}"
    recipe = override_recipe(
        parse_recipe(recipe_of_pipeline(found, out.name, source), where), overrides, where
    )
    data = None if recipe.data.source is None else build_data(recipe, "train")
    card = data_card(recipe, data)
    model = build_model(recipe, channels=card.channels, image_size=(card.height, card.width))
    with user_errors():
        load_exactly(model.network, found.weights, source)
    state = TrainState.create(model, build_training(recipe))
    with whole_folder(out) as partial:
        save_checkpoint(Run(partial).checkpoints, state)
        Run(partial).start(recipe, card)
    return Imported(state.step, model.conditioning, {}, moments=False)


def _read(source: str) -> DiffusersPipeline:
    """The parts of the pipeline; that the weights fit is known before memory is taken for them."""
    if source.startswith(SCHEME):
        name, _, revision = source.removeprefix(SCHEME).partition("@")
        if name.count("/") != 1:
            raise UserError(
                f"{source}: write {SCHEME}OWNER/NAME, e.g. {SCHEME}google/ddpm-cifar10-32"
            )
        found = read_pipeline(name, revision=revision or None)
    else:
        if not (Path(source) / INDEX_FILE).is_file():
            raise UserError(
                f"{source}: no pipeline of diffusers (no {INDEX_FILE}): name a folder that "
                "save_pretrained of a pipeline wrote, or a checkpoint (.pth)"
            )
        found = read_pipeline(source)
    with torch.device("meta"):
        sketch = found.network.build()
    check_shapes(sketch, {name: tuple(t.shape) for name, t in found.weights.items()}, source)
    return found


def recipe_of_pipeline(found: DiffusersPipeline, name: str, source: str) -> dict[str, Any]:
    """What a recipe can say of a pipeline: all of the model, and how DDPMs are trained."""
    first = found.schedule.sde.t_end
    options = found.network.to_dict()
    size = found.network.size
    for key in ("sample_size", "in_channels", "out_channels"):
        options.pop(key, None)
    return {
        "name": name,
        "description": f"Imported from the diffusers pipeline {source}.",
        "data": {
            "image_size": size.height if size.height == size.width else list(size),
            "channels": found.network.channels,
        },
        "sde": {"kind": "tabulated", **found.schedule.words},
        "truncation": {"k": float("inf"), "eps": first},
        "objective": {"weighting": "variance", "times": "uniform", "average": True},
        "network": {
            "preset": schema.DIFFUSERS,
            "options": options,
            "conditioning": "timestep",
            "prediction": found.schedule.prediction,
            "value_range": [-1.0, 1.0],
        },
        "training": {"steps": 1000, "warmup_steps": 100},
        "sampling": {"sampler": "dpm_solver", "steps": 25},
        "evaluation": {"eps": first},
    }
