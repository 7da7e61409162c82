"""Bits per dimension of a data set, in each of the forms in use, with their protocols."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from softtrunc.data import ImageDataset
from softtrunc.density import (
    Density,
    Method,
    dequantize,
    mean_with_error,
    nelbo,
    probability_flow_nll,
)
from softtrunc.report.figure import Figure
from softtrunc.report.summary import DENSITY_FIGURES
from softtrunc.score import ScoreModel

__all__ = ["DensityFigure", "DensityProtocol", "measure_density"]

DensityFigure = Literal["nll_residual", "nll", "nelbo"]


@dataclass(frozen=True)
class DensityProtocol:
    """How bits per dimension are measured.

    - `eps`: smallest diffusion time. `solver`, `rtol`, `atol`: of the probability-flow ODE.
    - `probes`: Hutchinson probes per example. `nelbo_draws`: times per example.
    - `passes`: how often each image is counted, each time with fresh noise.
    - `batch_size`: examples at a time (no influence on the numbers).
    - `limit`: only the first so many images; None: all.
    - `seed`: of all noise; an image's draws follow from the seed, the pass and its place.
    """

    eps: float = 1e-5
    solver: Method = "rk45"
    rtol: float = 1e-5
    atol: float = 1e-5
    probes: int = 1
    nelbo_draws: int = 32
    passes: int = 1
    batch_size: int = 256
    limit: int | None = None
    seed: int = 0


def _example_seeds(protocol: DensityProtocol, turn: int, first: int, last: int) -> list[int]:
    """One seed per image and pass: an image's draws do not depend on how batches are cut."""
    return [
        int(np.random.SeedSequence([protocol.seed, turn, i]).generate_state(1, np.uint64)[0] >> 1)
        for i in range(first, last)
    ]


def _density(
    key: DensityFigure, model: ScoreModel, x: Tensor, seeds: list[int], p: DensityProtocol
) -> Density:
    if key == "nelbo":
        return nelbo(model, x, eps=p.eps, draws=p.nelbo_draws, seeds=seeds)
    return probability_flow_nll(
        model,
        x,
        eps=p.eps,
        method=p.solver,
        rtol=p.rtol,
        atol=p.atol,
        probes=p.probes,
        residual=key == "nll_residual",
        seeds=seeds,
    )


def _protocol(
    key: DensityFigure, data: ImageDataset, n: int, p: DensityProtocol
) -> dict[str, object]:
    common: dict[str, object] = {
        "split": data.card.split,
        "n": n,
        "passes": p.passes,
        "levels": data.card.levels,
        "dequantization": "uniform",
        "eps": p.eps,
        "seed": p.seed,
    }
    if key == "nelbo":
        return common | {
            "estimator": "score-matching bound",
            "draws": p.nelbo_draws,
            "residual": "Gaussian",
        }
    return common | {
        "estimator": "probability-flow ODE",
        "solver": f"{p.solver} in the angle of signal and noise, steps per example",
        "rtol": p.rtol,
        "atol": p.atol,
        "divergence": f"Hutchinson, {p.probes} Rademacher probe{'s' if p.probes > 1 else ''}",
        "residual": "Gaussian" if key == "nll_residual" else "none",
    }


def measure_density(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    protocol: DensityProtocol,
    *,
    advance: Callable[[int, str], None] | None = None,
) -> Figure:
    """Mean bits per dimension over a data set, every image counted once per pass.

    The standard error is that of the mean over images (passes averaged first).

    Args:
        key: which form.
        model: on its device, with the weights to be judged.
        data: uint8 images.
        protocol: how.
        advance: called with the number of images done and a note.
    """
    began = time.perf_counter()
    device = next(model.parameters()).device
    n = min(len(data), protocol.limit or len(data))
    per_image = torch.zeros(n, dtype=torch.float64)
    nfe_sum, nfe_max = 0, 0
    done = 0
    model.eval()
    for turn in range(protocol.passes):
        this_pass = torch.zeros(n, dtype=torch.float64)
        for first in range(0, n, protocol.batch_size):
            last = min(n, first + protocol.batch_size)
            seeds = _example_seeds(protocol, turn, first, last)
            levels = data.batch(torch.arange(first, last)).to(device)
            x = dequantize(levels, data.card.levels, model.value_range, seeds=seeds)
            density = _density(key, model, x, seeds, protocol)
            bits = density.bits_per_dim(data.card.levels, model.value_range)
            this_pass[first:last] = bits.double().cpu()
            nfe_sum += int(density.nfe.sum())
            nfe_max = max(nfe_max, int(density.nfe.max()))
            done += last - first
            if advance is not None:
                so_far = mean_with_error(this_pass[:last])
                advance(last - first, f"{so_far.mean:.3f} ± {so_far.standard_error:.3f} bits/dim")
        per_image += this_pass / protocol.passes
    mean = mean_with_error(per_image)
    return Figure(
        key=key,
        name=DENSITY_FIGURES[key],
        value=mean.mean,
        standard_error=mean.standard_error if n > 1 else None,
        unit="bits/dim",
        better="lower",
        seconds=time.perf_counter() - began,
        protocol=_protocol(key, data, n, protocol),
        nfe={"mean": nfe_sum / done, "max": float(nfe_max)},
    )
