"""A study: train, measure and report every combination of some settings, over several seeds."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from softtrunc.feedback.errors import RunFailedError, UserError, nearest, user_errors
from softtrunc.feedback.files import check_place, write_bytes, write_text
from softtrunc.feedback.progress import Progress
from softtrunc.jobs.measured import (
    check_extractor,
    is_measured,
    knows_cells,
    measured_figures,
)
from softtrunc.jobs.side_by_side import train_and_measure
from softtrunc.recipes.build import build_objective, build_sampler, build_sde, build_training
from softtrunc.recipes.load import load_recipe, parse_flow
from softtrunc.recipes.schema import Recipe
from softtrunc.report import read_run, write_report
from softtrunc.report.runs import RunRecord
from softtrunc.report.study import Setting, StudySummary, study_summary, trade_off_picture
from softtrunc.report.summary import format_setting
from softtrunc.runs.folder import Run

_RECIPE = "recipe"
# What is asked of a trained run: settings that differ in nothing else share it.
_ASKED_AFTERWARDS = ("sampling", "evaluation")
# What names or seeds a run is not for sweeping: seeds have an option of their own.
# What is larger, or no number, is shown as it was written.
_LARGEST_SHOWN = 1e300
_NOT_VARIED = ("name", "description", "training.seed", "paper")


@dataclass(frozen=True)
class Axis:
    """A key and the values it takes; `shown` is how a person writes each value."""

    key: str
    values: tuple[Any, ...]
    shown: tuple[str, ...]

    @property
    def trained(self) -> bool:
        """Whether training depends on it."""
        return self.key.partition(".")[0] not in _ASKED_AFTERWARDS


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    - `label`: what a person reads; `training`: as much of it as training depends on.
    - `values`: as a person writes them, by key. `recipes`: by seed.
    - `baseline`: label of the cell it is compared with; None: it is one.
    """

    label: str
    training: str
    values: dict[str, str]
    recipes: dict[int, Recipe]
    baseline: str | None

    def folder(self, seed: int) -> str:
        """Name of the run folder of a seed, shared by cells of the same training."""
        return f"{re.sub(r'[^A-Za-z0-9.+=-]+', '_', self.training).strip('_')}_seed={seed}"


class StudyOutcome(NamedTuple):
    """What a study found.

    - `summary`: the table. `page`, `table`, `records`: the HTML page, the JSON and the CSV file.
    - `picture`: the density/sample-quality plot as PNG (an SVG lies beside it); None without a
      distance.
    - `failures`: what went wrong, by run folder.
    - `finished`: False if a signal stopped it; what there is was written all the same.
    """

    summary: StudySummary
    page: Path
    table: Path
    records: Path
    picture: Path | None
    failures: dict[str, str]
    finished: bool


def plan_study(
    recipes: Sequence[str],
    vary: Sequence[str],
    *,
    seeds: int,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Cell]:
    """Every combination of what is varied, checked as far as that goes without data.

    Args:
        recipes: names of recipes or YAML files; several of them are themselves varied.
        vary: `key=value,value,...`, values as in YAML (`{a: 1, b: 2}` changes several keys at
            once); each key is crossed with the others. Settings that differ in keys of `sampling`
            and `evaluation` alone share their trained runs.
        seeds: number of training seeds, 0, 1, ...
        baseline: `key=value`: settings are compared with the one that has this value and is else
            the same; None: with the first value of the last key.
        overrides: `a.b=c` changes of all recipes.

    Raises:
        UserError: if a recipe, key or value is wrong.
    """
    axes = [_axis(text) for text in vary]
    if len(recipes) > 1:
        axes.insert(0, Axis(_RECIPE, tuple(recipes), tuple(recipes)))
    keys = [axis.key for axis in axes]
    for axis in axes:
        if keys.count(axis.key) > 1:
            raise UserError(f"--vary {axis.key}: given twice: write all of its values at once")
        if len(set(axis.shown)) < len(axis.shown):
            raise UserError(f"{axis.key}: a value stands twice in {', '.join(axis.shown)}")
    against = _baseline(axes, baseline)
    cells = []
    for chosen in itertools.product(*(range(len(axis.values)) for axis in axes)):
        taken = {axis.key: axis.values[i] for axis, i in zip(axes, chosen, strict=True)}
        name = taken.pop(_RECIPE, recipes[0])
        changes = [*overrides, *(f"{key}={_flow(value)}" for key, value in taken.items())]
        by_seed = {
            seed: load_recipe(name, [*changes, f"training.seed={seed}"]) for seed in range(seeds)
        }
        label = _label(axes, chosen) or by_seed[0].name
        check_extractor(load_recipe(name), changes, name)
        _check_recipe(by_seed[0], label)
        compared = None
        if against is not None and chosen[against[0]] != against[1]:
            place, value = against
            compared = _label(axes, [*chosen[:place], value, *chosen[place + 1 :]])
        cells.append(
            Cell(
                label,
                _label(axes, chosen, trained=True) or by_seed[0].name,
                {axis.key: axis.shown[i] for axis, i in zip(axes, chosen, strict=True)},
                by_seed,
                compared,
            )
        )
    _check_folders(cells)
    return cells


def _check_recipe(recipe: Recipe, label: str) -> None:
    """Refuse a recipe that cannot be built, or of which nothing can be measured."""
    with user_errors(label):
        build_objective(recipe).draw(recipe.training.batch_size)
        build_sampler(recipe.sampling, build_sde(recipe))
        build_training(recipe)
    if not knows_cells(recipe) and recipe.evaluation.features is None:
        raise UserError(
            f"{label}: nothing to compare: without data.dequantize bits/dim are lossless ones, "
            "and no extractor is named: add --set evaluation.figures=[nelbo_lossless], or "
            "--set evaluation.features=inception (or a path)"
        )


def run_study(
    cells: Sequence[Cell], out: Path, *, title: str | None = None, progress: Progress
) -> StudyOutcome | None:
    """Train and measure what is missing in `out`, then write the tables, the plot and the page.

    Finished runs stay as they are, unfinished ones go on; so the same command after a kill does
    the rest, and one with more values or seeds adds to what is there.

    Args:
        cells: from `plan_study`.
        out: the folder of the study; runs lie in `out/runs`.
        title: of the page.
        progress: where bars and lines go.

    Returns:
        What was found, or None if a signal came before the first run was measured.

    Raises:
        UserError: if `out` holds something else or runs of other recipes, or data cannot be read.
        RunFailedError: if every run failed.
    """
    _check_place(out)
    runs = _by_folder(cells, out)
    missing = {path: recipes for path, recipes in runs.items() if not _are_done(path, recipes)}
    if done := len(runs) - len(missing):
        progress.say(f"{done} of {len(runs)} runs are finished already")
    finished, failures = True, dict[str, str]()
    if missing:
        finished, failures = train_and_measure(
            missing, resume=True, progress=progress, label="runs"
        )
    settings = [
        Setting(cell.label, cell.values, _measured_runs(cell, out), cell.baseline) for cell in cells
    ]
    if not any(setting.runs for setting in settings):
        if failures:
            raise RunFailedError("; ".join(failures.values()))
        return None
    summary = study_summary(settings)
    content = {**summary.to_dict(), "failures": failures}
    table, records = out / "study.json", out / "study.csv"
    write_text(table, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(records, _csv(summary))
    picture = None
    for encoding in ("svg", "png"):
        drawn = trade_off_picture(summary, encoding)
        if drawn is not None:
            picture = out / f"trade-off.{encoding}"
            write_bytes(picture, drawn.data)
    shown = dict.fromkeys(next(iter(s.runs.values())).path for s in settings if s.runs)
    with user_errors():
        page = write_report(list(shown), out / "report.html", title=title, study=summary)
    return StudyOutcome(summary, page, table, records, picture, failures, finished)


def _axis(text: str) -> Axis:
    key, equals, listed = text.partition("=")
    key = key.strip()
    example = "write key=value,value,..., e.g. --vary truncation.k=0.9,1,inf"
    if not equals or not key or not listed.strip():
        raise UserError(f"--vary {text}: {example}")
    if key in _NOT_VARIED:
        instead = "give --seeds" if key == "training.seed" else "it decides nothing"
        raise UserError(f"--vary {key}: {instead}")
    values = parse_flow(f"[{listed}]", f"--vary {text}")
    if not isinstance(values, list) or not values:
        raise UserError(f"--vary {text}: {example}")
    return Axis(key, tuple(values), tuple(map(_shown, values)))


def _shown(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float) and abs(value) < _LARGEST_SHOWN:
        return format_setting(float(value))
    return str(value)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _label(axes: Sequence[Axis], chosen: Sequence[int], *, trained: bool = False) -> str:
    """ "k=0.9, weighting=variance": last parts of the keys where they tell the keys apart.

    With `trained`, of those keys alone that training depends on.
    """
    last = [axis.key.rpartition(".")[2] for axis in axes]
    parts = []
    for axis, short, i in zip(axes, last, chosen, strict=True):
        name = short if last.count(short) == 1 else axis.key
        bare = axis.key == _RECIPE or isinstance(axis.values[i], Mapping)
        if axis.trained or not trained:
            parts.append(axis.shown[i] if bare else f"{name}={axis.shown[i]}")
    return ", ".join(parts)


def _baseline(axes: Sequence[Axis], text: str | None) -> tuple[int, int] | None:
    """The axis along which settings are compared, and the value they are compared with."""
    if text is None:
        return (len(axes) - 1, 0) if axes else None
    key, _, value = text.partition("=")
    keys = [axis.key for axis in axes]
    if key not in keys:
        raise UserError(f"--baseline {text}: {key!r} is not varied; {nearest(key, keys)}")
    axis = axes[keys.index(key)]
    shown = value if key == _RECIPE else _shown(parse_flow(value, f"--baseline {text}"))
    if shown not in axis.shown:
        raise UserError(f"--baseline {text}: {key} takes {', '.join(axis.shown)}")
    return keys.index(key), axis.shown.index(shown)


def _check_folders(cells: Sequence[Cell]) -> None:
    """Refuse labels that would share a run folder."""
    seen: dict[str, str] = {}
    for cell in cells:
        other = seen.setdefault(cell.folder(0), cell.training)
        if other != cell.training:
            raise UserError(f"--vary: {other!r} and {cell.training!r} would share a folder")


def _check_place(out: Path) -> None:
    """Refuse a place that holds anything but a study."""
    ours = {"runs", "study.json", "study.csv", "report.html", "trade-off.svg", "trade-off.png"}
    check_place(out, lambda path: path.name in ours, ", which no study wrote")
    with user_errors(f"--out {out}"):
        (out / "runs").mkdir(parents=True, exist_ok=True)


def _by_folder(cells: Sequence[Cell], out: Path) -> dict[Path, list[Recipe]]:
    """The recipes of each run folder; they differ in what is asked of the trained run."""
    found: dict[Path, list[Recipe]] = {}
    for cell in cells:
        for seed, recipe in cell.recipes.items():
            found.setdefault(out / "runs" / cell.folder(seed), []).append(recipe)
    return found


def _are_done(path: Path, recipes: Sequence[Recipe]) -> bool:
    return all(_is_done(path, recipe) for recipe in recipes)


def _is_done(path: Path, recipe: Recipe) -> bool:
    """Whether a run was trained as this recipe says, and measured as it says to the end."""
    run = Run(path)
    if not run.exists:
        return False
    asked = {key: getattr(recipe, key) for key in _ASKED_AFTERWARDS}
    return run.recipe().model_copy(update=asked) == recipe and is_measured(run, recipe)


def _measured_runs(cell: Cell, out: Path) -> dict[int, RunRecord]:
    """By seed, the runs that are done, with the figures of this cell alone."""
    found = {}
    for seed, recipe in cell.recipes.items():
        path = out / "runs" / cell.folder(seed)
        if _is_done(path, recipe):
            with user_errors():
                record = read_run(path)
            if record.evaluation is not None:
                figures = tuple(measured_figures(Run(path), recipe))
                evaluation = replace(record.evaluation, figures=figures)
                found[seed] = replace(record, evaluation=evaluation)
    return found


def _csv(summary: StudySummary) -> str:
    records = list(summary.records())
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
