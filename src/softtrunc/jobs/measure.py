"""Measure a run: `evaluation.json`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from softtrunc.data import ImageDataset, stretch_levels
from softtrunc.data.pictures import save_grid
from softtrunc.density import check_levels
from softtrunc.evaluation.bits import BitsMeasurement
from softtrunc.evaluation.distances import Judge, SampleFigure, Samples, check_sample_figures
from softtrunc.evaluation.features import DIGITS, open_extractor
from softtrunc.evaluation.figure import FORMS
from softtrunc.evaluation.image_results import (
    ImageResults,
    TableRows,
    check_table_path,
    parts_folder,
    write_table,
)
from softtrunc.evaluation.known import KnownStatistics
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.jobs.class_grid import grid_columns, labels_of_samples
from softtrunc.jobs.dequantizer import obtain_dequantizer
from softtrunc.jobs.evaluation_file import EvaluationFile
from softtrunc.jobs.measure_files import find_references
from softtrunc.jobs.measured import (
    check_extractor,
    density_protocol,
    dequantizer_settings,
    knows_cells,
    reference_splits,
    samples_protocol,
)
from softtrunc.jobs.truncated import choose_time
from softtrunc.metrics import FeatureExtractor
from softtrunc.networks.plain_state import digest
from softtrunc.recipes.load import override_recipe
from softtrunc.records import Evaluation, Figure
from softtrunc.runs.draw import draw_batches
from softtrunc.runs.folder import UNKNOWN_FINGERPRINT, package_versions
from softtrunc.runs.node_images import open_images
from softtrunc.runs.open_run import OpenRun, open_run
from softtrunc.training import AnyWeights, weights_name

_LOOSE = (
    "trained without dequantisation: bits/dim with uniform or learned noise are bounds all the "
    "same, but loose ones, for the model never saw what lies between the levels; "
    "--dequantization none or truncated-normal measures the levels themselves"
)
_LOOKED_AT = 1000
"""Images whose levels are counted."""


def measure(
    path: Path,
    *,
    density: bool = True,
    samples: Collection[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    eps: Sequence[float] = (),
    weights: AnyWeights = "ema",
    checkpoint: int | None = None,
    overrides: Sequence[str] = (),
    per_image: Path | None = None,
    stats: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a run and write its `evaluation.json`, figure by figure.

    Figures of the same checkpoint and weights that were measured before are kept, unless they are
    of the same protocol and images as a new one. Those of other checkpoints and weights lie in
    `evaluations`, a file each.

    Args:
        path: the run folder.
        density: whether to measure bits per dimension.
        samples: which figures of samples, of "fid", "is", "kid", "prdc" and "intra" (within each
            class); None: "fid" if the recipe names a feature extractor, else none.
        split: of the images, for bits per dimension and to compare samples with; None: held-out
            ones for bits per dimension, and for samples what `reference_splits` says.
        limit: bits per dimension of only the first so many of them.
        eps: values of `evaluation.eps` to measure bits per dimension at; none: the recipe's.
        weights: averaged or raw, or the length of an average to make.
        checkpoint: the step of the checkpoint; None: the newest one.
        overrides: `a.b=c` changes of the recipe's sampling, evaluation and data.source.
        per_image: a `.csv` or `.parquet` file for the bits per dimension of every image.
        stats: an .npz with `mu` and `sigma`, to which the Frechet distance is.
        progress: where bars and lines go.

    Returns:
        The content of `evaluation.json`.

    Raises:
        UserError: if the run, the data, a key or the feature extractor is not usable, or another
            process measures the run.
    """
    progress = progress or Silent()
    opened = open_run(path, weights=weights, overrides=overrides, checkpoint=checkpoint)
    spec = opened.recipe.evaluation
    if not opened.company.main:
        progress = Silent()
    if samples is None:
        samples = ("fid",) if spec.features is not None else ()
        if not samples:
            progress.say("no distance of samples: give --fid to measure one")
    wanted = check_sample_figures(samples)
    if wanted:
        check_extractor(opened.run.recipe(), overrides, str(path))
    references = (split,) if split is not None else reference_splits(opened.recipe)
    split = split or "test"
    # Whatever can be refused is refused before hours are spent on figures.
    at = _at_each_eps(opened, eps, per_image) if density else []
    if at and not knows_cells(opened.recipe):
        progress.say(_LOOSE)
    known, images = find_references(stats, opened.recipe.data.source)
    needed = {"train", *([split] if density else ()), *(references if wanted else ())}
    if known is not None and not density and wanted <= {"fid", "is"} and spec.features != DIGITS:
        needed = set()
    elif known is not None and images is None:
        raise UserError(
            f"--data {opened.recipe.data.source}: holds statistics and no images: measure --fid "
            "with it, as --stats, and give the images as --data"
        )
    # Figures of two measurements at once would each be lost to the other.
    alone = only_one(opened.run.evaluation_file, "measuring this run", option="")
    with alone if opened.company.main else nullcontext():
        opened.company.meet()
        data = _open_images(opened, sorted(needed), progress) if needed else {}
        for one in at:
            check_images(one, data[split])
        extractor = None
        if wanted:
            extractor = opened.company.main_first(
                lambda: open_extractor(spec.features, spec.resize, data.get("train"))
            )
        file = EvaluationFile(opened, weights_name(weights))
        if at:
            for figure in _measure_bits(at, data, split, limit, progress, per_image=per_image):
                file.add(figure)
        if extractor is not None:
            compared = {name: data[name] for name in references if name in data}
            for figure in _measure_samples(opened, extractor, compared, wanted, known, progress):
                file.add(figure)
        opened.company.meet()
    return file.evaluation


def _at_each_eps(opened: OpenRun, eps: Sequence[float], per_image: Path | None) -> list[OpenRun]:
    """The run with each value of `evaluation.eps`, after a look at what else was asked for."""
    if per_image is not None:
        check_table_path(per_image)
        if len(eps) > 1:
            raise UserError(f"--per-image {per_image}: holds figures of one eps: give --eps one")
    # The recipe's own comes last: of several figures of a kind, a report shows the last.
    ordered = sorted(eps, key=lambda e: e == opened.recipe.evaluation.eps)
    recipes = [override_recipe(opened.recipe, [f"evaluation.eps={e!r}"], "--eps") for e in ordered]
    return [dataclasses.replace(opened, recipe=r) for r in recipes or [opened.recipe]]


def _open_images(
    opened: OpenRun, splits: Sequence[str], progress: Progress
) -> dict[str, ImageDataset]:
    """The images by split, "train" among them, which must be those of the training."""
    data = {name: open_images(opened.recipe, name, opened.company, progress) for name in splits}
    given = data["train"].card.fingerprint
    if opened.card.fingerprint not in (UNKNOWN_FINGERPRINT, given):
        raise UserError(
            f"{opened.run.path}: trained on other data ({opened.card.name}, SHA-256 "
            f"{opened.card.fingerprint[:12]}; given {given[:12]}): name them with --data"
        )
    return data


def check_images(opened: OpenRun, data: ImageDataset) -> None:
    """Refuse images of which no bits per dimension can be told under this model.

    Raises:
        UserError: if they have another number of levels than those the model was trained on, or
            not the number that they are said to have, or the diffusion has too little noise for
            lossless figures of them.
    """
    model, levels = opened.model, data.card.levels
    if levels != opened.card.levels:
        raise UserError(
            f"{data.card.name}: {levels} levels, but the model was trained on "
            f"{opened.card.levels}: their bits/dim would compare nothing; give images of "
            f"{opened.card.levels} levels with --data"
        )
    classes = data.card.classes
    if opened.recipe.data.labels and classes != opened.card.classes:
        raise UserError(
            f"{data.card.name} ({data.card.split}): has {len(classes)} classes, and not those that "
            f"the model was trained on ({', '.join(opened.card.classes[:5])}, ...): give images in "
            "folders of these names"
        )
    with user_errors(f"{data.card.name} ({data.card.split})"):
        check_levels(data.batch(torch.arange(min(len(data), _LOOKED_AT))), levels)
    protocol = density_protocol(opened.recipe)
    with user_errors(f"recipe {opened.recipe.name}"):
        for key in opened.recipe.evaluation.figures:
            protocol.check(key, model.sde, levels, model.value_range)


def _measure_bits(
    at: Sequence[OpenRun],
    data: Mapping[str, ImageDataset],
    split: str,
    limit: int | None,
    progress: Progress,
    *,
    per_image: Path | None,
) -> Iterator[Figure]:
    """Measure bits per dimension in the forms that the recipe's evaluation names.

    Figures come one by one, on the main process alone. What was measured before a kill is not
    measured again; several processes share the batches.

    Args:
        at: the run, once for each eps.
        data: the images of `split`, and those the model was trained on under "train".
        split: which images.
        limit: only the first so many of them.
        progress: where bars go.
        per_image: a file for every image's result in every pass.
    """
    main, folder = at[0].company.main, at[0].run.path / "evaluation.partial"
    weights = digest(at[0].model.state_dict())
    rows: list[TableRows] = []
    begun: set[tuple[str, float]] = set()
    for opened in at:
        spec, learned = opened.recipe.evaluation, None
        if any(FORMS[key].dequantization == "learned" for key in spec.figures):
            learned = obtain_dequantizer(opened, data["train"], weights, progress)
        for key in dict.fromkeys(spec.figures):
            measurement = BitsMeasurement(
                key,
                opened.model,
                data[split],
                density_protocol(opened.recipe, limit),
                learned if FORMS[key].dequantization == "learned" else None,
                dequantizer_settings(opened.recipe),
            )
            label = f"{key} {opened.run.path.name}" + (f" {spec.eps:g}" if len(at) > 1 else "")

            def fill(
                measurement: BitsMeasurement,
                words: str = "",
                opened: OpenRun = opened,
                label: str = label,
            ) -> ImageResults:
                label = f"{label} {words}".rstrip()
                return _fill(measurement, opened, weights, folder, progress, label)

            if measurement.protocol.is_open(key):
                measurement = choose_time(measurement, data["train"], fill, opened.company)
            if (key, measurement.eps) in begun:
                continue  # the smallest time of figures of the levels may not depend on eps
            begun.add((key, measurement.eps))
            results = fill(measurement)
            if main:
                figure = measurement.figure(results)
                rows.append(TableRows(key, figure.protocol, results))
                yield figure
    if main:
        if per_image is not None:
            with user_errors(f"--per-image {per_image}"):
                write_table(per_image, rows)
        shutil.rmtree(folder, ignore_errors=True)


def _fill(
    measurement: BitsMeasurement,
    opened: OpenRun,
    weights: str,
    folder: Path,
    progress: Progress,
    label: str,
) -> ImageResults:
    """Measure this process's share; on the main process the results are of all."""
    together, dequantizer = opened.company, measurement.dequantizer
    protocol, images = measurement.protocol, measurement.data
    identity = {
        "figure": measurement.key,
        "protocol": protocol.decisive(),
        "weights": weights,
        "images": images.card.fingerprint,
        "versions": package_versions(),
        "dequantizer": None if dequantizer is None else digest(dequantizer.state_dict()),
    }
    place = parts_folder(folder, measurement.key, identity)
    results = ImageResults(protocol.passes, protocol.images(images), place)
    done = results.gather()
    if done and together.main:
        progress.say(f"{measurement.key}: {done} results of an interrupted evaluation are used")
    with progress.task(label, results.seen.size, done) as bar:
        measurement.fill(results, deal=together.deal, advance=bar.advance)
        if together.main:
            results.wait_for_others(bar.advance, together.look)
    return results


class _Drawer:
    """Draws a run's samples batch by batch, and keeps what the grid and the protocol need."""

    def __init__(self, opened: OpenRun) -> None:
        self._opened = opened
        self._grid = opened.run.samples / "final.png" if opened.is_newest else None
        self._first: list[Tensor] = []
        self._nfe = 0

    def read(self, wanted: range) -> Iterator[Tensor]:
        """Images of these numbers; image i depends on seed + i alone."""
        spec, shown = self._opened.recipe.evaluation, self._opened.recipe.training.samples
        parts = (wanted[i : i + spec.batch_size] for i in range(0, len(wanted), spec.batch_size))
        for batch in draw_batches(self._opened, parts, seed=spec.seed):
            self._nfe = max(self._nfe, batch.nfe)
            if batch.first < shown:
                self._first.append(batch.images)
            yield batch.images
        if self._opened.company.main and self._grid is not None:
            pixels = stretch_levels(torch.cat(self._first)[:shown], self._opened.card.levels)
            save_grid(pixels, self._grid, grid_columns(self._opened.recipe, self._opened.card))

    def nfe(self) -> int:
        """The most network evaluations of any batch of any process."""
        accelerator = self._opened.accelerator
        self._opened.company.meet()
        mine = torch.tensor([self._nfe], device=accelerator.device)
        return int(accelerator.gather(mine).max())


def _measure_samples(
    opened: OpenRun,
    extractor: FeatureExtractor,
    references: Mapping[str, ImageDataset],
    figures: frozenset[SampleFigure],
    known: KnownStatistics | None,
    progress: Progress,
) -> Iterator[Figure]:
    """Draw samples and judge them; figures come one by one, on the main process alone."""
    spec, card, drawer = opened.recipe.evaluation, opened.card, _Drawer(opened)
    samples = Samples(
        label=f"sample {opened.run.path.name}",
        count=spec.samples,
        levels=card.levels,
        channels=card.channels,
        read=drawer.read,
        protocol=samples_protocol(opened.recipe),
        nfe=drawer.nfe,
        labels=labels_of_samples(opened.recipe, card, spec.samples),
    )
    judge = Judge(
        extractor,
        opened.accelerator,
        opened.company,
        batch_size=spec.batch_size,
        seed=spec.seed,
        progress=progress,
    )
    yield from judge.measure(samples, references, figures, known)
