"""The anatomy of one run or two: which times decide density, and which decide samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from softtrunc.data import ImageDataset, to_model
from softtrunc.density import (
    Reconstruction,
    bin_centers,
    density_bits_per_dim,
    dequantize,
    lossless_eps,
    spread_range,
)
from softtrunc.evaluation.figure import FORMS
from softtrunc.evaluation.law_of_times import law_of_times
from softtrunc.evaluation.time_bins import ByTime, by_time
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import check_named
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.jobs.anatomy_samples import Chimeras, regeneration
from softtrunc.jobs.measure import check_images
from softtrunc.jobs.measured import check_extractor
from softtrunc.jobs.parts import Parts
from softtrunc.objective import MixedLoss
from softtrunc.recipes.build import build_data, build_objective
from softtrunc.records import Anatomy, AnatomyBin, AnatomyChange, AnatomyRun, write_anatomy
from softtrunc.report.anatomy import write_anatomy_page
from softtrunc.runs.folder import UNKNOWN_FINGERPRINT, now, package_versions
from softtrunc.runs.open_run import OpenRun, check_pair, open_run
from softtrunc.score import ScoreFunction
from softtrunc.training import Weights, read_checkpoint_info

_BATCH = 64
"""Images whose bound is measured between two looks at the clock, and kept together."""


@dataclass(frozen=True)
class _Question:
    """What is asked, beside the runs and the images."""

    images: int
    samples: int
    bins: int
    draws: int
    split: str
    seed: int
    eps: float


def anatomy(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    images: int = 256,
    samples: int = 500,
    bins: int = 24,
    draws: int = 2,
    times: int = 6,
    split: str = "test",
    weights: Weights = "ema",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Anatomy:
    """Tell a run's bound and its samples apart by diffusion time.

    Of every run the bound and the error of the score in bins of log-SNR, and what its prior of
    truncation times, weighting and clipping made of these bins. Two runs are measured on the same
    images, times and noise; their differences carry paired standard errors. Two runs give chimeras
    as well (the score of one above a time, of the other below) with their distance to the training
    images as a function of that time; one run gives images that were noised up to a time and
    sampled again. Written are `anatomy.json`, `anatomy.html` and grids.

    Killed, the same call goes on: what was measured lies in `anatomy.partial` beside the result.

    Args:
        runs: one or two run folders, of the same data and SDE.
        out: folder of the results; None: `anatomy` in the first run's.
        images: held-out images whose bound is measured, >= 2.
        samples: of every chimera.
        bins: of log-SNR.
        draws: times per image in each bin.
        times: how many times of change between the models, equally spaced in log-SNR.
        split: of the images.
        weights: averaged or raw.
        overrides: `a.b=c` changes of the recipes' sampling, evaluation and data.source.
        progress: where bars go.

    Returns:
        The content of `anatomy.json`.

    Raises:
        UserError: if the runs, the data or a key are not usable, or two runs do not compare.
    """
    progress = progress or Silent()
    if len(runs) not in (1, 2):
        raise UserError(f"anatomy: {len(runs)} runs: name one, or two to compare")
    out = out or runs[0] / "anatomy"
    check_named(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is no folder: write the name of one")
    if images < 2:
        raise UserError(f"anatomy: {images} images: a standard error needs 2 at least")
    opened = _open(runs, weights, overrides)
    recipe = opened[0].recipe
    data = {name: build_data(recipe, name, progress) for name in ("train", split)}
    _check_data(opened, data, split)
    spec = recipe.evaluation
    asked = _Question(
        min(images, len(data[split])), samples, bins, draws, split, spec.seed, _eps(opened[0])
    )
    names = _names(opened)
    # Whatever can be refused is refused before anything is measured.
    curves = (
        Chimeras(opened, names, data["train"], samples, times, progress)
        if len(opened) == 2
        else None
    )
    judged = curves.protocol if curves else {}
    identity = {
        "weights": [_sha256(o, weights) for o in opened],
        "recipes": [o.recipe.model_dump(mode="json") for o in opened],
        "data": [d.card.fingerprint for d in data.values()],
        "asked": asdict(asked) | {"times": times},
        "judged": judged,
        "versions": package_versions(),
    }
    with only_one(out, "writing this anatomy"):
        parts = Parts(out / "anatomy.partial", identity)
        found = [
            _bound(o, f"{i}-bound", name, data[split], asked, parts, progress)
            for i, (o, name) in enumerate(zip(opened, names, strict=True))
        ]
        alone, chimera = curves.measure(out, parts) if curves else ([None], ())
        content = Anatomy(
            created=now(),
            versions=package_versions(),
            protocol=asdict(asked)
            | {"data": data[split].card.name, "sampler": recipe.sampling.model_dump(mode="json")}
            | judged,
            unit=FORMS["nelbo" if opened[0].card.on_grid else "nelbo_continuous"].unit,
            runs=tuple(
                _run_record(o, name, bound, weights, distance)
                for o, name, bound, distance in zip(opened, names, found, alone, strict=True)
            ),
            difference=_difference(names, found) if curves else None,
            chimera=chimera,
            distance_name=curves.distance_name if curves else None,
            regeneration=()
            if curves
            else regeneration(
                opened[0], data[split], times, parts, progress, out / "regeneration.png"
            ),
        )
        write_anatomy(out / "anatomy.json", content)
        write_anatomy_page(out)
        parts.remove()
    return content


def _open(runs: Sequence[Path], weights: Weights, overrides: Sequence[str]) -> list[OpenRun]:
    """Runs that can be compared."""
    opened = [open_run(path, weights=weights, overrides=overrides) for path in runs]
    if opened[0].accelerator.num_processes > 1:
        raise UserError("anatomy works in one process: call it without `accelerate launch`")
    for other in opened[1:]:
        check_pair(opened[0], other)
    if len(runs) == 2:  # whose samples are judged
        check_extractor(opened[0].run.recipe(), overrides, str(runs[0]))
    return opened


def _names(opened: Sequence[OpenRun]) -> list[str]:
    """The folders' names, with those of the folders above where they are the same."""
    paths = [o.run.path.resolve() for o in opened]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    return ["/".join(path.parts[-2:]) for path in paths]


def _check_data(opened: Sequence[OpenRun], data: Mapping[str, ImageDataset], split: str) -> None:
    for o in opened:
        if o.card.fingerprint not in (UNKNOWN_FINGERPRINT, data["train"].card.fingerprint):
            raise UserError(
                f"{o.run.path}: trained on other data ({o.card.name}): name them with "
                "--set data.source=PATH"
            )
        check_images(o, data[split])


def _sha256(opened: OpenRun, weights: Weights) -> str:
    """Of the file of weights."""
    with user_errors():
        info = read_checkpoint_info(opened.run.checkpoints / f"step-{opened.step:08d}")
    return info.files["ema.safetensors" if weights == "ema" else "model.safetensors"]


def _cells(opened: OpenRun) -> tuple[float, float]:
    """The range that the levels' cells fill: the model's, or half a level more at both ends."""
    value_range = opened.model.value_range
    if opened.recipe.data.dequantize or not opened.card.on_grid:
        return value_range
    return spread_range(opened.card.levels, value_range)


def _eps(opened: OpenRun) -> float:
    """The time at which the bound begins, as in the run's own figures."""
    spec = opened.recipe.evaluation
    if opened.recipe.data.dequantize or not opened.card.on_grid:
        return spec.eps
    if spec.lossless_eps is not None:
        return spec.lossless_eps
    return lossless_eps(opened.model.sde, opened.card.levels, _cells(opened), least=spec.eps)


def _bound(
    opened: OpenRun,
    key: str,
    name: str,
    images: ImageDataset,
    asked: _Question,
    parts: Parts,
    progress: Progress,
) -> ByTime:
    """The bound of the first images, batch by batch; image i's draws follow from i alone."""
    levels, cells = opened.card.levels, _cells(opened)
    plain = opened.recipe.data.dequantize
    smooth = plain or not opened.card.on_grid
    reconstruction: Reconstruction = "gaussian" if smooth else "discrete"

    def seen(shown: Tensor, seeds: list[int]) -> Tensor:
        if not opened.card.on_grid:
            return to_model(shown, opened.card, cells)
        if plain:
            return dequantize(shown, levels, cells, seeds=seeds)
        return bin_centers(shown, levels, cells)

    def measure(numbers: range) -> dict[str, Tensor]:
        seeds = [(asked.seed << 32) + i for i in numbers]
        rows = torch.arange(numbers.start, numbers.stop)
        shown = images.batch(rows).to(opened.device)
        model: ScoreFunction = opened.model
        if opened.recipe.data.labels:
            model = opened.model.given(y=images.classes_of(rows))
        found = by_time(
            model,
            seen(shown, seeds),
            eps=asked.eps,
            bins=asked.bins,
            draws=asked.draws,
            reconstruction=reconstruction,
            levels=levels or 2,  # of floats there are none, and nothing of them is used
            value_range=cells,
            seeds=seeds,
        )
        if opened.card.value_range is not None:
            nothing = torch.zeros(1, dtype=torch.float64)
            offset = density_bits_per_dim(nothing, shown[0].numel(), opened.card.value_range, cells)
            found = replace(found, offset=float(offset))
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        return {k: torch.as_tensor(v, dtype=torch.float64) for k, v in values.items()}

    batches = []
    with progress.task(f"bound by time, {name}", asked.images) as bar:
        for first in range(0, asked.images, _BATCH):
            numbers = range(first, min(first + _BATCH, asked.images))
            tensors = parts.get(f"{key}-{first:08d}", partial(measure, numbers))
            offset = float(tensors.pop("offset"))
            batches.append(ByTime(**tensors, offset=offset))
            bar.advance(len(numbers))
    return ByTime.join(batches)


def _run_record(
    opened: OpenRun, name: str, found: ByTime, weights: Weights, distance: float | None
) -> AnatomyRun:
    total, below = found.total, found.bins[-1].bits_below
    law = _law(opened, found.log_snr)
    return AnatomyRun(
        name=name,
        step=opened.step,
        weights=weights,
        bins=tuple(
            AnatomyBin(*part, part.bits_below / below, *own)
            for part, own in zip(found.bins, law, strict=True)
        ),
        prior=float(found.prior.mean()),
        residual=float(found.residual.mean()),
        offset=found.offset,
        total_bits_per_dim=total.mean,
        standard_error=total.standard_error,
        distance=distance,
    )


class _Law(NamedTuple):
    """The last fields of an `AnatomyBin`."""

    share_of_draws: float | None = None
    weight: float | None = None
    clipped_weight: float | None = None


def _law(opened: OpenRun, log_snr: Tensor) -> list[_Law]:
    """What training made of each bin; nothing for a balanced loss: errors weigh its halves."""
    objective = build_objective(opened.recipe)
    if isinstance(objective, MixedLoss) and objective.balanced:
        return [_Law() for _ in log_snr[1:]]
    # Norms settle in the first half of the training.
    rows = opened.run.metrics()
    late = [row for row in rows[len(rows) // 2 :] if row.taus and row.grad_norms]
    taus = [tau for row in late for tau in row.taus]
    norms = [norm for row in late for norm in row.grad_norms]
    clip = opened.recipe.training.grad_clip
    known = bool(taus) and len(taus) == len(norms)
    law = law_of_times(
        objective,
        log_snr,
        taus=taus if known else None,
        grad_norms=norms if known else None,
        clip=clip,
    )
    clipped = [None] * len(law.share) if law.clipped is None else law.clipped.tolist()
    parts = zip(law.share.tolist(), law.weight.tolist(), clipped, strict=True)
    return [_Law(*part) for part in parts]


def _difference(names: Sequence[str], found: Sequence[ByTime]) -> AnatomyChange:
    """Second minus first, paired over images."""
    change = found[1].minus(found[0])
    return AnatomyChange(
        of=names[1],
        minus=names[0],
        bins=tuple(AnatomyBin(*part) for part in change.bins),
        total_bits_per_dim=change.total.mean,
        standard_error=change.total.standard_error,
    )
