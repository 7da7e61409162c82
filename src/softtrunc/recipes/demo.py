"""The demo: hard truncation against Soft Truncation on the digits, from nothing to a page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from softtrunc.recipes.compare import write_page
from softtrunc.recipes.errors import UserError
from softtrunc.recipes.load import load_recipe
from softtrunc.recipes.measure import measure
from softtrunc.recipes.progress import Progress
from softtrunc.recipes.run import Run
from softtrunc.recipes.schema import Recipe
from softtrunc.recipes.train import train
from softtrunc.training import list_checkpoints

__all__ = ["DemoOutcome", "demo_recipes", "run_demo"]


class DemoOutcome(NamedTuple):
    """The run folders in the order of the table, and the page."""

    runs: list[Path]
    page: Path


def demo_recipes(*, full: bool, steps: int | None = None) -> dict[str, Recipe]:
    """What the demo trains, by the name of its run folder.

    All share network, seed, batches and budget; they differ in truncation alone, but for the
    variance-weighted baseline of the full demo.
    """
    budget = [] if steps is None else [f"training.steps={steps}"]
    recipes = {
        "hard": load_recipe("digits-vp-nll", budget),
        "soft-k1": load_recipe("digits-vp-nll-st", budget),
    }
    if full:
        recipes["soft-k0.9"] = load_recipe("digits-vp-nll-st", [*budget, "truncation.k=0.9"])
        recipes["soft-k2"] = load_recipe("digits-vp-nll-st", [*budget, "truncation.k=2"])
        recipes["hard-variance"] = load_recipe("digits-vp-fid", budget)
    return recipes


def run_demo(
    out: Path,
    *,
    full: bool = False,
    resume: bool = False,
    steps: int | None = None,
    progress: Progress,
) -> DemoOutcome | None:
    """Train, sample, measure and report.

    A finished demo in `out` is replaced; an unfinished one goes on with `resume`.

    Returns:
        Where things are, or None if a signal stopped training.

    Raises:
        UserError: if `out` holds something that the demo did not write.
    """
    recipes = demo_recipes(full=full, steps=steps)
    if not resume:
        _clear(out, recipes)
    for name, recipe in recipes.items():
        outcome = train(recipe, out / name, resume=resume, progress=progress)
        if outcome.interrupted:
            return None
    for name in recipes:
        measure(out / name, progress=progress)
    runs = [out / name for name in recipes]
    page = write_page(
        runs, out / "report.html", title="Soft Truncation against hard truncation: the demo"
    )
    return DemoOutcome(runs, page)


def _clear(out: Path, recipes: dict[str, Recipe]) -> None:
    """Remove an earlier, finished demo; refuse to touch anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    known = {*demo_recipes(full=True), "report.html"}
    strangers = [p.name for p in out.iterdir() if p.name not in known] if out.is_dir() else []
    if not out.is_dir() or strangers:
        what = f"holds {strangers[0]!r}, which" if strangers else "is a file that"
        raise UserError(f"{out}: {what} the demo did not write: choose another --out")
    unfinished = [
        name
        for name, recipe in recipes.items()
        if (found := list_checkpoints(Run(out / name).checkpoints))
        and int(found[-1].name.removeprefix("step-")) < recipe.training.steps
    ]
    if unfinished:
        raise UserError(
            f"{out}: an unfinished demo is here ({unfinished[0]}): add --resume to go on with it, "
            "or choose another --out"
        )
    shutil.rmtree(out)
