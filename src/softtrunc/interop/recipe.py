"""The model that a recipe describes, for checkpoints of the public code."""

from __future__ import annotations

import torch

from softtrunc.feedback.errors import UserError
from softtrunc.interop.public_config import ModelDescription
from softtrunc.networks import ScoreUNetConfig
from softtrunc.recipes.build import build_data, build_model, build_network_config
from softtrunc.recipes.load import load_recipe
from softtrunc.recipes.schema import Recipe


def image_shape(recipe: Recipe) -> tuple[int, int, int]:
    """Channels, height and width of the images of a recipe that names a size.

    Raises:
        UserError: if it names none.
    """
    size = recipe.data.height_and_width
    if size is None:
        raise UserError(
            f"recipe {recipe.name}: it does not say how large its images are: add "
            "--set data.image_size=32 (and data.channels=1 for grayscale), or --data PATH"
        )
    return recipe.data.channels or 3, *size


def score_unet_config(
    recipe: Recipe, *, channels: int, image_size: tuple[int, int]
) -> ScoreUNetConfig:
    """The network of a recipe, where it is one that public checkpoints have.

    Raises:
        UserError: if it is another library's.
    """
    config = build_network_config(recipe, channels=channels, image_size=image_size)
    if isinstance(config, ScoreUNetConfig):
        return config
    raise UserError(
        f"recipe {recipe.name}: its network is that of diffusers, which no checkpoint of the "
        "public score-SDE code fills: give the pipeline itself to import"
    )


def describe_recipe(recipe: str) -> ModelDescription:
    """The model that a recipe describes: of the size that it names, else of its data.

    Args:
        recipe: name of a recipe, or a YAML file.

    Raises:
        ValueError: if there is no such recipe, it is not usable, or it does not say how large its
            images are.
    """
    try:
        resolved = load_recipe(recipe)
        if resolved.data.source is None:
            channels, *size = image_shape(resolved)
        else:
            card = build_data(resolved, "train").card
            channels, *size = card.channels, card.height, card.width
        shape = size[0], size[1]
        with torch.device("meta"):
            model = build_model(resolved, channels=channels, image_size=shape)
        network = score_unet_config(resolved, channels=channels, image_size=shape)
    except UserError as error:
        raise ValueError(str(error)) from error
    return ModelDescription(
        network=network,
        sde=model.sde,
        conditioning=model.conditioning,
        prediction=model.prediction,
        value_range=model.value_range,
    )
