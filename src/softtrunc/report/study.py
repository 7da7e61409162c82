"""A study: runs over combinations of settings and seeds, as means and paired differences.

Seeds are paired: with one seed, all settings start from the same weights and see the same batches
and noise, so a difference is taken seed by seed before it is averaged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.report import figures
from softtrunc.report.figures import Picture, Point
from softtrunc.report.runs import Measurement, RunSummary
from softtrunc.report.summary import (
    Cell,
    figure_names,
    format_value,
    protocol_differences,
)

__all__ = [
    "Difference",
    "Estimate",
    "Setting",
    "StudyColumn",
    "StudyRow",
    "StudySummary",
    "paired_difference",
    "study_summary",
    "trade_off_picture",
]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Setting:
    """One combination of what is varied.

    - `label`: what a person reads; no two settings share one.
    - `values`: the varied keys and their values, as a person writes them.
    - `runs`: by seed; those that failed are missing.
    - `baseline`: label of the setting it is compared with; None: it is one itself.
    """

    label: str
    values: Mapping[str, str]
    runs: Mapping[int, RunSummary]
    baseline: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure over the seeds; the standard error is that of the mean, None with one seed."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def standard_error(self) -> float | None:
        """Standard deviation over seeds / sqrt(number of seeds)."""
        n = len(self.by_seed)
        return statistics.stdev(self.by_seed.values()) / math.sqrt(n) if n > 1 else None


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of (setting - baseline), with its 95 % confidence interval.

    `low`, `high` and `p` (two-sided) are those of the paired t-test, None with one seed.
    """

    mean: float
    n: int
    low: float | None
    high: float | None
    p: float | None

    @property
    def interval(self) -> str:
        """ "-0.20 ... -0.04", nothing with one seed."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:+.3g} ... {self.high:+.3g}"

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class StudyColumn:
    """A figure of the table; `better` is "lower" or "higher", None where protocols differ."""

    key: str
    name: str | None
    title: str
    unit: str
    better: str | None


@dataclass(frozen=True)
class StudyRow:
    """A setting under every column; None where nothing was measured or compared."""

    setting: Setting
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class StudySummary:
    """The table of a study; `cautions` say what cannot be compared, and why."""

    columns: tuple[StudyColumn, ...]
    rows: tuple[StudyRow, ...]
    cautions: tuple[str, ...]

    def best(self, column: int) -> int | None:
        """The row with the best mean of a column, None where none can be named."""
        better = self.columns[column].better
        means = {
            i: found.mean
            for i, row in enumerate(self.rows)
            if (found := row.estimates[column]) is not None
        }
        if better is None or len(means) < 2:
            return None
        return (min if better == "lower" else max)(means, key=lambda i: means[i])

    def mean_rows(self) -> list[list[Cell]]:
        """Headings, then per setting its label, number of seeds and means; the best is marked."""
        titles = [
            c.title + (f", {c.unit}" if c.unit and c.unit not in c.title else "")
            for c in self.columns
        ]
        best = [self.best(i) for i in range(len(self.columns))]
        rows = [[Cell("setting"), Cell("seeds"), *map(Cell, titles)]]
        for number, row in enumerate(self.rows):
            cells = [
                Cell("—")
                if found is None
                else Cell(
                    format_value(found.mean, found.standard_error),
                    found.mean,
                    found.standard_error,
                    best=best[i] == number,
                )
                for i, found in enumerate(row.estimates)
            ]
            rows.append([Cell(row.setting.label), Cell(str(len(row.setting.runs))), *cells])
        return rows

    def change_rows(self) -> list[list[Cell]]:
        """Headings, then a row for each figure of each setting that has a baseline.

        A setting's name stands in its first row alone; changes whose interval leaves out zero are
        marked.
        """
        headings = ("setting", "against", "figure", "change", "95 % interval", "p")
        rows = [[Cell(text) for text in headings]]
        for row in self.rows:
            names = [Cell(row.setting.label), Cell(row.setting.baseline or "")]
            for column, found in zip(self.columns, row.differences, strict=True):
                if found is not None:
                    sure = found.significant
                    rows.append(
                        [
                            *names,
                            Cell(column.title),
                            Cell(f"{found.mean:+.3g}", found.mean, best=sure),
                            Cell(found.interval, best=sure),
                            Cell("" if found.p is None else f"{found.p:.2g}", found.p, best=sure),
                        ]
                    )
                    names = [Cell(""), Cell("")]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "confidence": _CONFIDENCE,
            "cautions": list(self.cautions),
            "settings": [
                {
                    "label": row.setting.label,
                    "values": dict(row.setting.values),
                    "baseline": row.setting.baseline,
                    "runs": {seed: run.name for seed, run in row.setting.runs.items()},
                    "figures": [
                        _figure_dict(column, estimate, difference)
                        for column, estimate, difference in zip(
                            self.columns, row.estimates, row.differences, strict=True
                        )
                        if estimate is not None
                    ],
                }
                for row in self.rows
            ],
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """One flat record per setting, seed and figure, for CSV."""
        for row in self.rows:
            for column, estimate in zip(self.columns, row.estimates, strict=True):
                for seed, value in (estimate.by_seed if estimate else {}).items():
                    yield {
                        "setting": row.setting.label,
                        **row.setting.values,
                        "seed": seed,
                        "figure": column.key,
                        "name": column.title,
                        "value": value,
                    }


def paired_difference(ours: Estimate, baseline: Estimate) -> Difference | None:
    """Mean of the differences over the seeds that both have; None if there is none."""
    seeds = [seed for seed in ours.by_seed if seed in baseline.by_seed]
    if not seeds:
        return None
    values = [ours.by_seed[seed] - baseline.by_seed[seed] for seed in seeds]
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Difference(mean, n, None, None, None)
    from scipy import stats  # scikit-learn stands on it

    error = statistics.stdev(values) / math.sqrt(n)
    reach = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0.0 else float(mean == 0.0)
    return Difference(mean, n, mean - reach, mean + reach, p)


def study_summary(settings: Sequence[Setting]) -> StudySummary:
    """Gather the figures of all settings.

    Args:
        settings: in the order of the table; the baseline of each is among them.
    """
    runs = [run for setting in settings for run in setting.runs.values()]
    columns, cautions = [], []
    for key, name in figure_names(runs):
        found = next(m for run in runs if (m := run.measurement(key, name)) is not None)
        title = DENSITY_FIGURES.get(key) or name or key
        differing = protocol_differences(runs, key, name)
        if differing:
            cautions.append(
                f"“{title}” was not measured in the same way for all runs (differs in: "
                f"{', '.join(differing)}), so no best value is marked."
            )
        better = None if differing else found.better
        columns.append(StudyColumn(key, name, title, found.unit, better))
    estimates = {s.label: [_estimate(s, c.key, c.name) for c in columns] for s in settings}
    rows = []
    for setting in settings:
        ours = estimates[setting.label]
        theirs = estimates[setting.baseline] if setting.baseline else [None] * len(columns)
        differences = [
            paired_difference(a, b) if a is not None and b is not None else None
            for a, b in zip(ours, theirs, strict=True)
        ]
        rows.append(StudyRow(setting, tuple(ours), tuple(differences)))
    return StudySummary(tuple(columns), tuple(rows), tuple(cautions))


def trade_off_picture(summary: StudySummary, encoding: figures.Encoding = "svg") -> Picture | None:
    """Density against sample quality, one point per setting with its standard errors.

    Returns:
        None unless some setting has a density and a distance.
    """
    density = next((i for i, c in enumerate(summary.columns) if c.key in DENSITY_FIGURES), None)
    distance = next(
        (
            i
            for i, c in enumerate(summary.columns)
            if c.key not in DENSITY_FIGURES and c.better == "lower"
        ),
        None,
    )
    if density is None or distance is None:
        return None
    points = [
        Point(
            figures.run_style(i),
            row.setting.label,
            x.mean,
            y.mean,
            x.standard_error,
            y.standard_error,
        )
        for i, row in enumerate(summary.rows)
        if (x := row.estimates[density]) is not None and (y := row.estimates[distance]) is not None
    ]
    if not points:
        return None
    x_column, y_column = summary.columns[density], summary.columns[distance]
    x_label = x_column.title if "bits" in x_column.title else f"{x_column.title}, {x_column.unit}"
    return figures.trade_off(points, x_label, y_column.title, encoding=encoding)


def _estimate(setting: Setting, key: str, name: str | None) -> Estimate | None:
    found: dict[int, Measurement | None] = {
        seed: run.measurement(key, name) for seed, run in setting.runs.items()
    }
    values = {seed: m.value for seed, m in found.items() if m is not None}
    return Estimate(values) if values else None


def _figure_dict(
    column: StudyColumn, estimate: Estimate, difference: Difference | None
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "key": column.key,
        "name": column.title,
        "unit": column.unit,
        "better": column.better,
        "mean": estimate.mean,
        "standard_error": estimate.standard_error,
        "by_seed": dict(estimate.by_seed),
        "text": format_value(estimate.mean, estimate.standard_error),
    }
    if difference is not None:
        content["difference"] = {
            "mean": difference.mean,
            "seeds": difference.n,
            "low": difference.low,
            "high": difference.high,
            "p": difference.p,
        }
    return content
