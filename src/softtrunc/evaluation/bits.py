"""Bits per dimension of a data set, in each of the forms in use, with their protocols."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never, get_args

import numpy as np
import torch
from torch import Tensor

from softtrunc.data import ImageDataset
from softtrunc.density import (
    Density,
    Dequantizer,
    Divergence,
    Mean,
    Method,
    bin_centers,
    dequantize,
    lossless_eps,
    mean_with_error,
    nelbo,
    probability_flow_nll,
    spread_range,
)
from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.records import Figure
from softtrunc.score import ScoreModel

__all__ = [
    "COLUMNS",
    "LEARNED_FIGURES",
    "LOSSLESS_FIGURES",
    "UNIFORM_FIGURES",
    "Chunk",
    "DensityFigure",
    "DensityProtocol",
    "ImageResults",
    "density_figure",
    "measure_chunks",
    "measure_density",
    "running_note",
    "smallest_time",
    "solver_error",
]

DensityFigure = Literal[
    "nll_residual",
    "nll",
    "nelbo",
    "nll_lossless",
    "nelbo_lossless",
    "nll_learned",
    "nelbo_learned",
]
"""The figures by their key in `evaluation.json`."""

UNIFORM_FIGURES: tuple[DensityFigure, ...] = ("nll_residual", "nll", "nelbo")
LOSSLESS_FIGURES: tuple[DensityFigure, ...] = ("nll_lossless", "nelbo_lossless")
LEARNED_FIGURES: tuple[DensityFigure, ...] = ("nll_learned", "nelbo_learned")

COLUMNS = ("prior", "flow", "residual", "dequantization", "nats", "bits_per_dim", "nfe")
"""What is kept of an image and pass: four terms and their sum in nats, bits/dim, evaluations."""

_CHECK_FACTOR = 30.0
"""How much tighter the tolerance is against which the solver's error is measured."""


@dataclass(frozen=True)
class DensityProtocol:
    """How bits per dimension are measured.

    - `eps`: smallest diffusion time. `lossless_eps`: that of the lossless figures; None: where
      the noise is 0.4 of a level (`softtrunc.density.lossless_eps`).
    - `solver`, `rtol`, `atol`: of the probability-flow ODE.
    - `divergence`: "hutchinson" with so many `probes` per example, or "exact".
    - `nelbo_draws`: times per example.
    - `passes`: how often each image is counted, each time with fresh noise.
    - `batch_size`: examples at a time (no influence on the numbers).
    - `limit`: only the first so many images; None: all.
    - `seed`: of all noise; an image's draws follow from the seed, the pass and its place.
    - `solver_check`: on so many images the ODE is solved again at a thirtieth of the tolerance.
    - `dequantized`: noise filled each level's cell when the model was trained. False: it saw the
      levels as points spread from end to end of its range, lossless figures are measured there, and
      the others mean nothing.
    """

    eps: float = 1e-5
    lossless_eps: float | None = None
    solver: Method = "adams"
    rtol: float = 1e-3
    atol: float = 1e-3
    divergence: Divergence = "hutchinson"
    probes: int = 1
    nelbo_draws: int = 32
    passes: int = 1
    batch_size: int = 256
    limit: int | None = None
    seed: int = 0
    solver_check: int = 8
    dequantized: bool = True

    def images(self, data: ImageDataset) -> int:
        """How many images are measured."""
        return min(len(data), self.limit or len(data))

    def decisive(self) -> dict[str, object]:
        """What an image's numbers depend on."""
        irrelevant = ("passes", "batch_size", "limit", "solver_check")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in irrelevant}


class Chunk(NamedTuple):
    """Some images of one pass: their places, a float64 column (m,) for each of `COLUMNS`."""

    turn: int
    images: np.ndarray
    columns: dict[str, np.ndarray]
    seconds: float


class ImageResults:
    """What is known of each image in each pass.

    Args:
        passes: number of passes.
        images: number of images.
    """

    def __init__(self, passes: int, images: int) -> None:
        self.seen = np.zeros((passes, images), dtype=bool)
        self.columns = {name: np.full((passes, images), math.nan) for name in COLUMNS}
        self.seconds = 0.0

    def add(self, chunk: Chunk) -> int:
        """Take in a chunk; how many of its images were new.

        What lies beyond the images or passes asked for is left out.
        """
        passes, images = self.seen.shape
        if chunk.turn >= passes:
            return 0
        inside = chunk.images < images
        places = chunk.images[inside]
        new = int((~self.seen[chunk.turn, places]).sum())
        for name in COLUMNS:
            self.columns[name][chunk.turn, places] = chunk.columns[name][inside]
        self.seen[chunk.turn, places] = True
        self.seconds += chunk.seconds if new else 0.0
        return new

    @property
    def complete(self) -> bool:
        """Whether every image was counted in every pass."""
        return bool(self.seen.all())

    def mean(self) -> Mean:
        """Bits per dimension so far: passes are averaged image by image, then images."""
        counts = self.seen.sum(0)
        sums = np.where(self.seen, self.columns["bits_per_dim"], 0.0).sum(0)
        return mean_with_error(torch.from_numpy(sums[counts > 0] / counts[counts > 0]))


def _example_seeds(protocol: DensityProtocol, turn: int, images: np.ndarray) -> list[int]:
    """One seed per image and pass: an image's draws do not depend on how batches are cut."""
    return [
        int(np.random.SeedSequence([protocol.seed, turn, i]).generate_state(1, np.uint64)[0] >> 1)
        for i in images.tolist()
    ]


def _cells(
    key: DensityFigure, model: ScoreModel, levels: int, p: DensityProtocol
) -> tuple[float, float]:
    """The range that the levels' cells fill: the model's, or half a level more at both ends."""
    if key in LOSSLESS_FIGURES and not p.dequantized:
        return spread_range(levels, model.value_range)
    return model.value_range


def smallest_time(key: DensityFigure, model: ScoreModel, levels: int, p: DensityProtocol) -> float:
    """The diffusion time at which a figure begins.

    Raises:
        ValueError: if it is lossless, no time is given and the diffusion has too little noise.
    """
    if key not in LOSSLESS_FIGURES:
        return p.eps
    if p.lossless_eps is not None:
        return p.lossless_eps
    return lossless_eps(model.sde, levels, _cells(key, model, levels, p), least=p.eps)


class _Point(NamedTuple):
    """Where a density is taken, and the logarithm of that of the noise that led there, (B,)."""

    x: Tensor
    log_q: Tensor


def _point(
    key: DensityFigure,
    levels: Tensor,
    count: int,
    value_range: tuple[float, float],
    seeds: list[int],
    dequantizer: Dequantizer | None,
) -> _Point:
    zero = torch.zeros(len(levels), dtype=torch.float64)
    if key in LOSSLESS_FIGURES:
        return _Point(bin_centers(levels, count, value_range), zero)
    if key in LEARNED_FIGURES:
        if dequantizer is None:
            raise ValueError(f"{key}: needs a trained dequantizer: pass one")
        drawn = dequantizer.draw(levels, seeds=seeds)
        return _Point(dequantize(levels, count, value_range, noise=drawn.noise), drawn.log_prob)
    return _Point(dequantize(levels, count, value_range, seeds=seeds), zero)


def _density(
    key: DensityFigure,
    model: ScoreModel,
    x: Tensor,
    levels: int,
    seeds: list[int],
    p: DensityProtocol,
) -> Density:
    discrete = key in LOSSLESS_FIGURES
    eps, cells = smallest_time(key, model, levels, p), _cells(key, model, levels, p)
    if key in ("nelbo", "nelbo_lossless", "nelbo_learned"):
        return nelbo(
            model,
            x,
            eps=eps,
            draws=p.nelbo_draws,
            reconstruction="discrete" if discrete else "gaussian",
            levels=levels,
            value_range=cells,
            seeds=seeds,
        )
    return probability_flow_nll(
        model,
        x,
        eps=eps,
        method=p.solver,
        rtol=p.rtol,
        atol=p.atol,
        divergence=p.divergence,
        probes=p.probes,
        residual=key != "nll",
        reconstruction="discrete" if discrete else "gaussian",
        levels=levels,
        value_range=cells,
        seeds=seeds,
    )


def _measure(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    protocol: DensityProtocol,
    turn: int,
    images: np.ndarray,
    dequantizer: Dequantizer | None,
) -> Chunk:
    began = time.perf_counter()
    device = next(model.parameters()).device
    seeds, count = _example_seeds(protocol, turn, images), data.card.levels
    levels = data.batch(torch.from_numpy(images)).to(device)
    cells = _cells(key, model, count, protocol)
    point = _point(key, levels, count, cells, seeds, dequantizer)
    density = _density(key, model, point.x, count, seeds, protocol)
    log_q = point.log_q.to(density.nats)
    density = dataclasses.replace(density, nats=density.nats + log_q)
    found = (
        density.prior,
        density.flow,
        density.residual,
        log_q,
        density.nats,
        density.bits_per_dim(count, cells),
        density.nfe,
    )
    columns = {
        name: value.double().cpu().numpy() if value.device.type != "mps" else _from_mps(value)
        for name, value in zip(COLUMNS, found, strict=True)
    }
    return Chunk(turn, images, columns, time.perf_counter() - began)


def _from_mps(value: Tensor) -> np.ndarray:
    """By way of the CPU: the device has no float64."""
    array: np.ndarray = value.cpu().double().numpy()
    return array


def measure_chunks(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    protocol: DensityProtocol,
    *,
    seen: np.ndarray | None = None,
    share: tuple[int, int] = (0, 1),
    dequantizer: Dequantizer | None = None,
) -> Iterator[Chunk]:
    """Measure batch after batch.

    The batches are cut once, from the number of images and the batch size alone, and dealt out in
    turns: each image of each pass belongs to exactly one process, whatever was measured before.

    Args:
        key: which form.
        model: on its device, with the weights to be judged.
        data: uint8 images.
        protocol: how.
        seen: (passes, n), true where a result is at hand and none is wanted; it may change on the
            way. None: all are wanted.
        share: this process's place among how many.
        dequantizer: for the learned figures.

    Raises:
        ValueError: if a learned figure comes without a dequantizer.
    """
    n, (place, processes) = protocol.images(data), share
    model.eval()
    number = -1
    for turn in range(protocol.passes):
        for first in range(0, n, protocol.batch_size):
            number += 1
            if number % processes != place:
                continue
            images = np.arange(first, min(n, first + protocol.batch_size))
            if seen is not None:
                images = images[~seen[turn, images]]
            if len(images):
                yield _measure(key, model, data, protocol, turn, images, dequantizer)


def solver_error(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    protocol: DensityProtocol,
    results: ImageResults,
    *,
    dequantizer: Dequantizer | None = None,
) -> dict[str, float] | None:
    """What the solver's tolerance does to bits/dim, on the first `solver_check` images.

    The same images with the same noise and probes are solved again at a thirtieth of the
    tolerance: "mean" and "rms" of the difference per image, "images", "rtol" of the truth. None
    where nothing is solved or no check is asked for.
    """
    count = min(protocol.solver_check, results.seen.shape[1])
    if key.startswith("nelbo") or count == 0:
        return None
    tight = dataclasses.replace(
        protocol, rtol=protocol.rtol / _CHECK_FACTOR, atol=protocol.atol / _CHECK_FACTOR
    )
    images = np.arange(count)
    truth = _measure(key, model, data, tight, 0, images, dequantizer).columns["bits_per_dim"]
    error = results.columns["bits_per_dim"][0, :count] - truth
    return {
        "mean": float(error.mean()),
        "rms": float(np.sqrt(np.square(error).mean())),
        "images": float(count),
        "rtol": tight.rtol,
    }


def _dequantization(key: DensityFigure, p: DensityProtocol) -> str:
    if key in LOSSLESS_FIGURES:
        where = "in cells" if p.dequantized else "spread from end to end"
        return f"none: probability of the levels, {where}"
    return "learned (variational flow)" if key in LEARNED_FIGURES else "uniform"


def _residual(key: DensityFigure) -> str:
    match key:
        case "nll":
            return "none"
        case "nll_lossless" | "nelbo_lossless":
            return "discretised Gaussian, entropy term kept"
        case "nll_residual" | "nelbo" | "nll_learned" | "nelbo_learned":
            return "Gaussian"
        case _ as unreachable:
            assert_never(unreachable)


def _protocol(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    p: DensityProtocol,
    dequantizer: Dequantizer | None,
) -> dict[str, object]:
    common: dict[str, object] = {
        "split": data.card.split,
        "n": p.images(data),
        "passes": p.passes,
        "levels": data.card.levels,
        "value_range": list(_cells(key, model, data.card.levels, p)),
        "dequantization": _dequantization(key, p),
        "residual": _residual(key),
        "eps": smallest_time(key, model, data.card.levels, p),
        "seed": p.seed,
    }
    if key in LEARNED_FIGURES and dequantizer is not None:
        common["dequantizer"] = dequantizer.describe()
    if key.startswith("nelbo"):
        return common | {"estimator": "score-matching bound", "draws": p.nelbo_draws}
    exact = p.divergence == "exact"
    variable = "a power of the noise-to-signal ratio" if p.solver == "adams" else "the angle"
    plural = "s" if p.probes > 1 else ""
    return common | {
        "estimator": "probability-flow ODE",
        "solver": f"{p.solver} in {variable}, steps per example",
        "rtol": p.rtol,
        "atol": p.atol,
        "divergence": "exact" if exact else f"Hutchinson, {p.probes} Rademacher probe{plural}",
        "probes": None if exact else p.probes,
    }


def density_figure(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    protocol: DensityProtocol,
    results: ImageResults,
    *,
    dequantizer: Dequantizer | None = None,
    error: dict[str, float] | None = None,
) -> Figure:
    """The mean over images (passes averaged first), with its standard error over images.

    Args:
        key: which form.
        model: what was measured.
        data: the images.
        protocol: how they were measured.
        results: of every image.
        dequantizer: of the learned figures.
        error: `solver_error` of them.

    Raises:
        ValueError: if an image is missing.
    """
    if not results.complete:
        raise ValueError(f"{key}: {int((~results.seen).sum())} images were not measured")
    mean, nfe = results.mean(), results.columns["nfe"]
    return Figure(
        key=key,
        name=DENSITY_FIGURES[key],
        value=mean.mean,
        standard_error=mean.standard_error if mean.n > 1 else None,
        unit="bits/dim",
        better="lower",
        seconds=results.seconds,
        protocol=_protocol(key, model, data, protocol, dequantizer),
        nfe={"mean": float(nfe.mean()), "max": float(nfe.max())},
        solver_error=error,
    )


def measure_density(
    key: DensityFigure,
    model: ScoreModel,
    data: ImageDataset,
    protocol: DensityProtocol,
    *,
    dequantizer: Dequantizer | None = None,
    advance: Callable[[int, str], None] | None = None,
) -> Figure:
    """Mean bits per dimension over a data set, every image counted once per pass.

    Args:
        key: which form.
        model: on its device, with the weights to be judged.
        data: uint8 images.
        protocol: how.
        dequantizer: for the learned figures.
        advance: called with the number of images done and a note.

    Raises:
        ValueError: if the key is unknown, or a learned figure comes without a dequantizer.
    """
    if key not in get_args(DensityFigure):
        raise ValueError(f"{key!r} is unknown: write one of {', '.join(get_args(DensityFigure))}")
    results = ImageResults(protocol.passes, protocol.images(data))
    for chunk in measure_chunks(key, model, data, protocol, dequantizer=dequantizer):
        results.add(chunk)
        if advance is not None:
            advance(len(chunk.images), running_note(results))
    return density_figure(
        key,
        model,
        data,
        protocol,
        results,
        dequantizer=dequantizer,
        error=solver_error(key, model, data, protocol, results, dequantizer=dequantizer),
    )


def running_note(results: ImageResults) -> str:
    """Mean and standard error so far, for a progress bar."""
    mean = results.mean()
    return f"{mean.mean:.3f} ± {mean.standard_error:.3f} bits/dim"
