"""What is to be known of a training's data before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from softtrunc.data import ImageDataset
from softtrunc.recipes.schema import Recipe

# Unreadable files are named one by one up to here.
_MOST_NAMED = 20
# A run of more epochs is nearly always meant for more images.
_MANY_EPOCHS = 10_000


def remarks(recipe: Recipe, data: ImageDataset) -> Iterator[str]:
    """One line each: what was changed or left out, and what will surprise later."""
    for what, count in data.converted.items():
        yield f"{count:,} images: {what}"
    yield from _left_out(recipe, data)
    if data.splits and "test" not in data.splits:
        yield (
            f"warning: no image of {data.card.name} is held out: bits/dim of unseen images cannot "
            "be measured (docs/training.md, Your own images)"
        )
    spec = recipe.training
    epochs = spec.steps * spec.batch_size / len(data)
    if epochs > _MANY_EPOCHS:
        yield (
            f"warning: {spec.steps:,} steps of {spec.batch_size} are {epochs:,.0f} epochs of these "
            f"{len(data):,} images: fewer may do (--steps), or the model learns them by heart"
        )


def _left_out(recipe: Recipe, data: ImageDataset) -> Iterator[str]:
    """Files that could not be read; those of prepared data were named when they were prepared."""
    skipped = data.skipped
    card = Path(str(recipe.data.source), f"{data.card.split}.json")
    if skipped and card.is_file():
        yield f"{len(skipped):,} files were left out when these were prepared ({card} names them)"
        return
    for name, reason in skipped[:_MOST_NAMED]:
        yield f"left out {name}: {reason}"
    if (more := len(skipped) - _MOST_NAMED) > 0:
        yield f"left out {more:,} more: softtrunc data inspect {recipe.data.source} names them all"
