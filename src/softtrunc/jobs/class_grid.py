"""Samples and grids of runs whose classes take turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from softtrunc.data import DataCard, ImageDataset
from softtrunc.evaluation.by_class import Labels, in_turns
from softtrunc.feedback.errors import UserError
from softtrunc.recipes.build import class_numbers
from softtrunc.recipes.schema import Recipe
from softtrunc.records import class_columns
from softtrunc.runs.folder import Run


def takes_turns(recipe: Recipe) -> bool:
    """Whether samples are drawn of one class after the other."""
    return recipe.data.labels and recipe.sampling.label is None


def check_turns(paths: Sequence[Path]) -> None:
    """Refuse to draw "all" classes of runs of which none knows any.

    Raises:
        UserError: if so, or if the first is no run.
    """
    if not any(Run(path).recipe().data.labels for path in paths):
        raise UserError("--class all: the run was trained without labels: leave it out")


def labels_of_samples(recipe: Recipe, card: DataCard, count: int) -> Labels | None:
    """The classes of the first `count` samples; None where they do not take turns."""
    numbers = class_numbers(recipe, card, range(count)) if takes_turns(recipe) else None
    return None if numbers is None else Labels(numbers, card.classes)


def grid_columns(recipe: Recipe, card: DataCard) -> int | None:
    """Columns of a grid of samples, one for each class; None: a near-square grid."""
    return class_columns(len(card.classes)) if takes_turns(recipe) else None


def real_images(recipe: Recipe, data: ImageDataset, count: int) -> Shaped[Tensor, "n c h w"]:
    """Images to show beside samples: of the same classes where these take turns, else the first."""
    turns = grid_columns(recipe, data.card) is not None
    return data.batch(in_turns(data, count) if turns else torch.arange(min(count, len(data))))
