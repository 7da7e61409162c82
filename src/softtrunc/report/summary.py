"""The summary table: one row per run, one column per figure. For the page and for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.records import Figure
from softtrunc.report.runs import RunRecord, run_labels

# Of the normal law: 95 % lie within so many standard deviations.
_QUANTILE = 1.96


@dataclass(frozen=True)
class Column:
    """A column; `better` is "lower" or "higher" where a value can be the best one.

    `name` is that of the figure where one key has several.
    """

    key: str
    title: str
    unit: str = ""
    better: str | None = None
    name: str | None = None

    @property
    def numeric(self) -> bool:
        """Whether the cells hold numbers."""
        return self.key not in ("run", "weighting", "truncation")

    @property
    def heading(self) -> str:
        """The title with the unit, where the title does not say it."""
        return f"{self.title}, {self.unit}" if self.unit not in self.title else self.title


@dataclass(frozen=True)
class Cell:
    """What to print, and for numbers the exact value behind it.

    - `best`: the best of its column, and not by chance.
    - `repeated`: stands in the row above as well, where a table need not say it again.
    """

    text: str
    value: float | None = None
    standard_error: float | None = None
    best: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class SummaryTable:
    """`rows[i][j]` is run i under `columns[j]`; `cautions` say what cannot be compared, and why."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    cautions: tuple[str, ...]


def summary_rows(runs: Sequence[RunRecord]) -> SummaryTable:
    """The table of the report: settings, figures, training time, network evaluations.

    Figures that no run has make no column. The best value of a column is marked where its
    difference from every other has a 95 % interval that leaves out zero. Runs measured under other
    protocols are not compared: a caution says what differs.
    """
    several_eps = len({run.truncation.eps for run in runs if run.truncation is not None}) > 1
    figures, cautions = figure_columns(runs)
    columns = {
        Column("run", "run"): [Cell(label) for label in run_labels(runs)],
        Column("weighting", "weighting"): [
            Cell(str(run.setting("objective", "weighting") or "—")) for run in runs
        ],
        Column("truncation", "truncation"): [
            Cell(format_truncation(run, show_eps=several_eps)) for run in runs
        ],
    }
    numbers = {c: [_measured(run.figure(c.key, c.name)) for run in runs] for c in figures}
    training = Column("training_seconds", "training", "s")
    numbers[training] = [_number(run.cost.seconds) for run in runs]
    drawn = [column.key for column in figures if column.key not in DENSITY_FIGURES]
    for key, title, of in (
        ("nfe_nll", "NFE, NLL", ["nll_residual", "nll", "nll_continuous"]),
        ("nfe_sampling", "NFE, sampling", drawn),
    ):
        numbers[Column(key, title)] = [_nfe(run, of) for run in runs]
    for column, cells in numbers.items():
        if any(cell.value is not None for cell in cells):
            columns[column] = _mark_best(cells, column.better)
    rows = tuple(zip(*columns.values(), strict=True))
    return SummaryTable(tuple(columns), rows, tuple(cautions))


def figure_columns(runs: Sequence[RunRecord]) -> tuple[list[Column], list[str]]:
    """A column for each figure measured on any run, densities first, and what to beware of.

    A density figure is one column whatever its name; a distance is only ever compared with
    distances of the same name, since the features are part of it.
    """
    measured = [figure for run in runs if run.evaluation for figure in run.evaluation.figures]
    first = {figure.key: figure for figure in reversed(measured) if figure.key in DENSITY_FIGURES}
    found: dict[tuple[str, str | None], Figure] = {
        (key, None): first[key] for key in DENSITY_FIGURES if key in first
    }
    for figure in measured:
        if figure.key not in DENSITY_FIGURES:
            found.setdefault((figure.key, figure.name), figure)
    columns, cautions = [], []
    for (key, name), figure in found.items():
        title = name or DENSITY_FIGURES[key]
        differing = protocol_differences(runs, key, name)
        if differing:
            cautions.append(
                f"“{title}” was not measured in the same way for all runs (differs in: "
                f"{', '.join(differing)}), so no best value is marked."
            )
        better = None if differing else figure.better
        columns.append(Column(key, title, figure.unit, better, name))
    return columns, cautions


def protocol_differences(runs: Sequence[RunRecord], key: str, name: str | None) -> list[str]:
    """The entries of a figure's protocol that are not the same for all runs; "data" for its images.

    Seeds are left out, and the ranges that data are mapped from and to: figures that differ in
    these alone are comparable. So are lossless figures from different times, and those of
    truncated-normal dequantisation: each is the length of a code for the same levels, and the time
    is part of the code. Images that were not recorded
    differ from none.
    """
    figures = [figure for run in runs if (figure := run.figure(key, name)) is not None]
    images = {figure.data.fingerprint for figure in figures if figure.data is not None}
    of_levels = key.endswith(("_lossless", "_truncated"))
    harmless = ("seed", "value_range", "data_range", *(("eps",) if of_levels else ()))
    differing = ["data"] if len(images) > 1 else []
    for entry in dict.fromkeys(entry for figure in figures for entry in figure.protocol):
        values = (figure.protocol.get(entry) for figure in figures)
        texts = {json.dumps(value, sort_keys=True, default=str) for value in values}
        if len(texts) > 1 and not entry.startswith(harmless):
            differing.append(entry)
    return differing


def format_truncation(run: RunRecord, *, show_eps: bool = False) -> str:
    """ "hard", "soft, k = 1" or "soft, k = 1 expected", with eps if asked."""
    law = run.truncation
    if law is None:
        return "—"
    expected = " expected" if run.setting("objective", "expected") is True else ""
    parts = ["hard" if law.hard else f"soft, k = {law.k:g}{expected}"]
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


def _measured(found: Figure | None) -> Cell:
    if found is None:
        return Cell("—")
    return Cell(format_value(found.value, found.standard_error), found.value, found.standard_error)


def _number(value: float | None) -> Cell:
    if value is None:
        return Cell("—")
    whole = value == int(value) or value >= 100
    return Cell(f"{value:,.0f}" if whole else f"{value:.1f}", value)


def _nfe(run: RunRecord, keys: Iterable[str]) -> Cell:
    found = (figure.nfe for key in keys if (figure := run.figure(key)) is not None)
    return _number(next((nfe["mean"] for nfe in found if nfe and "mean" in nfe), None))


def _mark_best(cells: list[Cell], better: str | None) -> list[Cell]:
    """Mark the best value, where each other is away by 1.96 standard errors of the difference.

    Errors of figures measured on the same images go together, so theirs is smaller than what is
    taken here: of errors that do not.
    """
    known = [cell for cell in cells if cell.value is not None]
    if better is None or len(known) < 2:
        return cells
    best = (min if better == "lower" else max)(known, key=lambda cell: cell.value or 0.0)
    others = [cell for cell in known if cell is not best]
    if not all(_apart(best, other) for other in others):
        return cells
    return [replace(cell, best=cell is best) for cell in cells]


def _apart(a: Cell, b: Cell) -> bool:
    if None in (a.value, b.value, a.standard_error, b.standard_error):
        return False
    error = math.hypot(a.standard_error or 0.0, b.standard_error or 0.0)
    return abs((a.value or 0.0) - (b.value or 0.0)) > _QUANTILE * error
