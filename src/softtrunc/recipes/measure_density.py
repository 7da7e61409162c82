"""Bits per dimension of a run, with their protocols."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from softtrunc.data import ImageDataset
from softtrunc.recipes.errors import UserError
from softtrunc.recipes.open_run import OpenRun
from softtrunc.recipes.progress import Progress
from softtrunc.recipes.schema import Recipe
from softtrunc.report.density import DensityFigure, DensityProtocol, measure_density
from softtrunc.report.figure import Figure

__all__ = ["check_meaningful", "measure_bits"]


def check_meaningful(recipe: Recipe) -> None:
    """Refuse bits per dimension that would mean nothing.

    Raises:
        UserError: saying why, and what to do.
    """
    if not recipe.data.dequantize:
        raise UserError(
            f"recipe {recipe.name}: data.dequantize is false: the model never saw the "
            "cells of the grey levels and its bits/dim mean nothing; train with "
            "--set data.dequantize=true, or measure --fid alone"
        )


def measure_bits(
    opened: OpenRun, data: ImageDataset, limit: int | None, progress: Progress
) -> Iterator[Figure]:
    """Measure bits per dimension in every form; figures come one by one.

    Args:
        opened: the run.
        data: the images.
        limit: only the first so many of them.
        progress: where bars go.
    """
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
