"""Samples of a run against images, with their protocols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from softtrunc.data import ImageDataset, stretch_levels
from softtrunc.data.pictures import save_grid
from softtrunc.evaluation.distances import Judge, SampleFigure, Samples
from softtrunc.feedback.errors import UserError, nearest, user_errors
from softtrunc.feedback.progress import Progress, Silent, Task
from softtrunc.metrics import (
    DigitsFeatures,
    FeatureExtractor,
    TorchScriptFeatures,
    inception_file,
)
from softtrunc.recipes.schema import Evaluation, Recipe
from softtrunc.records import Figure
from softtrunc.runs.draw import draw
from softtrunc.runs.open_run import OpenRun

__all__ = ["build_extractor", "measure_samples", "reference_splits", "sample_keys"]

_DIGITS = "digits-mlp"
_INCEPTION = "inception"


def reference_splits(recipe: Recipe) -> tuple[str, ...]:
    """What samples are compared with unless told otherwise.

    The field's distances are to the training images. Held-out ones tell memory from skill, but
    only where they are many for the number of features, as the digits are for theirs.
    """
    return ("train", "test") if recipe.evaluation.features == _DIGITS else ("train",)


def sample_keys(recipe: Recipe) -> set[str]:
    """Keys of the figures of samples that are measured unless told otherwise."""
    if recipe.evaluation.features is None:
        return set()
    named = {"train": "frechet_distance", "test": "frechet_distance_test"}
    return {named[split] for split in reference_splits(recipe)}


def build_extractor(
    spec: Evaluation, digits: ImageDataset | None, progress: Progress
) -> FeatureExtractor:
    """The feature extractor that an evaluation names; the standard Inception if it names none.

    Args:
        spec: the recipe's evaluation.
        digits: the training images, which the digits' own classifier is trained on; None: none.
        progress: where the bar of a download goes.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    name = spec.features or _INCEPTION
    if name == _DIGITS:
        if digits is None or digits.labels is None or digits.card.name != "digits":
            raise UserError("evaluation.features=digits-mlp judges the digits only: give a path")
        return DigitsFeatures(digits.images, digits.labels)
    with ExitStack() as stack, user_errors("evaluation.features"):
        if name == _INCEPTION:
            path = inception_file(_DownloadBar(progress, stack))
        else:
            path = Path(name)
            if not path.is_file():
                hint = nearest(name, [_DIGITS, _INCEPTION])
                raise UserError(f"evaluation.features={name}: no such file; {hint}")
        return TorchScriptFeatures(path, resize=spec.resize)


class _DownloadBar:
    """A bar that appears with the first bytes, counted in MiB."""

    def __init__(self, progress: Progress, stack: ExitStack) -> None:
        self._progress = progress
        self._stack = stack
        self._task: Task | None = None
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """So many bytes came."""
        if self._task is None:
            label = "fetch the Inception network, MiB"
            self._task = self._stack.enter_context(self._progress.task(label, total >> 20))
        self._task.advance((done >> 20) - self._shown)
        self._shown = done >> 20


class _Drawer:
    """Draws a run's samples batch by batch, and keeps what the grid and the protocol need."""

    def __init__(self, opened: OpenRun) -> None:
        self._opened = opened
        self._first: list[Tensor] = []
        self._nfe = 0

    def read(self, wanted: range) -> Iterator[Tensor]:
        """Images of these numbers; image i depends on seed + i alone."""
        spec = self._opened.recipe.evaluation
        for start in range(wanted.start, wanted.stop, spec.batch_size):
            n = min(spec.batch_size, wanted.stop - start)
            drawn = draw(self._opened, n, seed=spec.seed + start, batch_size=n, progress=Silent())
            self._nfe = max(self._nfe, drawn.nfe)
            if start < self._opened.recipe.training.samples:
                self._first.append(drawn.images)
            yield drawn.images
        if self._opened.accelerator.is_main_process:
            self._save_grid()

    def _save_grid(self) -> None:
        images = torch.cat(self._first)[: self._opened.recipe.training.samples]
        pixels = stretch_levels(images, self._opened.card.levels)
        save_grid(pixels, self._opened.run.samples / "final.png")

    def nfe(self) -> int:
        """The most network evaluations of any batch of any process."""
        accelerator = self._opened.accelerator
        mine = torch.tensor([self._nfe], device=accelerator.device)
        return int(accelerator.gather(mine).max())


def measure_samples(
    opened: OpenRun,
    extractor: FeatureExtractor,
    references: Mapping[str, ImageDataset],
    figures: frozenset[SampleFigure],
    progress: Progress,
) -> Iterator[Figure]:
    """Draw samples and judge them; figures come one by one, on the main process alone.

    Args:
        opened: the run; its processes share the work.
        extractor: of the features that are compared.
        references: images to compare with, by split.
        figures: which ones.
        progress: where bars go.

    Raises:
        UserError: if there are too few images for a figure.
    """
    recipe, spec = opened.recipe, opened.recipe.evaluation
    drawer = _Drawer(opened)
    samples = Samples(
        label=f"sample {opened.run.path.name}",
        count=spec.samples,
        levels=opened.card.levels,
        channels=opened.card.channels,
        read=drawer.read,
        protocol={
            "sampler": recipe.sampling.model_dump(),
            "quantization": "clipped, rounded to the nearest level",
            "seed": spec.seed,
        },
        nfe=drawer.nfe,
    )
    judge = Judge(
        extractor,
        opened.accelerator,
        batch_size=spec.batch_size,
        seed=spec.seed,
        progress=progress,
    )
    yield from judge.measure(samples, references, figures)
