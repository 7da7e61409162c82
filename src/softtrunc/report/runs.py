"""A run as a report reads it: as far as it goes, and it says itself what it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from softtrunc import records
from softtrunc.records import Evaluation, Figure, MetricsLine, TrainingCost

_PARTS = ("recipe.yaml", "metrics.jsonl", "evaluation.json")


@dataclass(frozen=True)
class Truncation:
    """The law of the truncation time: density proportional to `tau^-k` on [eps, tau_max].

    `k` is infinite for hard truncation, all mass at eps.
    """

    k: float
    eps: float
    tau_max: float

    @property
    def hard(self) -> bool:
        """Whether every step is truncated at eps."""
        return math.isinf(self.k)


@dataclass(frozen=True)
class RunRecord:
    """What is in a run folder.

    Attributes:
        name: the folder's name.
        path: the folder.
        recipe: the resolved recipe, empty if there is none.
        provenance: versions and data the run was trained with, empty if not recorded.
        metrics: the readable lines of `metrics.jsonl`, steps strictly increasing.
        skipped_lines: how many lines of `metrics.jsonl` could not be read.
        evaluation: the figures, None before the first evaluation.
        earlier: figures of other checkpoints or weights, in the order of their steps.
        progress: sample grids drawn while training, in the order of their steps.
        final_samples: the grid drawn by the evaluation.
        real_samples: real images in the same layout.
    """

    name: str
    path: Path
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    metrics: tuple[MetricsLine, ...]
    skipped_lines: int
    evaluation: Evaluation | None
    earlier: tuple[Evaluation, ...]
    progress: tuple[Path, ...]
    final_samples: Path | None
    real_samples: Path | None

    @property
    def missing(self) -> tuple[str, ...]:
        """One sentence for each part that the folder does not hold."""
        grids = "no sample grids yet"
        if self.progress:
            grids = "no final samples yet; the last grid drawn while training is shown"
        curves = "no readable line in metrics.jsonl, so it is not in the training curves"
        figures = "no evaluation.json yet, so it has no figures (softtrunc evaluate measures them)"
        lacks = (
            ("no recipe.yaml, so its settings are unknown", not self.recipe),
            (curves, not self.metrics),
            (figures, self.evaluation is None),
            (grids, self.final_samples is None),
        )
        return tuple(sentence for sentence, lacking in lacks if lacking)

    def setting(self, section: str, key: str) -> Any:
        """The recipe's `section.key`, None if it is not there."""
        found = self.recipe.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    def number(self, section: str, key: str) -> float | None:
        """The recipe's `section.key` if it is a number."""
        found = self.setting(section, key)
        return float(found) if type(found) in (int, float) and not math.isnan(found) else None

    @property
    def data(self) -> Mapping[str, Any]:
        """What the training data were, empty if not recorded."""
        found = self.provenance.get("data")
        return found if isinstance(found, Mapping) else {}

    @property
    def truncation(self) -> Truncation | None:
        """The law of tau that the recipe asks for, None if it names no power of tau."""
        k, eps, tau_max = (self.number("truncation", key) for key in ("k", "eps", "tau_max"))
        if k is None or eps is None or not 0.0 < eps < 1.0:
            return None
        return Truncation(k, eps, tau_max if tau_max is not None and eps < tau_max <= 1.0 else 1.0)

    @property
    def last_step(self) -> int | None:
        """The last step that the run is known to have reached."""
        if self.metrics:
            return self.metrics[-1].step
        if self.evaluation is not None:
            return self.evaluation.training.steps or self.evaluation.step
        return None

    @property
    def cost(self) -> TrainingCost:
        """What the training took: as evaluated, otherwise as far as the metrics tell."""
        seconds = [line.seconds for line in self.metrics if line.seconds is not None]
        batch = self.number("training", "batch_size")
        seen = TrainingCost(
            seconds=seconds[-1] if seconds else None,
            images_per_second=records.median_rate(self.metrics),
            steps=self.last_step,
            batch_size=None if batch is None else int(batch),
        )
        known = {} if self.evaluation is None else asdict(self.evaluation.training)
        return replace(seen, **{key: value for key, value in known.items() if value is not None})

    def over_steps(self, key: str, name: str) -> list[tuple[int, float]]:
        """A figure of averaged weights by the step of the checkpoint, in the order of steps."""
        every = (*self.earlier, *([] if self.evaluation is None else [self.evaluation]))
        known = {
            found.step: figure.value
            for found in every
            if found.step is not None and found.weights == "ema"
            for figure in found.figures
            if (figure.key, figure.name) == (key, name)
        }
        return sorted(known.items())

    def figure(self, key: str, name: str | None = None) -> Figure | None:
        """The figure under `key` (and `name`, where one key has several), None if not measured.

        Of several, measured by other protocols, the last.
        """
        for found in () if self.evaluation is None else reversed(self.evaluation.figures):
            if found.key == key and name in (None, found.name):
                return found
        return None


def read_run(path: Path | str) -> RunRecord:
    """Read a run folder, as far as it goes.

    Raises:
        ValueError: if `path` is no run folder, or its recipe or evaluation is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the folder of a run, e.g. runs/demo")
    recipe, metrics, evaluation = (path / part for part in _PARTS)
    if not any(part.is_file() for part in (recipe, metrics, evaluation)):
        raise ValueError(
            f"{path}: not a run folder (none of {', '.join(_PARTS)} in it); "
            "give a folder written by `softtrunc train`"
        )
    record = records.RecipeRecord({}, {})
    if recipe.is_file():
        record = records.read_recipe(recipe)
    found = records.read_metrics(metrics)
    samples = path / "samples"
    grids = (samples / "final.png", samples / "data.png")
    final, real = (grid if grid.is_file() else None for grid in grids)
    return RunRecord(
        name=path.resolve().name,
        path=path,
        recipe=record.settings,
        provenance=record.provenance,
        metrics=found.lines,
        skipped_lines=len(found.damaged),
        evaluation=records.read_evaluation(evaluation),
        earlier=tuple(_earlier(path / "evaluations")),
        progress=tuple(sorted(samples.glob("step-*.png"), key=lambda grid: grid_step(grid) or 0)),
        final_samples=final,
        real_samples=real,
    )


def _earlier(folder: Path) -> list[Evaluation]:
    found = (records.read_evaluation(file) for file in sorted(folder.glob("step-*.json")))
    return [evaluation for evaluation in found if evaluation is not None]


def grid_step(path: Path) -> int | None:
    """The step at which a grid of samples was drawn, None if its name does not say."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else None


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """One name per run, all different: as many trailing parts of the path as that takes."""
    parts = [run.path.resolve().parts for run in runs]
    depth = 1
    longest = max((len(p) for p in parts), default=1)
    while depth < longest and len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]
