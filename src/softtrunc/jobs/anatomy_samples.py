"""Which times decide samples: chimeras of two runs, and images that one run samples again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from softtrunc.data import ImageDataset, in_pictures, to_model
from softtrunc.data.pictures import save_grid
from softtrunc.evaluation.distances import Judge, Samples, reference_protocol
from softtrunc.evaluation.features import open_extractor
from softtrunc.evaluation.regenerate import regenerate
from softtrunc.feedback.progress import Progress
from softtrunc.jobs.parts import Parts
from softtrunc.noise import Noise
from softtrunc.recipes.build import build_sampler
from softtrunc.records import ChimeraPoint, RegenerationPoint
from softtrunc.runs.draw import draw_batches, to_data
from softtrunc.runs.open_run import OpenRun, with_below
from softtrunc.sde import SDE

_IN_A_ROW = 12
"""Images of each row of a grid."""

_REGENERATED = 64
"""Images that are noised and sampled again."""


def _times(sde: SDE, count: int) -> list[float]:
    """Times from small to large, equally spaced in log-SNR between the samplers' end and T."""
    ends = torch.tensor([sde.t_end, sde.t_max], dtype=torch.float64)
    low, high = sde.log_snr(ends)
    share = torch.linspace(0.0, 1.0, count + 2, dtype=torch.float64)[1:-1]
    times: list[float] = sde.time_of_log_snr(low + (high - low) * share).tolist()
    return times


def _log_snr(sde: SDE, t: float) -> float:
    return float(sde.log_snr(torch.tensor(t, dtype=torch.float64)))


class Chimeras:
    """Two runs as one: the score of one above a time and of the other below, both ways round.

    Args:
        opened: the two runs; how is sampled and judged is in the first one's recipe.
        names: what they are called.
        train: images that samples are compared with.
        samples: how many are drawn of each chimera.
        times: at how many times one takes over from the other.
        progress: where bars go.

    Raises:
        UserError: if the recipe's feature extractor cannot be used.
    """

    def __init__(
        self,
        opened: Sequence[OpenRun],
        names: Sequence[str],
        train: ImageDataset,
        samples: int,
        times: int,
        progress: Progress,
    ) -> None:
        self._opened = [replace(run, recipe=opened[0].recipe) for run in opened]
        self._names = names
        self._train = train
        self._samples = samples
        self._times = _times(opened[0].model.sde, times)
        self._progress = progress
        self._spec = opened[0].recipe.evaluation
        self._judge: Judge | None = None
        if self._spec.features is None:
            progress.say("no distances: --set evaluation.features=FILE names a feature extractor")
        else:
            self._judge = Judge(
                open_extractor(self._spec.features, self._spec.resize, train),
                opened[0].accelerator,
                opened[0].company,
                batch_size=self._spec.batch_size,
                seed=self._spec.seed,
                progress=progress,
            )

    @property
    def distance_name(self) -> str | None:
        """What the distance is called; None: none is measured."""
        if self._judge is None:
            return None
        return self._judge.frechet_name(self._samples, "train", self._train.card)

    @property
    def protocol(self) -> dict[str, object]:
        """What another must know of the distance: the extractor, and what samples are held to."""
        if self._judge is None:
            return {}
        card = self._train.card
        extractor = self._judge.extractor_protocol(self._opened[0].card.channels)
        return extractor | reference_protocol("train", card)[0]

    def measure(
        self, out: Path, parts: Parts
    ) -> tuple[list[float | None], tuple[ChimeraPoint, ...]]:
        """Each run's own distance, and those of the chimeras; a grid of each way round in `out`.

        What was measured is kept in `parts`.

        A grid's rows are of the same seeds: the run above alone, its chimeras from the smallest
        time to the largest, and the run below alone. Without an extractor distances are None.
        """

        def measured(opened: OpenRun, label: str, key: str) -> dict[str, Tensor]:
            return parts.get(key, partial(self._measure, opened, label))

        alone = [
            measured(run, f"sample {name}", f"{i}-alone")
            for i, (run, name) in enumerate(zip(self._opened, self._names, strict=True))
        ]
        curves: list[ChimeraPoint] = []
        for a, b in ((0, 1), (1, 0)):
            rows = [alone[a]["first"]]
            above, below = self._names[a], self._names[b]
            for i, t in enumerate(self._times):
                pair = with_below(self._opened[a], self._opened[b], t)
                label = f"{above} above t = {t:.2g}, {below}"
                found = measured(pair, label, f"{a}-above-{i}")
                rows.append(found["first"])
                log_snr = _log_snr(pair.model.sde, t)
                curves.append(ChimeraPoint(above, below, t, log_snr, _distance(found)))
            rows.append(alone[b]["first"])
            pixels = in_pictures(torch.cat(rows), self._opened[0].card)
            save_grid(pixels, out / f"chimera-{a + 1}-above-{b + 1}.png", len(rows[0]))
        return [_distance(found) for found in alone], tuple(curves)

    def _measure(self, opened: OpenRun, label: str) -> dict[str, Tensor]:
        """The first samples, and the distance of all."""
        first: list[Tensor] = []

        def read(wanted: range) -> Iterator[Tensor]:
            size = self._spec.batch_size
            parts = [wanted[i : i + size] for i in range(0, len(wanted), size)]
            for batch in draw_batches(opened, parts, seed=self._spec.seed):
                first.append(batch.images[: max(0, _IN_A_ROW - batch.first)])
                yield batch.images

        if self._judge is None:
            return {"first": torch.cat(list(read(range(_IN_A_ROW))))}

        samples = Samples(
            label=label,
            count=self._samples,
            levels=opened.card.levels,
            channels=opened.card.channels,
            read=read,
            protocol={},
            nfe=lambda: None,
        )
        (figure,) = self._judge.measure(samples, {"train": self._train}, frozenset({"fid"}))
        distance = torch.tensor(figure.value, dtype=torch.float64)
        return {"first": torch.cat(first), "distance": distance}


def _distance(found: Mapping[str, Tensor]) -> float | None:
    return float(found["distance"]) if "distance" in found else None


def regeneration(
    opened: OpenRun,
    images: ImageDataset,
    times: int,
    parts: Parts,
    progress: Progress,
    grid: Path,
) -> tuple[RegenerationPoint, ...]:
    """Noise the first images up to each of several times, and sample them again from there.

    The rows of the grid: the images, then what came back from the smallest time to the largest.

    Args:
        opened: the run.
        images: of its data.
        times: to how many times.
        parts: where results are kept.
        progress: where the bar goes.
        grid: the picture's file.

    Returns:
        For each time the mean squared error per dimension in the model's range, and the mean
        correlation with the image.
    """
    sde, spec = opened.model.sde, opened.recipe.evaluation
    count = min(_REGENERATED, len(images))
    shown = images.batch(torch.arange(count))
    # Halfway up each cell, where a model of dequantised data expects a level.
    half = torch.full(shown.shape, 0.5) if opened.recipe.data.dequantize else None
    x = to_model(shown, opened.card, opened.model.value_range, noise=half).to(opened.device)
    noise = Noise(count, [spec.seed + i for i in range(count)], None).like(x)
    sampler = build_sampler(opened.recipe.sampling, opened.model.sde)

    def measure(t: float) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(spec.seed)
        found = regenerate(opened.model, x, [t], sampler=sampler, noise=noise, generator=generator)
        return {
            "first": to_data(opened, found.x[0, :_IN_A_ROW]),
            "squared_error": found.squared_error,
            "correlation": found.correlation,
        }

    curve, rows = [], [shown[:_IN_A_ROW]]
    with progress.task(f"regenerate, {opened.run.path.name}", times) as bar:
        for i, t in enumerate(_times(sde, times)):
            found = parts.get(f"regenerated-{i}", partial(measure, t))
            rows.append(found["first"])
            means = (float(found[key].mean()) for key in ("squared_error", "correlation"))
            curve.append(RegenerationPoint(t, _log_snr(sde, t), *means))
            bar.advance()
    save_grid(in_pictures(torch.cat(rows), opened.card), grid, len(rows[0]))
    return tuple(curve)
