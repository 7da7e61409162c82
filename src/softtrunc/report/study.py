"""A study: runs over combinations of settings and seeds, as means and paired differences.

Seeds are paired: with one seed, all settings start from the same weights and see the same batches
and noise, so a difference is taken seed by seed before it is averaged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.report.plots_base import Encoding, Picture, run_style
from softtrunc.report.plots_scatter import Point, trade_off
from softtrunc.report.runs import RunRecord
from softtrunc.report.summary import Cell, Column, figure_columns, format_value

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
    runs: Mapping[int, RunRecord]
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
    """Mean over the seeds of (setting - baseline), with its 95 % confidence interval.

    `low`, `high` and `p` (two-sided) are those of the paired t-test, None with one seed.
    """

    mean: float
    seeds: int
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class StudyRow:
    """A setting under every column; None where nothing was measured or compared."""

    setting: Setting
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class StudySummary:
    """The table of a study; `cautions` say what cannot be compared, and why."""

    columns: tuple[Column, ...]
    rows: tuple[StudyRow, ...]
    cautions: tuple[str, ...]

    def best(self, column: int) -> int | None:
        """The row with the best mean of a column, None where chance may have made it.

        Its paired difference from every other row must be significant.
        """
        better = self.columns[column].better
        found = {
            i: estimate
            for i, row in enumerate(self.rows)
            if (estimate := row.estimates[column]) is not None
        }
        if better is None or len(found) < 2:
            return None
        best = (min if better == "lower" else max)(found, key=lambda i: found[i].mean)
        pairs = (paired_difference(found[best], found[i]) for i in found if i != best)
        return best if all(pair is not None and pair.significant for pair in pairs) else None

    def mean_rows(self) -> list[list[Cell]]:
        """Headings, then per setting its label, number of seeds and means; the best is marked."""
        best = [self.best(i) for i in range(len(self.columns))]
        rows = [[Cell("setting"), Cell("seeds"), *(Cell(c.heading) for c in self.columns)]]
        for number, row in enumerate(self.rows):
            cells = [Cell(row.setting.label), Cell(str(len(row.setting.runs)))]
            for i, found in enumerate(row.estimates):
                if found is None:
                    cells.append(Cell("—"))
                else:
                    mean, error = found.mean, found.standard_error
                    cells.append(Cell(format_value(mean, error), mean, error, best[i] == number))
            rows.append(cells)
        return rows

    def change_rows(self) -> list[list[Cell]]:
        """Headings, then a row for each figure of each setting that has a baseline.

        Below a setting's first row its names are repetitions. Changes whose interval leaves out
        zero are marked.
        """
        headings = ("setting", "against", "figure", "change", "95 % interval", "p")
        rows = [[Cell(text) for text in headings]]
        for row in self.rows:
            names = [Cell(row.setting.label), Cell(row.setting.baseline or "")]
            for column, found in zip(self.columns, row.differences, strict=True):
                if found is None:
                    continue
                alone = found.low is None
                cells = (
                    (f"{found.mean:+.3g}", found.mean),
                    ("" if alone else f"{found.low:+.3g} ... {found.high:+.3g}", None),
                    ("" if alone else f"{found.p:.2g}", found.p),
                )
                marked = [Cell(text, value, best=found.significant) for text, value in cells]
                rows.append([*names, Cell(column.title), *marked])
                names = [replace(name, repeated=True) for name in names]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        settings = []
        for row in self.rows:
            each = row.setting
            figures = zip(self.columns, row.estimates, row.differences, strict=True)
            settings.append(
                {
                    "label": each.label,
                    "values": dict(each.values),
                    "baseline": each.baseline,
                    "runs": {seed: run.name for seed, run in each.runs.items()},
                    "figures": [_figure_dict(c, e, d) for c, e, d in figures if e is not None],
                }
            )
        cautions = list(self.cautions)
        return {"confidence": _CONFIDENCE, "cautions": cautions, "settings": settings}

    def records(self) -> Iterator[dict[str, Any]]:
        """One flat record per setting, seed and figure, for CSV."""
        for row in self.rows:
            for column, estimate in zip(self.columns, row.estimates, strict=True):
                for seed, value in (estimate.by_seed if estimate else {}).items():
                    varied = {"setting": row.setting.label, **row.setting.values, "seed": seed}
                    yield varied | {"figure": column.key, "name": column.title, "value": value}


def paired_difference(ours: Estimate, baseline: Estimate) -> Difference | None:
    """Mean of the differences over the seeds that both have; None if there is none."""
    seeds = [seed for seed in ours.by_seed if seed in baseline.by_seed]
    if not seeds:
        return None
    values = [ours.by_seed[seed] - baseline.by_seed[seed] for seed in seeds]
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Difference(mean, n)
    if len(set(values)) == 1:  # no spread, which the test would divide by
        return Difference(mean, n, mean, mean, float(mean == 0.0))
    from scipy import stats

    pair = ([estimate.by_seed[seed] for seed in seeds] for estimate in (ours, baseline))
    test = stats.ttest_rel(*pair)
    low, high = test.confidence_interval(_CONFIDENCE)
    return Difference(mean, n, float(low), float(high), float(test.pvalue))


def study_summary(settings: Sequence[Setting]) -> StudySummary:
    """Gather the figures of all settings.

    Args:
        settings: in the order of the table; the baseline of each is among them.
    """
    columns, cautions = figure_columns([run for s in settings for run in s.runs.values()])
    estimates = {s.label: [_estimate(s, column) for column in columns] for s in settings}
    rows = []
    for setting in settings:
        ours = estimates[setting.label]
        theirs = estimates[setting.baseline] if setting.baseline else [None] * len(columns)
        pairs = zip(ours, theirs, strict=True)
        differences = (paired_difference(a, b) if a and b else None for a, b in pairs)
        rows.append(StudyRow(setting, tuple(ours), tuple(differences)))
    return StudySummary(tuple(columns), tuple(rows), tuple(cautions))


def trade_off_picture(summary: StudySummary, encoding: Encoding = "svg") -> Picture | None:
    """Density against sample quality, one point per setting with its standard errors.

    Returns:
        None unless some setting has a density and a distance.
    """
    columns = list(enumerate(summary.columns))
    density = [i for i, c in columns if c.key in DENSITY_FIGURES]
    distance = [i for i, c in columns if c.key not in DENSITY_FIGURES and c.better == "lower"]
    if not density or not distance:
        return None
    points = [
        Point(run_style(i), row.setting.label, x.mean, y.mean, x.standard_error, y.standard_error)
        for i, row in enumerate(summary.rows)
        if (x := row.estimates[density[0]]) and (y := row.estimates[distance[0]])
    ]
    labels = summary.columns[density[0]].heading, summary.columns[distance[0]].title
    return trade_off(points, *labels, encoding=encoding) if points else None


def _estimate(setting: Setting, column: Column) -> Estimate | None:
    figures = {seed: run.figure(column.key, column.name) for seed, run in setting.runs.items()}
    values = {seed: figure.value for seed, figure in figures.items() if figure is not None}
    return Estimate(values) if values else None


def _figure_dict(
    column: Column, estimate: Estimate, difference: Difference | None
) -> dict[str, Any]:
    mean, error = estimate.mean, estimate.standard_error
    return {
        "key": column.key,
        "name": column.title,
        "unit": column.unit,
        "better": column.better,
        "mean": mean,
        "standard_error": error,
        "by_seed": dict(estimate.by_seed),
        "text": format_value(mean, error),
        **({} if difference is None else {"difference": asdict(difference)}),
    }
