"""Bits per dimension of a run, with their protocols."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from softtrunc.data import ImageDataset
from softtrunc.density import Dequantizer, check_levels
from softtrunc.evaluation.bits import (
    LEARNED_FIGURES,
    LOSSLESS_FIGURES,
    DensityFigure,
    DensityProtocol,
    ImageResults,
    density_figure,
    measure_chunks,
    running_note,
    smallest_time,
    solver_error,
)
from softtrunc.evaluation.image_results import ResultFiles, TableRows, write_table
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.progress import Progress
from softtrunc.jobs.dequantizer import obtain_dequantizer
from softtrunc.recipes.schema import Recipe
from softtrunc.records import Figure
from softtrunc.runs.folder import package_versions
from softtrunc.runs.open_run import OpenRun

__all__ = ["check_images", "check_meaningful", "has_meaning", "measure_bits"]

_LOOKED_AT = 1000
"""Images whose levels are counted."""


def has_meaning(recipe: Recipe) -> bool:
    """Whether the recipe's bits per dimension mean something.

    Those of a model trained without dequantisation do where they are all lossless: it never saw the
    cells of the grey levels.
    """
    return recipe.data.dequantize or set(recipe.evaluation.figures) <= set(LOSSLESS_FIGURES)


def check_meaningful(recipe: Recipe) -> None:
    """Refuse bits per dimension that would mean nothing.

    Raises:
        UserError: saying why, and what to do.
    """
    if not has_meaning(recipe):
        raise UserError(
            f"recipe {recipe.name}: data.dequantize is false: the model never saw the "
            "cells of the grey levels and its bits/dim mean nothing; train with "
            "--set data.dequantize=true, measure the probability of the levels "
            "themselves with --dequantization none, or measure --fid alone"
        )


def check_images(opened: OpenRun, data: ImageDataset) -> None:
    """Refuse images of which no bits per dimension can be told under this model.

    Raises:
        UserError: if they have another number of levels than those the model was trained on, or
            not the number that they are said to have, or the diffusion has too little noise for
            lossless figures of them.
    """
    if data.card.levels != opened.card.levels:
        raise UserError(
            f"{data.card.name}: {data.card.levels} levels, but the model was trained on "
            f"{opened.card.levels}: their bits/dim would compare nothing; give images of "
            f"{opened.card.levels} levels with --data"
        )
    with user_errors(f"{data.card.name} ({data.card.split})"):
        check_levels(data.batch(torch.arange(min(len(data), _LOOKED_AT))), data.card.levels)
    protocol = _protocol(opened.recipe, None)
    with user_errors(f"recipe {opened.recipe.name}"):
        for key in opened.recipe.evaluation.figures:
            smallest_time(key, opened.model, data.card.levels, protocol)


def _protocol(recipe: Recipe, limit: int | None) -> DensityProtocol:
    spec = recipe.evaluation
    return DensityProtocol(
        eps=spec.eps,
        lossless_eps=spec.lossless_eps,
        solver=spec.solver,
        rtol=spec.rtol,
        atol=spec.atol,
        divergence=spec.divergence,
        probes=spec.probes,
        nelbo_draws=spec.nelbo_draws,
        passes=spec.passes,
        batch_size=spec.batch_size,
        limit=limit,
        seed=spec.seed,
        solver_check=spec.solver_check,
        dequantized=recipe.data.dequantize,
    )


def _digest(module: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def measure_bits(
    opened: OpenRun,
    data: Mapping[str, ImageDataset],
    split: str,
    limit: int | None,
    progress: Progress,
    *,
    per_image: Path | None = None,
) -> Iterator[Figure]:
    """Measure bits per dimension in the forms that the recipe's evaluation names.

    Figures come one by one, on the main process alone. What was measured before a kill is not
    measured again; several processes share the batches.

    Args:
        opened: the run.
        data: the images of `split`, and those the model was trained on under "train".
        split: which images.
        limit: only the first so many of them.
        progress: where bars go.
        per_image: a `.csv` or `.parquet` file for every image's result in every pass.

    Raises:
        UserError: if a learned dequantiser cannot be trained.
    """
    accelerator, spec = opened.accelerator, opened.recipe.evaluation
    images, protocol = data[split], _protocol(opened.recipe, limit)
    folder = opened.run.path / "evaluation.partial"
    weights = _digest(opened.model)
    learned: Dequantizer | None = None
    if any(key in LEARNED_FIGURES for key in spec.figures):
        learned = obtain_dequantizer(opened, data["train"], weights, progress)
    rows: list[TableRows] = []
    for key in dict.fromkeys(spec.figures):
        dequantizer = learned if key in LEARNED_FIGURES else None
        identity: dict[str, Any] = {
            "figure": key,
            "protocol": protocol.decisive(),
            "weights": weights,
            "images": images.card.fingerprint,
            "versions": package_versions(),
            "dequantizer": None if dequantizer is None else _digest(dequantizer),
        }
        results = _measure(opened, key, images, protocol, dequantizer, folder, identity, progress)
        if not accelerator.is_main_process:
            continue
        figure = density_figure(
            key,
            opened.model,
            images,
            protocol,
            results,
            dequantizer=dequantizer,
            error=solver_error(
                key, opened.model, images, protocol, results, dequantizer=dequantizer
            ),
        )
        rows.append(TableRows(key, figure.protocol, results))
        yield figure
    if accelerator.is_main_process:
        if per_image is not None:
            with user_errors(f"--per-image {per_image}"):
                write_table(per_image, rows)
        ResultFiles.remove(folder)


def _measure(
    opened: OpenRun,
    key: DensityFigure,
    images: ImageDataset,
    protocol: DensityProtocol,
    dequantizer: Dequantizer | None,
    folder: Path,
    identity: Mapping[str, Any],
    progress: Progress,
) -> ImageResults:
    """This process's share; on the main process everything."""
    accelerator = opened.accelerator
    files = ResultFiles(folder, key, identity)
    results = ImageResults(protocol.passes, protocol.images(images))
    done = files.gather(results)
    if done and accelerator.is_main_process:
        progress.say(f"{key}: {done} results of an interrupted evaluation are used")
    with progress.task(f"{key} {opened.run.path.name}", results.seen.size, done) as bar:
        for chunk in measure_chunks(
            key,
            opened.model,
            images,
            protocol,
            seen=results.seen,
            share=(accelerator.process_index, accelerator.num_processes),
            dequantizer=dequantizer,
        ):
            files.write(chunk)
            bar.advance(files.gather(results), running_note(results))
        if accelerator.is_main_process:
            files.wait_for_others(results, lambda n: bar.advance(n, running_note(results)))
    return results
