"""Bits per dimension of a data set, in each of the forms in use; of floats, those of a density."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from softtrunc.data import ImageDataset, to_model
from softtrunc.density import (
    Density,
    Dequantizer,
    Mean,
    Reconstruction,
    bin_centers,
    density_bits_per_dim,
    dequantize,
    importance_weighted,
    nelbo,
    probability_flow_nll,
)
from softtrunc.evaluation.figure import FORMS, DensityFigure, DensityForm, Dequantization
from softtrunc.evaluation.image_results import COLUMNS, Chunk, ImageResults
from softtrunc.evaluation.protocol import DensityProtocol
from softtrunc.records import Figure, FigureData
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.sde import send

Deal = Callable[[Sequence[tuple[int, int]]], Iterator[tuple[int, int]]]
"""Which of some batches, each a pass and its first image, a process is to measure."""

_RECONSTRUCTIONS: dict[Dequantization, Reconstruction] = {
    "none": "discrete",
    "truncated-normal": "truncated",
}
"""The step back to the data, where it is no Gaussian one."""

_CHECK_FACTOR = 30.0
"""How much tighter the tolerance is against which the solver's error is measured."""


@dataclass(frozen=True)
class BitsMeasurement:
    """One figure of one model on one set of images.

    - `key`: which form.
    - `model`: on its device, with the weights to be judged.
    - `data`: uint8 images, or floats.
    - `protocol`: how.
    - `dequantizer`: for the learned figures. `training`: what the protocol says of its training.
    - `choice`: what the protocol says of how the time at which the figure begins was chosen.

    Raises:
        ValueError: if the key is unknown, a learned figure comes without a dequantizer, a
            conditional one without labels, or bits per dimension are to be those of floats, or a
            density that of images.
    """

    key: DensityFigure
    model: ScoreModel
    data: ImageDataset
    protocol: DensityProtocol
    dequantizer: Dequantizer | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    choice: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.key not in FORMS:
            raise ValueError(f"{self.key!r} is unknown: write one of {', '.join(FORMS)}")
        if self._form.dequantization == "learned" and self.dequantizer is None:
            raise ValueError(f"{self.key}: needs a trained dequantizer: pass one")
        if self._form.of_floats == self.data.card.on_grid:
            why = "levels: bits/dim, not" if self.data.card.on_grid else "no grid:"
            raise ValueError(
                f"{self.key}: {self.data.card.name} ({self.data.card.split}) is on {why} a density"
            )
        if self.protocol.data_range != self.data.card.value_range:
            raise ValueError(
                f"{self.key}: data_range={self.protocol.data_range}, but the card of "
                f"{self.data.card.name} says {self.data.card.value_range}"
            )
        if self.protocol.labels and self.data.labels is None:
            raise ValueError(
                f"{self.key}: the model is given each image's class, and {self.data.card.name} "
                f"({self.data.card.split}) has no labels"
            )

    @property
    def _form(self) -> DensityForm:
        return FORMS[self.key]

    @property
    def _levels(self) -> int:
        return self.data.card.levels

    @property
    def _draws(self) -> int:
        return self.protocol.draws(self.key)

    @property
    def eps(self) -> float:
        """The diffusion time at which the figure begins."""
        p, model = self.protocol, self.model
        return p.smallest_time(self.key, model.sde, self._levels, model.value_range)

    @property
    def _cells(self) -> tuple[float, float]:
        return self.protocol.cells(self.key, self._levels, self.model.value_range)

    def fill(
        self,
        results: ImageResults,
        *,
        deal: Deal = iter,
        advance: Callable[[int, str], None] | None = None,
    ) -> None:
        """Measure what `results` lacks of this process's share.

        Args:
            results: filled in.
            deal: gives this process its share of the batches, see `Company.deal`.
            advance: called with the number of images that became known and a note.
        """
        for chunk in self.chunks(results.seen, deal=deal):
            new = results.add(chunk) + results.gather()
            if advance is not None:
                advance(new, results.note())

    def chunks(self, seen: np.ndarray | None = None, *, deal: Deal = iter) -> Iterator[Chunk]:
        """Measure batch after batch.

        The batches are cut once, from the number of images, the draws of each and the batch size
        alone, and dealt out: each image of each pass belongs to exactly one process, whatever was
        measured before.

        Args:
            seen: (passes, n), true where a result is at hand and none is wanted; it may change on
                the way. None: all are wanted.
            deal: gives this process its share of the batches.
        """
        size = max(1, self.protocol.batch_size // self._draws)
        n = self.protocol.images(self.data)
        self.model.eval()
        batches = [(t, i) for t in range(self.protocol.passes) for i in range(0, n, size)]
        for turn, first in deal(batches):
            images = np.arange(first, min(n, first + size))
            if seen is not None:
                images = images[~seen[turn, images]]
            if len(images):
                yield self._measure(turn, images)

    def _measure(self, turn: int, images: np.ndarray) -> Chunk:
        began = time.perf_counter()
        device = next(self.model.parameters()).device
        draws = self._draws
        rows = torch.from_numpy(images)
        index = torch.arange(len(images)).repeat_interleave(draws)
        levels = send(self.data.batch(rows), device)
        seeds = [self._seed(turn, i, k) for i in images.tolist() for k in range(draws)]
        x, log_q = self._point(levels[send(index, device)], seeds)
        # What the probes leave unknown of the density is no weight: an image's draws share them.
        shared = [seed for seed in seeds[::draws] for _ in range(draws)] if draws > 1 else None
        model: ScoreFunction = self.model
        if self.protocol.labels:
            model = self.model.given(y=self.data.classes_of(rows)[index])
        each = self._density(model, x, seeds, shared)

        def mean(values: Tensor) -> Tensor:
            return values.to(each.nats).reshape(-1, draws).mean(1)

        log_q = log_q.to(each.nats)
        nats = importance_weighted((each.nats + log_q).reshape(-1, draws))
        nfe = each.nfe.reshape(-1, draws).sum(1)
        density = Density(
            prior=mean(each.prior),
            flow=mean(each.flow),
            residual=mean(each.residual),
            nats=nats,
            nfe=nfe,
            dim=each.dim,
            levels=each.levels,
        )
        found = (
            density.prior,
            density.flow,
            density.residual,
            mean(log_q),
            nats - mean(each.nats + log_q),
            nats,
            self._bits_per_dim(density),
            nfe,
        )
        columns = {
            name: value.cpu().double().numpy() for name, value in zip(COLUMNS, found, strict=True)
        }
        return Chunk(turn, images, columns, time.perf_counter() - began)

    def _bits_per_dim(self, density: Density) -> Tensor:
        known = self.data.card.value_range
        if known is None:
            return density.bits_per_dim(self._levels, self._cells)
        return density_bits_per_dim(density.nats, density.dim, known, self.model.value_range)

    def _seed(self, turn: int, image: int, draw: int) -> int:
        """One for each image, pass and draw: its numbers do not depend on how batches are cut."""
        place = [self.protocol.seed, turn, image, *([draw] if draw else [])]
        return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)

    def _point(self, levels: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Where the density is taken, and the log-density of the noise that led there, (B,)."""
        count, cells = self._levels, self._cells
        nothing = torch.zeros(len(levels), device=levels.device)
        if self._form.of_floats:
            return to_model(levels, self.data.card, cells), nothing
        if self.dequantizer is not None and self._form.dequantization == "learned":
            drawn = self.dequantizer.draw(levels, seeds=seeds)
            return dequantize(levels, count, cells, noise=drawn.noise), drawn.log_prob
        if self._form.of_levels:
            x = bin_centers(levels, count, cells)
        else:
            x = dequantize(levels, count, cells, seeds=seeds)
        return x, nothing

    def _density(
        self, model: ScoreFunction, x: Tensor, seeds: list[int], probe_seeds: list[int] | None
    ) -> Density:
        p, levels, cells, eps = self.protocol, self._levels, self._cells, self.eps
        law = _RECONSTRUCTIONS.get(self._form.dequantization, "gaussian")
        if self._form.estimator == "score-matching bound":
            return nelbo(
                model,
                x,
                eps=eps,
                draws=p.nelbo_draws,
                reconstruction=law,
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
            residual=self._form.residual != "none",
            reconstruction=law,
            levels=levels,
            value_range=cells,
            seeds=seeds,
            probe_seeds=probe_seeds,
            chunk_size=p.batch_size,
        )

    def solver_error(self, results: ImageResults) -> dict[str, float] | None:
        """What the solver's tolerance does to bits/dim, on the first `solver_check` images.

        The same images with the same noise and probes are solved again at a thirtieth of the
        tolerance: "mean" and "rms" of the difference per image, "images", "rtol" of the truth. None
        where nothing is solved or no check is asked for.
        """
        p = self.protocol
        count = min(p.solver_check, results.seen.shape[1])
        if self._form.estimator == "score-matching bound" or count == 0:
            return None
        tight = dataclasses.replace(p, rtol=p.rtol / _CHECK_FACTOR, atol=p.atol / _CHECK_FACTOR)
        truth = dataclasses.replace(self, protocol=tight)._measure(0, np.arange(count))
        error = results.columns["bits_per_dim"][0, :count] - truth.columns["bits_per_dim"]
        return {
            "mean": float(error.mean()),
            "rms": float(np.sqrt(np.square(error).mean())),
            "images": float(count),
            "rtol": tight.rtol,
        }

    def figure(self, results: ImageResults) -> Figure:
        """The mean over images (passes averaged first), with its standard error over images.

        Raises:
            ValueError: if an image is missing.
        """
        if not results.complete:
            raise ValueError(f"{self.key}: {int((~results.seen).sum())} images were not measured")
        mean, nfe, card = results.mean(), results.columns["nfe"], self.data.card
        error = self.solver_error(results)
        value, spread = _corrected(mean, error if self.protocol.solver_correction else None)
        protocol = {
            "split": card.split,
            "n": self.protocol.images(self.data),
            **self.protocol.describe(self.key, self.model.sde, card.levels, self.model.value_range),
        }
        if self.choice:
            protocol["eps_chosen"] = dict(self.choice)
        if self.dequantizer is not None:
            protocol["dequantizer"] = {**self.dequantizer.describe(), **self.training}
        return Figure(
            key=self.key,
            name=self._form.title + (f", K = {self._draws}" if self._draws > 1 else ""),
            value=value,
            standard_error=spread if mean.n > 1 else None,
            unit=self._form.unit,
            better="lower",
            seconds=results.seconds,
            protocol=protocol,
            data=FigureData(
                card.name,
                card.split,
                card.count,
                card.fingerprint,
                card.levels,
                self.model.value_range,
            ),
            nfe={"mean": float(nfe.mean()), "max": float(nfe.max())},
            by_class=self._by_class(results),
            solver_error=error,
        )

    def _by_class(self, results: ImageResults) -> dict[str, float] | None:
        """The mean of each class's images, where the model is given their classes."""
        if not self.protocol.labels or self.data.labels is None:
            return None
        each = results.columns["bits_per_dim"].mean(0)
        labels, names = self.data.labels[: len(each)], self.data.card.classes
        return {names[k]: float(each[labels == k].mean()) for k in np.unique(labels).tolist()}


def _corrected(mean: Mean, error: Mapping[str, float] | None) -> tuple[float, float]:
    """The mean without the solver's mean error, and its standard error.

    Raises:
        ValueError: if the error was measured on one image.
    """
    if error is None:
        return mean.mean, mean.standard_error
    count = error["images"]
    if count < 2:
        raise ValueError("solver_correction: the error is to be measured on 2 images at least")
    variance = max(error["rms"] ** 2 - error["mean"] ** 2, 0.0) / (count - 1.0)
    return mean.mean - error["mean"], math.hypot(mean.standard_error, math.sqrt(variance))
