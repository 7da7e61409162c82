"""The demo: hard truncation against Soft Truncation on real images, from nothing to a page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from softtrunc.feedback.errors import RunFailedError, UserError, user_errors
from softtrunc.feedback.files import check_place
from softtrunc.feedback.progress import Progress
from softtrunc.jobs.anatomy import anatomy
from softtrunc.jobs.side_by_side import train_and_measure
from softtrunc.recipes.load import load_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.report import SummaryTable, read_run, summary_rows, write_report
from softtrunc.runs.folder import Run
from softtrunc.training import list_checkpoints, step_of

# Enough to see the curves.
_take_apart = partial(anatomy, images=128, bins=20, times=5)
# Of demos that earlier versions wrote; they may be replaced.
_EARLIER = ("digits-vp-nll", "digits-vp-nll-st", "digits-vp-fid")


class DemoOutcome(NamedTuple):
    """The table, one run a row, and the page."""

    table: SummaryTable
    page: Path


def demo_recipes(*, full: bool, steps: int | None = None) -> dict[str, Recipe]:
    """What the demo trains, by the name of its run folder.

    All share network, seed, batches and budget; they differ in truncation alone, but for the
    variance-weighted baseline of the full demo.
    """
    names = {"hard": "fashion16-hard", "soft": "fashion16-expected-k0.8"}
    if full:
        names |= {
            "soft-drawn-k1": "fashion16-soft",
            "soft-drawn-k0.8": "fashion16-soft-k0.8",
            "soft-k1": "fashion16-expected",
            "hard-variance": "fashion16-variance",
        }
    budget = [] if steps is None else [f"training.steps={steps}"]
    return {run: load_recipe(name, budget) for run, name in names.items()}


def run_demo(
    out: Path, *, full: bool = False, steps: int | None = None, progress: Progress
) -> DemoOutcome | None:
    """Train, sample, measure, take the two models apart and report.

    An unfinished demo in `out` goes on where it stopped; a finished one is replaced.

    Returns:
        Where things are, or None if a signal stopped training.

    Raises:
        UserError: if `out` holds something that the demo did not write.
        RunFailedError: if a run failed or its process died.
    """
    recipes = demo_recipes(full=full, steps=steps)
    resume = _unfinished(out, recipes)
    if not resume:
        _clear(out)
    by_folder = {out / name: [recipe] for name, recipe in recipes.items()}
    outcome = train_and_measure(by_folder, resume=resume, progress=progress)
    if outcome.failures:
        raise RunFailedError("; ".join(outcome.failures.values()))
    if not outcome.finished:
        return None
    pair = [out / name for name in ("hard", "soft")]
    _take_apart(pair, progress=progress)
    title = "Soft Truncation against hard truncation: the demo"
    with user_errors():
        table = summary_rows([read_run(run) for run in by_folder])
        page = write_report(list(by_folder), out / "report.html", title=title)
    return DemoOutcome(table, page)


def _unfinished(out: Path, recipes: Mapping[str, Recipe]) -> bool:
    """Whether any of the runs has begun and something of the whole is still missing."""
    runs = {Run(out / name): recipe.training.steps for name, recipe in recipes.items()}
    reached = {run: max(map(step_of, list_checkpoints(run.checkpoints)), default=0) for run in runs}
    whole = all(
        reached[run] >= steps and run.evaluation_file.exists() for run, steps in runs.items()
    )
    return any(reached.values()) and not (whole and (out / "report.html").exists())


def _clear(out: Path) -> None:
    """Remove an earlier demo; refuse to touch anything else."""
    check_place(out, _is_ours, ", which the demo did not write")
    if out.exists():
        shutil.rmtree(out)


def _is_ours(path: Path) -> bool:
    """Whether the demo wrote this: its page, or a run of a recipe of its own."""
    if path.name == "report.html":
        return True
    try:
        recipe = Run(path).recipe()
    except UserError:
        return False
    return recipe.name in {*_EARLIER, *(r.name for r in demo_recipes(full=True).values())}
