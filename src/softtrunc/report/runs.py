"""Reading a run folder: what a training and an evaluation left behind, in plain frozen values.

Nothing here needs torch, and every file but one may be missing: a run that is still training, or
was killed, is read as far as it goes and says itself what it lacks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

__all__ = [
    "Evaluation",
    "Measurement",
    "MetricsLine",
    "RunSummary",
    "TimeBins",
    "TrainingCost",
    "Truncation",
    "read_run",
    "run_labels",
]

_T = TypeVar("_T")
_PARTS = ("recipe.yaml", "metrics.jsonl", "evaluation.json")


@dataclass(frozen=True)
class TimeBins:
    """Means over the training examples whose `log10 t` lies between neighbouring edges.

    `edges` has one entry more than the others; a mean is None where no example fell.
    """

    edges: tuple[float, ...]
    loss: tuple[float | None, ...]
    error: tuple[float | None, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class MetricsLine:
    """One line of `metrics.jsonl`; None where a value is absent or not finite.

    `loss` is the mean since the line before, `taus` are the truncation times of those steps,
    `seconds` the training time so far.
    """

    step: int
    loss: float | None
    taus: tuple[float, ...]
    images_per_second: float | None
    seconds: float | None
    by_log10_t: TimeBins | None


@dataclass(frozen=True)
class Measurement:
    """One figure of `evaluation.json` with its whole protocol.

    `nfe_mean` and `nfe_max` count network evaluations; `better` is "lower", "higher" or None.
    """

    key: str
    name: str
    value: float
    standard_error: float | None
    unit: str
    better: str | None
    seconds: float | None
    nfe_mean: float | None
    nfe_max: float | None
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingCost:
    """What the training took; seconds are wall-clock, the rate is in images per second."""

    seconds: float | None
    images_per_second: float | None
    parameters: int | None
    steps: int | None
    batch_size: int | None


@dataclass(frozen=True)
class Evaluation:
    """Everything in `evaluation.json`."""

    step: int | None
    weights: str
    created: str
    versions: Mapping[str, Any]
    data: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    training: TrainingCost


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
class RunSummary:
    """What is in a run folder.

    Attributes:
        name: the folder's name.
        path: the folder.
        recipe: the resolved recipe, empty if there is none; never holds `provenance`.
        provenance: versions and data the run was trained with, empty if not recorded.
        metrics: the readable lines of `metrics.jsonl`, steps strictly increasing.
        skipped_lines: how many lines of `metrics.jsonl` could not be read.
        evaluation: the figures, None before the first evaluation.
        progress: sample grids drawn while training, in the order of their steps.
        final_samples: the grid drawn by the evaluation.
        real_samples: real images in the same layout.
        missing: one sentence for each part that the folder does not hold.
    """

    name: str
    path: Path
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    metrics: tuple[MetricsLine, ...]
    skipped_lines: int
    evaluation: Evaluation | None
    progress: tuple[Path, ...]
    final_samples: Path | None
    real_samples: Path | None
    missing: tuple[str, ...]

    def setting(self, section: str, key: str) -> Any:
        """The recipe's `section.key`, None if it is not there."""
        return _mapping(self.recipe.get(section)).get(key)

    @property
    def truncation(self) -> Truncation | None:
        """The law of tau that the recipe asks for, None if it does not say."""
        k, eps = (_number(self.setting("truncation", key), finite=False) for key in ("k", "eps"))
        tau_max = _number(self.setting("truncation", "tau_max"))
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
        known = (
            TrainingCost(None, None, None, None, None)
            if self.evaluation is None
            else self.evaluation.training
        )
        seconds = [line.seconds for line in self.metrics if line.seconds is not None]
        rates = sorted(
            line.images_per_second for line in self.metrics if line.images_per_second is not None
        )
        batch = _number(self.setting("training", "batch_size"))
        return TrainingCost(
            seconds=_first(known.seconds, seconds[-1] if seconds else None),
            images_per_second=_first(
                known.images_per_second, rates[len(rates) // 2] if rates else None
            ),
            parameters=known.parameters,
            steps=_first(known.steps, self.last_step),
            batch_size=_first(known.batch_size, None if batch is None else int(batch)),
        )

    def measurement(self, key: str, name: str | None = None) -> Measurement | None:
        """The figure under `key` (and `name`, where one key has several), None if not measured."""
        for found in () if self.evaluation is None else self.evaluation.measurements:
            if found.key == key and name in (None, found.name):
                return found
        return None


def read_run(path: Path | str) -> RunSummary:
    """Read a run folder, as far as it goes.

    Lines of `metrics.jsonl` that cannot be read (a killed run cuts its last one short) are skipped
    and counted; where a resumed run wrote steps a second time, the later lines count.

    Raises:
        ValueError: if `path` is no run folder, or its recipe or evaluation is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the folder of a run, e.g. runs/demo")
    if not any((path / part).is_file() for part in _PARTS):
        raise ValueError(
            f"{path}: not a run folder (none of {', '.join(_PARTS)} in it); "
            "give a folder written by `softtrunc train`"
        )
    recipe = _read_recipe(path / "recipe.yaml")
    provenance = _mapping(recipe.pop("provenance", None))
    metrics, skipped = _read_metrics(path / "metrics.jsonl")
    evaluation = _read_evaluation(path / "evaluation.json")
    samples = path / "samples"
    progress = tuple(sorted(samples.glob("step-*.png"), key=_step_of))
    final, real = (file if file.is_file() else None for file in _grids(samples))

    missing: list[str] = []
    if not recipe:
        missing.append("no recipe.yaml, so its settings are unknown")
    if not metrics:
        missing.append("no readable line in metrics.jsonl, so it is not in the training curves")
    if evaluation is None:
        missing.append(
            "no evaluation.json yet, so it has no figures (softtrunc evaluate measures them)"
        )
    if final is None and progress:
        missing.append("no final samples yet; the last grid drawn while training is shown")
    elif final is None:
        missing.append("no sample grids yet")
    return RunSummary(
        name=path.resolve().name,
        path=path,
        recipe=recipe,
        provenance=provenance,
        metrics=metrics,
        skipped_lines=skipped,
        evaluation=evaluation,
        progress=progress,
        final_samples=final,
        real_samples=real,
        missing=tuple(missing),
    )


def run_labels(runs: Sequence[RunSummary]) -> list[str]:
    """One name per run, all different: as many trailing parts of the path as that takes."""
    parts = [run.path.resolve().parts for run in runs]
    depth = 1
    longest = max((len(p) for p in parts), default=1)
    while depth < longest and len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _grids(samples: Path) -> tuple[Path, Path]:
    return samples / "final.png", samples / "data.png"


def _step_of(path: Path) -> tuple[int, str]:
    digits = path.stem.removeprefix("step-")
    return (int(digits) if digits.isdecimal() else 0, path.name)


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        recipe = None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: not a YAML mapping; restore the file that the training wrote")
    return {str(key): value for key, value in recipe.items()}


def _read_metrics(path: Path) -> tuple[tuple[MetricsLine, ...], int]:
    if not path.is_file():
        return (), 0
    lines: list[MetricsLine] = []
    skipped = 0
    with path.open("rb") as file:
        for raw in file:
            if not raw.strip():
                continue
            line = _metrics_line(raw)
            if line is None:
                skipped += 1
                continue
            while lines and lines[-1].step >= line.step:
                lines.pop()
            lines.append(line)
    return tuple(lines), skipped


def _metrics_line(raw: bytes) -> MetricsLine | None:
    try:
        values = _mapping(json.loads(raw))
    except (ValueError, RecursionError):
        return None
    step = _number(values.get("step"))
    if step is None:
        return None
    taus = (_number(tau) for tau in _sequence(values.get("taus")) or [values.get("tau")])
    return MetricsLine(
        step=int(step),
        loss=_number(values.get("loss")),
        taus=tuple(tau for tau in taus if tau is not None and tau > 0.0),
        images_per_second=_number(values.get("images_per_second")),
        seconds=_number(values.get("seconds")),
        by_log10_t=_time_bins(_mapping(values.get("by_log10_t"))),
    )


def _time_bins(values: Mapping[str, Any]) -> TimeBins | None:
    edges = [e for e in map(_number, _sequence(values.get("edges"))) if e is not None]
    loss, error, count = (
        tuple(map(_number, _sequence(values.get(key)))) for key in ("loss", "error", "count")
    )
    if not edges or any(len(row) != len(edges) - 1 for row in (loss, error, count)):
        return None
    return TimeBins(tuple(edges), loss, error, tuple(int(n or 0) for n in count))


def _read_evaluation(path: Path) -> Evaluation | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object; run `softtrunc evaluate` again")
    measured = (_measurement(_mapping(figure)) for figure in _sequence(values.get("figures")))
    training = _mapping(values.get("training"))
    return Evaluation(
        step=_whole(values.get("step")),
        weights=str(values.get("weights") or "unknown"),
        created=str(values.get("created") or ""),
        versions=_mapping(values.get("versions")),
        data=_mapping(values.get("data")),
        measurements=tuple(m for m in measured if m is not None),
        training=TrainingCost(
            seconds=_number(training.get("seconds")),
            images_per_second=_number(training.get("images_per_second")),
            parameters=_whole(training.get("parameters")),
            steps=_whole(training.get("steps")),
            batch_size=_whole(training.get("batch_size")),
        ),
    )


def _measurement(figure: Mapping[str, Any]) -> Measurement | None:
    value = _number(figure.get("value"))
    if value is None or not figure.get("key"):
        return None
    nfe, better = _mapping(figure.get("nfe")), figure.get("better")
    return Measurement(
        key=str(figure["key"]),
        name=str(figure.get("name") or figure["key"]),
        value=value,
        standard_error=_number(figure.get("standard_error")),
        unit=str(figure.get("unit") or ""),
        better=str(better) if better in ("lower", "higher") else None,
        seconds=_number(figure.get("seconds")),
        nfe_mean=_number(nfe.get("mean")),
        nfe_max=_number(nfe.get("max")),
        protocol=_mapping(figure.get("protocol")),
    )


def _mapping(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object, *, finite: bool = True) -> float | None:
    # YAML 1.1 reads 1e-5 (no point) as text, so text that is a number counts as one.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if math.isnan(number) or (finite and math.isinf(number)):
        return None
    return number


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _first(value: _T | None, other: _T | None) -> _T | None:
    return other if value is None else value
