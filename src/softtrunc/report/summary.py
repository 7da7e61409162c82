"""The summary table: one row per run, one column per figure. For the page and for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.report.runs import Measurement, RunSummary, run_labels

__all__ = [
    "Cell",
    "Column",
    "SummaryTable",
    "figure_names",
    "format_setting",
    "format_truncation",
    "format_value",
    "protocol_differences",
    "summary_rows",
]


@dataclass(frozen=True)
class Column:
    """A column; `better` is "lower" or "higher" where a value can be the best one."""

    key: str
    title: str
    unit: str = ""
    better: str | None = None

    @property
    def numeric(self) -> bool:
        """Whether the cells hold numbers."""
        return self.key not in ("run", "weighting", "truncation")


@dataclass(frozen=True)
class Cell:
    """What to print, and for numbers the exact value behind it; `best` in its column."""

    text: str
    value: float | None = None
    standard_error: float | None = None
    best: bool = False


@dataclass(frozen=True)
class SummaryTable:
    """`rows[i][j]` is run i under `columns[j]`; `cautions` say what cannot be compared, and why."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    cautions: tuple[str, ...]


def summary_rows(runs: Sequence[RunSummary]) -> SummaryTable:
    """The table of the report: settings, figures, training time, network evaluations.

    Figures that no run has make no column. The best value of a column is marked only where two or
    more runs were measured under the same protocol; otherwise a caution says what differs.
    """
    columns = [Column("run", "run"), Column("weighting", "weighting")]
    columns.append(Column("truncation", "truncation"))
    eps = {run.truncation.eps for run in runs if run.truncation is not None}
    rows: list[list[Cell]] = [
        [
            Cell(label),
            Cell(str(run.setting("objective", "weighting") or "—")),
            Cell(format_truncation(run, show_eps=len(eps) > 1)),
        ]
        for run, label in zip(runs, run_labels(runs), strict=True)
    ]

    def add(column: Column, cells: Iterable[Cell]) -> None:
        cells = list(cells)
        if any(cell.value is not None for cell in cells):
            columns.append(column)
            for row, cell in zip(rows, _mark_best(cells, column.better), strict=True):
                row.append(cell)

    cautions = []
    for key, name in figure_names(runs):
        found = [run.measurement(key, name) for run in runs]
        first = next(m for m in found if m is not None)
        title = DENSITY_FIGURES.get(key) or name or key
        differing = protocol_differences(runs, key, name)
        if differing:
            cautions.append(
                f"“{title}” was not measured in the same way for all runs (differs in: "
                f"{', '.join(differing)}), so no best value is marked."
            )
        better = None if differing else first.better
        add(Column(key, title, first.unit, better), map(_measured, found))
    # A run that stopped earlier is not the faster one.
    faster = "lower" if len({run.cost.steps for run in runs}) == 1 else None
    add(
        Column("training_seconds", "training", "s", faster),
        (_number(run.cost.seconds) for run in runs),
    )
    add(
        Column("nfe_nll", "NFE, NLL", "", "lower"),
        (_nfe(run, ("nll_residual", "nll")) for run in runs),
    )
    drawn = list(dict.fromkeys(key for key, _ in figure_names(runs) if key not in DENSITY_FIGURES))
    add(
        Column("nfe_sampling", "NFE, sampling", "", "lower"),
        (_nfe(run, drawn) for run in runs),
    )
    return SummaryTable(tuple(columns), tuple(map(tuple, rows)), tuple(cautions))


def figure_names(runs: Sequence[RunSummary]) -> list[tuple[str, str | None]]:
    """The figures measured on any run, as (key, name): densities first, then the distances.

    A density figure is one column whatever its name; a distance is only ever compared with
    distances of the same name, since the features are part of it.
    """
    measured = [m for run in runs if run.evaluation for m in run.evaluation.measurements]
    keys = {m.key for m in measured}
    names: list[tuple[str, str | None]] = [(key, None) for key in DENSITY_FIGURES if key in keys]
    names += dict.fromkeys((m.key, m.name) for m in measured if m.key not in DENSITY_FIGURES)
    return names


def protocol_differences(runs: Sequence[RunSummary], key: str, name: str | None) -> list[str]:
    """The entries of a figure's protocol (and of its data) that are not the same for all runs.

    Seeds are left out, and the range that the model's data are mapped to: figures that differ in
    these alone are comparable. So are lossless figures from different times: each is the length of
    a code for the same levels, and the time is part of the code.
    """
    seen: dict[str, set[str]] = {}
    protocols = [
        {"data": run.evaluation.data.get("fingerprint"), **found.protocol}
        for run in runs
        if run.evaluation is not None and (found := run.measurement(key, name)) is not None
    ]
    for entry in dict.fromkeys(entry for protocol in protocols for entry in protocol):
        for protocol in protocols:
            value = json.dumps(protocol.get(entry), sort_keys=True, default=str)
            seen.setdefault(entry, set()).add(value)
    harmless = ("seed", "value_range", *(("eps",) if key.endswith("_lossless") else ()))
    return [e for e, values in seen.items() if len(values) > 1 and not e.startswith(harmless)]


def format_truncation(run: RunSummary, *, show_eps: bool = False) -> str:
    """ "hard" or "soft, k = 1", with eps if asked."""
    law = run.truncation
    if law is None:
        return "—"
    parts = ["hard" if law.hard else f"soft, k = {law.k:g}"]
    if show_eps:
        parts.append(f"eps = {format_setting(law.eps)}")
    if not law.hard and law.tau_max != 1.0:
        parts.append(f"tau up to {format_setting(law.tau_max)}")
    return ", ".join(parts)


def format_value(value: float, standard_error: float | None = None) -> str:
    """`value ± standard_error` to two digits of the error; four significant digits without."""
    if standard_error:
        decimals = min(max(1 - math.floor(math.log10(abs(standard_error))), 0), 5)
        return f"{value:,.{decimals}f} ± {standard_error:,.{decimals}f}"
    size = abs(value)
    if 0.0 < size < 0.01:
        return f"{value:.3g}"
    return f"{value:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def format_setting(value: float) -> str:
    """A setting as one writes it: 128, 0.999, 1e-5, infinity."""
    if math.isinf(value):
        return "infinity"
    if value == 0.0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _measured(found: Measurement | None) -> Cell:
    if found is None:
        return Cell("—")
    return Cell(format_value(found.value, found.standard_error), found.value, found.standard_error)


def _number(value: float | None) -> Cell:
    if value is None:
        return Cell("—")
    whole = value == int(value) or value >= 100
    return Cell(f"{value:,.0f}" if whole else f"{value:.1f}", value)


def _nfe(run: RunSummary, keys: Sequence[str]) -> Cell:
    found = (run.measurement(key) for key in keys)
    return _number(next((m.nfe_mean for m in found if m and m.nfe_mean is not None), None))


def _mark_best(cells: Sequence[Cell], better: str | None) -> list[Cell]:
    values = [cell.value for cell in cells if cell.value is not None]
    if better is None or len(values) < 2 or len(set(values)) == 1:
        return list(cells)
    best = min(values) if better == "lower" else max(values)
    return [replace(cell, best=cell.value == best) for cell in cells]
