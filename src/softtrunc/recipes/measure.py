"""Measure a run: `evaluation.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

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
from softtrunc.recipes.build import build_data
from softtrunc.recipes.errors import UserError, nearest, user_errors
from softtrunc.recipes.open_run import OpenRun, open_run
from softtrunc.recipes.progress import Progress, Silent
from softtrunc.recipes.run import UNKNOWN_FINGERPRINT, now, package_versions, write_text
from softtrunc.recipes.sample import draw
from softtrunc.recipes.schema import Recipe
from softtrunc.report.density import DensityFigure, DensityProtocol, measure_density
from softtrunc.report.figure import Figure
from softtrunc.report.grid import save_grid
from softtrunc.training import Weights

__all__ = ["measure"]


def _extractor(recipe: Recipe, train: ImageDataset) -> FeatureExtractor:
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


def _measure_samples(
    opened: OpenRun,
    extractor: FeatureExtractor,
    data: Mapping[str, ImageDataset],
    progress: Progress,
) -> Iterator[Figure]:
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


def _measure_density(
    opened: OpenRun, data: ImageDataset, limit: int | None, progress: Progress
) -> Iterator[Figure]:
    spec = opened.recipe.evaluation
    protocol = DensityProtocol(
        eps=spec.eps,
        solver=spec.solver,
        rtol=spec.rtol,
        atol=spec.atol,
        probes=spec.probes,
        nelbo_draws=spec.nelbo_draws,
        passes=spec.passes,
        batch_size=spec.batch_size,
        limit=limit,
        seed=spec.seed,
    )
    for key in get_args(DensityFigure):
        total = spec.passes * min(len(data), limit or len(data))
        with progress.task(f"{key} {opened.run.path.name}", total) as bar:
            yield measure_density(key, opened.model, data, protocol, advance=bar.advance)


def _training_summary(opened: OpenRun) -> dict[str, Any]:
    rows = opened.run.metrics()
    spec = opened.recipe.training
    rates = sorted(row["images_per_second"] for row in rows)
    return {
        "seconds": opened.seconds,
        "images_per_second": rates[len(rates) // 2] if rates else None,
        "parameters": sum(p.numel() for p in opened.model.parameters()),
        "steps": opened.step,
        "batch_size": spec.batch_size,
    }


def measure(
    path: Path,
    *,
    density: bool = True,
    samples: bool | None = None,
    split: str = "test",
    limit: int | None = None,
    weights: Weights = "ema",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a run and write its `evaluation.json`, figure by figure.

    Figures measured before are kept where they are of the same checkpoint and weights and are not
    measured again.

    Args:
        path: the run folder.
        density: whether to measure bits per dimension.
        samples: whether to measure distances; None: if the recipe names a feature extractor.
        split: of the images for bits per dimension.
        limit: only the first so many of them.
        weights: averaged or raw.
        overrides: `a.b=c` changes of the recipe's sampling, evaluation and data.source.
        progress: where bars and lines go.

    Returns:
        The content of `evaluation.json`.

    Raises:
        UserError: if the run, the data, a key or the feature extractor is not usable.
    """
    progress = progress or Silent()
    opened = open_run(path, weights=weights, overrides=overrides)
    if samples is None:
        samples = opened.recipe.evaluation.features is not None
        if not samples:
            progress.say(
                "no distance of samples: give --fid --set evaluation.features=PATH to measure one"
            )
    if density and not opened.recipe.data.dequantize:
        raise UserError(
            f"recipe {opened.recipe.name}: data.dequantize is false: the model never saw the "
            "cells of the grey levels and its bits/dim mean nothing; train with "
            "--set data.dequantize=true, or measure --fid alone"
        )
    needed = {"train", split} | ({"test"} if samples else set())
    data = {name: build_data(opened.recipe, name, progress) for name in sorted(needed)}
    trained_on = data["train"].card
    if opened.card.fingerprint not in (UNKNOWN_FINGERPRINT, trained_on.fingerprint):
        raise UserError(
            f"{path}: trained on other data ({opened.card.name}, SHA-256 "
            f"{opened.card.fingerprint[:12]}; given {trained_on.fingerprint[:12]}): name them "
            "with --data"
        )
    # Whatever can be refused is refused before hours are spent on figures.
    extractor = _extractor(opened.recipe, data["train"]) if samples else None
    card = data[split].card
    content: dict[str, Any] = {
        "run": path.name,
        "step": opened.step,
        "weights": weights,
        "created": now(),
        "versions": package_versions(),
        "data": {
            "name": card.name,
            "split": split,
            "n": card.count,
            "levels": card.levels,
            "value_range": list(opened.model.value_range),
            "fingerprint": card.fingerprint,
        },
        "figures": [],
        "training": _training_summary(opened),
    }
    content["figures"] = _earlier(opened, content)

    def store(figure: Figure) -> None:
        kept = [f for f in content["figures"] if f["key"] != figure.key]
        content["figures"] = [*kept, figure.to_dict()]
        text = json.dumps(content, indent=1, allow_nan=False)
        write_text(opened.run.evaluation_file, text + "\n")

    if density:
        for figure in _measure_density(opened, data[split], limit, progress):
            store(figure)
    if extractor is not None:
        for figure in _measure_samples(opened, extractor, data, progress):
            store(figure)
    return content


def _earlier(opened: OpenRun, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of an existing `evaluation.json` of the same checkpoint and weights."""
    try:
        old = json.loads(opened.run.evaluation_file.read_text(encoding="utf-8"))
        same = old["step"] == content["step"] and old["weights"] == content["weights"]
        return [f for f in old["figures"] if f["key"]] if same else []
    except (OSError, KeyError, TypeError, ValueError):
        return []
