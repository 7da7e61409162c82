"""A trained model out of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor

from softtrunc.data import DataCard
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.processes import Company
from softtrunc.recipes.build import build_drawn, build_model, class_numbers
from softtrunc.recipes.load import override_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.runs.devices import find_devices
from softtrunc.runs.folder import UNKNOWN_FINGERPRINT, Run, differing
from softtrunc.samplers import Chimera
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.training import (
    AnyWeights,
    check_weights,
    find_checkpoint,
    list_checkpoints,
    load_average,
    load_weights,
    step_of,
)

# What a finished run may be asked differently.
_FREE = ("sampling.", "evaluation.", "data.source")


@dataclass(frozen=True)
class OpenRun:
    """A run with its model in evaluation mode, on the device that accelerate chooses.

    `accelerator` and `company` know the processes among which work is shared. `below` is another
    run whose score takes over at times <= `t` where samples are drawn, None for a run that draws
    alone.
    """

    run: Run
    recipe: Recipe
    card: DataCard
    model: ScoreModel
    step: int
    seconds: float
    accelerator: Accelerator
    company: Company
    below: OpenRun | None = None
    t: float = 0.0

    def classes_of(
        self, numbers: Sequence[int], unless_told: str | None = None
    ) -> Int64[Tensor, " n"] | None:
        """The class of samples with these numbers; see `class_numbers`."""
        return class_numbers(self.recipe, self.card, numbers, unless_told)

    def drawn_from(self, numbers: Sequence[int], unless_told: str | None = None) -> ScoreFunction:
        """What samples with these numbers are drawn from, as the recipe's `sampling` takes it."""
        spec = self.recipe.sampling
        above = build_drawn(spec, self.model, self.classes_of(numbers, unless_told))
        if self.below is None:
            return above
        told = self.below.recipe.model_copy(update={"sampling": spec})
        y = class_numbers(told, self.below.card, numbers, unless_told)  # if that run knows any
        return Chimera(above, build_drawn(spec, self.below.model, y), self.t)

    @property
    def is_newest(self) -> bool:
        """Whether no later checkpoint of the run is there."""
        return self.step == max(checkpoint_steps(self.run.path))

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
    weights: AnyWeights = "ema",
    overrides: Sequence[str] = (),
    checkpoint: int | None = None,
) -> OpenRun:
    """Load a checkpoint of a run.

    Args:
        path: the run folder.
        weights: averaged or raw, or the length of an average to make.
        overrides: `a.b=c` changes of the recipe, as `--set` takes them.
        checkpoint: the step of the checkpoint; None: the newest one.

    Raises:
        UserError: if there is no run or no such checkpoint, it is damaged, or a key may not change.
    """
    run = Run(path)
    trained = run.recipe()
    recipe = override_recipe(trained, overrides, str(path))
    for key, (was, now) in differing(trained.model_dump(), recipe.model_dump()).items():
        if not key.startswith(_FREE):
            raise UserError(
                f"{path}: {key}={now}: the model was trained with {was}; only sampling, evaluation "
                "and data.source may change"
            )
    card = run.data_card()
    known = recipe.network.options.get("num_classes")
    if recipe.data.labels and len(card.classes) != known:
        raise UserError(
            f"{path}/recipe.yaml: provenance.data names {len(card.classes)} classes, the network "
            f"was trained with {known}: put the card back as it was"
        )
    size = card.height, card.width
    with user_errors():
        found = find_checkpoint(run.checkpoints, checkpoint)
        with torch.device("meta"):  # before it takes the memory that the recipe asks for
            sketch = build_model(recipe, channels=card.channels, image_size=size)
        check_weights(found, sketch, "raw" if isinstance(weights, float) else weights)
        model = build_model(recipe, channels=card.channels, image_size=size)
        if isinstance(weights, float):
            info = load_average(found, run.averages, model, weights)
        else:
            info = load_weights(found, model, weights)
    accelerator, together = find_devices(recipe.training.timeout)
    model = model.to(accelerator.device).eval()
    return OpenRun(run, recipe, card, model, info.step, info.seconds, accelerator, together)


def checkpoint_steps(path: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first."""
    return [step_of(found) for found in list_checkpoints(Run(path).checkpoints)]


def with_below(above: OpenRun, below: OpenRun, t: float) -> OpenRun:
    """Two runs as one: samples follow the first at times > t and the second at the others.

    Raises:
        UserError: if the two do not compare, or `t` is out of range.
    """
    check_pair(above, below)
    with user_errors("--at"):
        Chimera(above.model, below.model, t)
    return replace(above, below=below, t=t)


def _grid(card: DataCard) -> object:
    """What the values of the data may be."""
    return card.value_range or card.levels


def check_pair(first: OpenRun, other: OpenRun) -> None:
    """Refuse two runs between which nothing can be compared.

    Raises:
        UserError: if they are one run, or of another SDE or other data.
    """
    where = f"{first.run.path} and {other.run.path}"
    if first.run.path.resolve() == other.run.path.resolve():
        raise UserError(f"{where}: one run twice: name it once, or another beside it")
    if first.model.sde != other.model.sde:
        raise UserError(
            f"{where}: {first.model.sde} and {other.model.sde}: compare runs of the same SDE"
        )
    ours, theirs = (
        (o.card.fingerprint, _grid(o.card), o.event, o.recipe.data.dequantize)
        for o in (first, other)
    )
    known = UNKNOWN_FINGERPRINT not in (ours[0], theirs[0])
    if ours[1:] != theirs[1:] or (known and ours[0] != theirs[0]):
        raise UserError(
            f"{where}: trained on different data ({first.card.name}, {other.card.name}, or "
            "other settings of data): compare runs on the same"
        )
