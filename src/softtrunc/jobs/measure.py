"""Measure a run: `evaluation.json`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softtrunc.evaluation.distances import check_sample_figures
from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.evaluation.image_results import check_table_path
from softtrunc.feedback.errors import UserError
from softtrunc.feedback.files import write_text
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.jobs.measure_density import (
    check_images,
    check_meaningful,
    has_meaning,
    measure_bits,
)
from softtrunc.jobs.measure_samples import (
    build_extractor,
    measure_samples,
    reference_splits,
    sample_keys,
)
from softtrunc.recipes.build import build_data
from softtrunc.recipes.schema import Recipe
from softtrunc.records import Figure, median_rate
from softtrunc.runs.folder import (
    UNKNOWN_FINGERPRINT,
    Run,
    now,
    package_versions,
)
from softtrunc.runs.open_run import OpenRun, open_run
from softtrunc.training import Weights

__all__ = ["is_measured", "measure"]


def _training_summary(opened: OpenRun) -> dict[str, Any]:
    spec = opened.recipe.training
    return {
        "seconds": opened.seconds,
        "images_per_second": median_rate(opened.run.metrics()),
        "parameters": sum(p.numel() for p in opened.model.parameters()),
        "steps": opened.step,
        "batch_size": spec.batch_size,
    }


def measure(
    path: Path,
    *,
    density: bool = True,
    samples: Collection[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    weights: Weights = "ema",
    overrides: Sequence[str] = (),
    per_image: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a run and write its `evaluation.json`, figure by figure.

    Figures measured before are kept where they are of the same checkpoint and weights and are not
    measured again.

    Args:
        path: the run folder.
        density: whether to measure bits per dimension.
        samples: which figures of samples, of "fid", "is", "kid" and "prdc"; None: "fid" if the
            recipe names a feature extractor, else none.
        split: of the images, for bits per dimension and to compare samples with; None: held-out
            ones for bits per dimension, and for samples what `reference_splits` says.
        limit: only the first so many of them.
        weights: averaged or raw.
        overrides: `a.b=c` changes of the recipe's sampling, evaluation and data.source.
        per_image: a `.csv` or `.parquet` file for the bits per dimension of every image.
        progress: where bars and lines go.

    Returns:
        The content of `evaluation.json`.

    Raises:
        UserError: if the run, the data, a key or the feature extractor is not usable.
    """
    progress = progress or Silent()
    opened = open_run(path, weights=weights, overrides=overrides)
    if not opened.accelerator.is_main_process:
        progress = Silent()
    if samples is None:
        samples = ("fid",) if opened.recipe.evaluation.features is not None else ()
        if not samples:
            progress.say("no distance of samples: give --fid to measure one")
    wanted = check_sample_figures(samples)
    references = (split,) if split is not None else reference_splits(opened.recipe)
    split = split or "test"
    if density:
        check_meaningful(opened.recipe)
        if per_image is not None:
            check_table_path(per_image)
    needed = {"train"} | ({split} if density else set()) | set(references if wanted else ())
    data = {name: build_data(opened.recipe, name, progress) for name in sorted(needed)}
    trained_on = data["train"].card
    if opened.card.fingerprint not in (UNKNOWN_FINGERPRINT, trained_on.fingerprint):
        raise UserError(
            f"{path}: trained on other data ({opened.card.name}, SHA-256 "
            f"{opened.card.fingerprint[:12]}; given {trained_on.fingerprint[:12]}): name them "
            "with --data"
        )
    if density:
        check_images(opened, data[split])
    # Whatever can be refused is refused before hours are spent on figures.
    extractor = None
    if wanted:
        with opened.accelerator.main_process_first():
            extractor = build_extractor(opened.recipe.evaluation, data["train"], progress)
    card = data[split if density else references[0]].card
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
        if not opened.accelerator.is_main_process:
            return
        kept = [f for f in content["figures"] if not _replaces(figure, f)]
        content["figures"] = [*kept, asdict(figure)]
        text = json.dumps(content, indent=1, allow_nan=False)
        write_text(opened.run.evaluation_file, text + "\n")

    if density:
        for figure in measure_bits(opened, data, split, limit, progress, per_image=per_image):
            store(figure)
    if extractor is not None:
        compared = {name: data[name] for name in references}
        for figure in measure_samples(opened, extractor, compared, wanted, progress):
            store(figure)
    opened.accelerator.wait_for_everyone()
    return content


def is_measured(run: Run, recipe: Recipe) -> bool:
    """Whether `evaluation.json` holds every figure of the recipe for its last step."""
    wanted: set[str] = set(recipe.evaluation.figures) if has_meaning(recipe) else set()
    wanted |= sample_keys(recipe)
    try:
        content = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
        found = {figure["key"] for figure in content["figures"]}
        return bool(content["step"] == recipe.training.steps) and wanted <= found
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _replaces(figure: Figure, earlier: Mapping[str, Any]) -> bool:
    """Bits/dim replace those of their kind; distances and scores only those of the same name."""
    if figure.key != earlier["key"]:
        return False
    return figure.key in DENSITY_FIGURES or figure.name == earlier.get("name")


def _earlier(opened: OpenRun, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of an existing `evaluation.json` of the same checkpoint and weights."""
    try:
        old = json.loads(opened.run.evaluation_file.read_text(encoding="utf-8"))
        same = old["step"] == content["step"] and old["weights"] == content["weights"]
        return [f for f in old["figures"] if f["key"]] if same else []
    except (OSError, KeyError, TypeError, ValueError):
        return []
