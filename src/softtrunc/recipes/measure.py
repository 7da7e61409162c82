"""Measure a run: `evaluation.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
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


def _extractor(recipe: Recipe) -> FeatureExtractor:
    name = recipe.evaluation.features
    if name is None:
        raise UserError(
            f"recipe {recipe.name}: no feature extractor: add --set evaluation.features=PATH "
            "(a TorchScript file, e.g. inception-2015-12-05.pt), or measure --bpd alone"
        )
    if name == "digits-mlp":
        train = build_data(recipe, "train")
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
    extractor: FeatureExtractor, batches: Iterable[Tensor], levels: int, opened: OpenRun
) -> FeatureStatistics:
    statistics = FeatureStatistics(extractor.dim)
    for images in batches:
        pixels = stretch_levels(images, levels) if extractor.full_range else images
        statistics.update(extractor(pixels.to(opened.device)))
    return statistics


def _measure_samples(opened: OpenRun, progress: Progress) -> list[Figure]:
    recipe, spec = opened.recipe, opened.recipe.evaluation
    extractor = _extractor(recipe)
    began = time.perf_counter()
    drawn = draw(
        opened, spec.samples, seed=spec.seed, batch_size=spec.batch_size, progress=progress
    )
    levels = opened.card.levels
    save_grid(
        stretch_levels(drawn.images[: recipe.training.samples], levels),
        opened.run.samples / "final.png",
    )
    ours = _statistics(extractor, drawn.images.split(spec.batch_size), levels, opened)
    seconds = time.perf_counter() - began
    figures = []
    # The field's distances are to the training images; held-out ones tell memory from skill.
    for split, key in (("train", "frechet_distance"), ("test", "frechet_distance_test")):
        reference = build_data(recipe, split)
        batches = (reference.batch(i) for i in torch.arange(len(reference)).split(spec.batch_size))
        theirs = _statistics(extractor, batches, levels, opened)
        name = distance_name(extractor, spec.samples)
        figures.append(
            Figure(
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
        )
    return figures


def _measure_density(
    opened: OpenRun, data: ImageDataset, limit: int | None, progress: Progress
) -> list[Figure]:
    spec = opened.recipe.evaluation
    if not opened.recipe.data.dequantize:
        raise UserError(
            f"recipe {opened.recipe.name}: data.dequantize is false: the model never saw the "
            "cells of the grey levels and its bits/dim mean nothing; train with "
            "--set data.dequantize=true, or measure --fid alone"
        )
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
    figures = []
    for key in get_args(DensityFigure):
        total = spec.passes * min(len(data), limit or len(data))
        with progress.task(f"{key} {opened.run.path.name}", total) as bar:
            figures.append(measure_density(key, opened.model, data, protocol, advance=bar.advance))
    return figures


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
    samples: bool = True,
    split: str = "test",
    limit: int | None = None,
    weights: Weights = "ema",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a run and write its `evaluation.json`.

    Figures measured before are kept where they are of the same checkpoint and weights and are not
    measured again.

    Returns:
        The content of `evaluation.json`.

    Raises:
        UserError: if the run, the data, a key or the feature extractor is not usable.
    """
    progress = progress or Silent()
    opened = open_run(path, weights=weights, overrides=overrides)
    data = build_data(opened.recipe, split)
    trained_on = build_data(opened.recipe, "train").card
    if opened.card.fingerprint not in (UNKNOWN_FINGERPRINT, trained_on.fingerprint):
        raise UserError(
            f"{path}: trained on other data ({opened.card.name}, SHA-256 "
            f"{opened.card.fingerprint[:12]}; given {trained_on.fingerprint[:12]}): name them "
            "with --data"
        )
    figures: list[Figure] = []
    if density:
        figures += _measure_density(opened, data, limit, progress)
    if samples:
        figures += _measure_samples(opened, progress)
    content: dict[str, Any] = {
        "run": path.name,
        "step": opened.step,
        "weights": weights,
        "created": now(),
        "versions": package_versions(),
        "data": {
            "name": data.card.name,
            "split": split,
            "n": len(data),
            "levels": data.card.levels,
            "value_range": list(opened.model.value_range),
            "fingerprint": data.card.fingerprint,
        },
        "figures": [f.to_dict() for f in figures],
        "training": _training_summary(opened),
    }
    content["figures"] = _earlier(opened, content) + content["figures"]
    write_text(opened.run.evaluation_file, json.dumps(content, indent=1) + "\n")
    return content


def _earlier(opened: OpenRun, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of an existing `evaluation.json` that the new ones do not replace."""
    try:
        old = json.loads(opened.run.evaluation_file.read_text(encoding="utf-8"))
        same = old["step"] == content["step"] and old["weights"] == content["weights"]
        new = {f["key"] for f in content["figures"]}
        return [f for f in old["figures"] if f["key"] not in new] if same else []
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        return []
