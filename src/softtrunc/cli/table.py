"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from softtrunc.jobs.demo import DemoOutcome
    from softtrunc.jobs.edit import RoundTrip
    from softtrunc.jobs.study import StudyOutcome
    from softtrunc.records import Figure


def _cell(text: str, best: bool) -> Text:
    return Text(text, style="bold" if best else "")


def plain_table(
    columns: Sequence[str],
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    """A table without lines; columns of `numbers` stand to the right, `whole` ones never wrap."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, no_wrap=column in whole)
    return table


def comparison_table(demo: DemoOutcome) -> Table:
    """The report's summary table on its side: one run a column, the best value of a row in bold."""
    summary = demo.table
    runs = [row[0].text for row in summary.rows]
    table = plain_table(["", *runs], numbers=runs, whole=["", *runs])
    for number, column in enumerate(summary.columns[1:], start=1):
        title = f"{column.title}, {column.unit}" if column.unit else column.title
        cells = (row[number] for row in summary.rows)
        table.add_row(title, *(_cell(c.text, c.best) for c in cells))
    return table


def figure_table(title: str, figures: Sequence[Figure]) -> Table:
    """The figures of one evaluation, one a row; with their eps where several were measured."""
    eps = [figure.protocol.get("eps") for figure in figures]
    several = len({value for value in eps if value is not None}) > 1
    columns = ["value", "± SE", "n", "evaluations (mean / max)", "seconds"]
    columns = ["eps", *columns] if several else columns
    table = plain_table(["figure", *columns], numbers=columns, title=title)
    for figure, time in zip(figures, eps, strict=True):
        error, nfe, protocol = figure.standard_error, figure.nfe, figure.protocol
        table.add_row(
            f"{figure.name}{', ' + figure.unit if figure.unit else ''}",
            *(("" if time is None else f"{time:g}",) if several else ()),
            f"{figure.value:.4f}" if abs(figure.value) >= 0.01 else f"{figure.value:.3g}",
            "" if error is None else f"{error:.4f}",
            str(protocol.get("n", protocol.get("samples", ""))),
            "" if nfe is None else f"{nfe['mean']:.1f} / {nfe['max']:.0f}",
            "" if figure.seconds is None else f"{figure.seconds:.1f}",
        )
        for name, value in (figure.by_class or {}).items():
            table.add_row(f"  {name}", *(("",) if several else ()), f"{value:.4f}")
    return table


def round_trip_table(trips: Sequence[RoundTrip]) -> Table:
    """What became of images on their way to the latent and back; differences in 256 levels."""
    columns = ("RMS error", "largest", "every pixel the same", "latent / expected norm")
    table = plain_table(("image", *columns), numbers=columns)
    for trip in trips:
        same = "yes" if trip.exact else "no"
        row = (f"{trip.rms:.2g}", f"{trip.worst:.2g}", same, f"{trip.radius:.3f}")
        table.add_row(trip.name, *row)
    return table


def study_tables(outcome: StudyOutcome) -> list[Table]:
    """A study's means, and the changes against the baselines where there are any."""
    summary = outcome.summary
    parts = {
        "mean ± standard error over seeds; bold: better than every other": summary.mean_rows(),
        "changes, paired over seeds; bold: the interval leaves out 0": summary.change_rows(),
    }
    tables = []
    for title, rows in parts.items():
        if len(rows) < 2:
            continue
        heads = [cell.text for cell in rows[0]]
        words = ("setting", "against", "figure")
        table = plain_table(heads, [head for head in heads if head not in words], words, title)
        for row in rows[1:]:
            table.add_row(*(_cell("" if c.repeated else c.text, c.best) for c in row))
        tables.append(table)
    return tables
