"""What also goes to tensorboard or wandb, where the recipe names one of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from softtrunc.feedback.errors import UserError
from softtrunc.recipes.schema import Recipe
from softtrunc.records import MetricsLine, flatten

# tensorboard asks where an array has its channels; wandb expects them last.
_LAYOUT = {"tensorboard": {"dataformats": "NHWC"}}


class Trackers:
    """The tracker of a training; without one nothing happens.

    Args:
        accelerator: made with the recipe's tracker. All processes call alike, the first one writes.
        recipe: what is trained. `run`: the folder it is trained into.
    """

    def __init__(self, accelerator: Accelerator, recipe: Recipe, run: Path) -> None:
        self._accelerator = accelerator
        self._recipe = recipe
        self._run = run
        self._wanted = recipe.training.tracker is not None

    def begin(self) -> None:
        """Start it, in the folder of the run or in a project that its runs share."""
        if self._wanted:
            settings = {k: str(v) for k, v in flatten(self._recipe.model_dump()).items()}
            tracker = self._recipe.training.tracker
            project = self._recipe.name if tracker == "wandb" else tracker
            named = {"wandb": {"name": self._run.resolve().name, "dir": str(self._run)}}
            self._accelerator.init_trackers(project, config=settings, init_kwargs=named)

    def log(self, row: MetricsLine) -> None:
        """Hand it a line of metrics."""
        if self._wanted:
            self._accelerator.log(row.scalars, step=row.step)

    def show(self, name: str, picture: Image.Image, step: int) -> None:
        """Hand it a picture."""
        if self._wanted:
            pixels = np.asarray(picture.convert("RGB"))[None]
            for tracker in self._accelerator.trackers:
                tracker.log_images({name: pixels}, step=step, **_LAYOUT.get(tracker.name, {}))

    def end(self) -> None:
        """Write what is left."""
        if self._wanted:
            self._accelerator.end_training()


def check_tracker(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        UserError: saying what to install.
    """
    name = recipe.training.tracker
    if name is not None and find_spec(name) is None:
        raise UserError(
            f"training.tracker={name}: not installed: pip install 'softtrunc[tracking]'"
        )
