"""A trained model out of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from softtrunc.data import DataCard
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.recipes.build import build_model
from softtrunc.recipes.load import override_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.runs.folder import Run, differing
from softtrunc.score import ScoreModel
from softtrunc.training import Weights, check_weights, find_checkpoint, load_weights

# What a finished run may be asked differently.
_FREE = ("sampling.", "evaluation.", "data.source")


@dataclass(frozen=True)
class OpenRun:
    """A run with its model in evaluation mode, on the device that accelerate chooses.

    `accelerator` knows the processes among which work is shared.
    """

    run: Run
    recipe: Recipe
    card: DataCard
    model: ScoreModel
    step: int
    seconds: float
    accelerator: Accelerator

    @property
    def event(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return self.card.channels, self.card.height, self.card.width

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.accelerator.device
        return device


def open_run(
    path: Path,
    *,
    weights: Weights = "ema",
    overrides: Sequence[str] = (),
    checkpoint: int | None = None,
) -> OpenRun:
    """Load a checkpoint of a run.

    Args:
        path: the run folder.
        weights: averaged or raw.
        overrides: `a.b=c` changes of the recipe, as `--set` takes them.
        checkpoint: the step of the checkpoint; None: the newest one.

    Raises:
        UserError: if there is no run or no such checkpoint, it is damaged, or a key may not change.
    """
    run = Run(path)
    trained = run.recipe()
    recipe = override_recipe(trained, overrides, "--set")
    for key, (was, now) in differing(trained.model_dump(), recipe.model_dump()).items():
        if not key.startswith(_FREE):
            raise UserError(
                f"--set {key}={now}: the model was trained with {was}; only sampling, evaluation "
                "and data.source may change"
            )
    card = run.data_card()
    size = card.height, card.width
    with user_errors():
        found = find_checkpoint(run.checkpoints, checkpoint)
        with torch.device("meta"):  # before it takes the memory that the recipe asks for
            sketch = build_model(recipe, channels=card.channels, image_size=size)
        check_weights(found, sketch, weights)
        model = build_model(recipe, channels=card.channels, image_size=size)
        info = load_weights(found, model, weights)
    accelerator = Accelerator()
    model = model.to(accelerator.device).eval()
    return OpenRun(run, recipe, card, model, info.step, info.seconds, accelerator)
