"""Distances of a run's samples to images, with their protocols."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from softtrunc.data import ImageDataset, stretch_levels
from softtrunc.metrics import (
    DigitsFeatures,
    FeatureExtractor,
    FeatureStatistics,
    TorchScriptFeatures,
    distance_name,
    frechet_distance,
)
from softtrunc.recipes.errors import UserError, nearest, user_errors
from softtrunc.recipes.open_run import OpenRun
from softtrunc.recipes.progress import Progress
from softtrunc.recipes.sample import draw
from softtrunc.recipes.schema import Recipe
from softtrunc.report.figure import Figure
from softtrunc.report.grid import save_grid

__all__ = ["SAMPLE_FIGURES", "build_extractor", "measure_samples"]

SAMPLE_FIGURES = ("frechet_distance", "frechet_distance_test")
"""What is measured unless told otherwise."""


def build_extractor(recipe: Recipe, train: ImageDataset) -> FeatureExtractor:
    """The feature extractor that the recipe's evaluation names.

    Args:
        recipe: of the run.
        train: the images it was trained on.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    name = recipe.evaluation.features
    if name is None:
        raise UserError(
            f"recipe {recipe.name}: no feature extractor: add --set evaluation.features=PATH "
            "(a TorchScript file, e.g. inception-2015-12-05.pt), or measure --bpd alone"
        )
    if name == "digits-mlp":
        if train.labels is None or train.card.name != "digits":
            raise UserError("evaluation.features=digits-mlp judges the digits only: give a path")
        return DigitsFeatures(train.images, train.labels)
    with user_errors("evaluation.features"):
        if not Path(name).is_file():
            raise UserError(
                f"evaluation.features={name}: no such file; {nearest(name, ['digits-mlp'])}"
            )
        return TorchScriptFeatures(Path(name))


def _statistics(
    extractor: FeatureExtractor,
    batches: Iterable[Tensor],
    count: int,
    opened: OpenRun,
    progress: Progress,
) -> FeatureStatistics:
    statistics = FeatureStatistics(extractor.dim)
    with progress.task(f"features {opened.run.path.name}", count) as bar:
        for images in batches:
            levels = opened.card.levels
            pixels = stretch_levels(images, levels) if extractor.full_range else images
            statistics.update(extractor(pixels.to(opened.device)))
            bar.advance(len(images))
    return statistics


def measure_samples(
    opened: OpenRun,
    extractor: FeatureExtractor,
    data: Mapping[str, ImageDataset],
    progress: Progress,
) -> Iterator[Figure]:
    """Draw samples and judge them; figures come one by one.

    Args:
        opened: the run.
        extractor: of the features that are compared.
        data: the train and the test split.
        progress: where bars go.
    """
    recipe, spec = opened.recipe, opened.recipe.evaluation
    began = time.perf_counter()
    drawn = draw(
        opened, spec.samples, seed=spec.seed, batch_size=spec.batch_size, progress=progress
    )
    grid = drawn.images[: recipe.training.samples]
    save_grid(stretch_levels(grid, opened.card.levels), opened.run.samples / "final.png")
    parts = drawn.images.split(spec.batch_size)
    ours = _statistics(extractor, parts, spec.samples, opened, progress)
    seconds = time.perf_counter() - began
    # The field's distances are to the training images; held-out ones tell memory from skill.
    for split, key in (("train", "frechet_distance"), ("test", "frechet_distance_test")):
        reference = data[split]
        batches = (reference.batch(i) for i in torch.arange(len(reference)).split(spec.batch_size))
        theirs = _statistics(extractor, batches, len(reference), opened, progress)
        name = distance_name(extractor, spec.samples)
        yield Figure(
            key=key,
            name=name if split == "train" else f"{name} to held-out",
            value=frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance),
            standard_error=None,
            unit="",
            better="lower",
            seconds=seconds,
            nfe={"mean": float(drawn.nfe), "max": float(drawn.nfe)},
            protocol={
                "samples": spec.samples,
                "reference": f"{reference.card.name} {split}",
                "n_reference": len(reference),
                "reference_fingerprint": reference.card.fingerprint,
                "extractor": extractor.name,
                "extractor_hash": extractor.hash,
                "resize": extractor.resize,
                "sampler": recipe.sampling.model_dump(),
                "quantization": "clipped, rounded to the nearest level",
                "seed": spec.seed,
            },
        )
