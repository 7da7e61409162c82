"""Figures by class: a table for each figure, a row for each class, a column for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softtrunc.report.summary import Column, format_value
from softtrunc.report.words import Shown


@dataclass(frozen=True)
class ClassTable:
    """`rows` are a class's name and the value of each run, a dash where it has none."""

    title: str
    runs: tuple[Shown, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def class_tables(runs: Sequence[Shown], figures: Sequence[Column]) -> list[ClassTable]:
    """The tables of all figures that some run has by class."""
    tables = []
    for column in figures:
        found = [
            (run, figure.by_class)
            for run in runs
            if (figure := run.record.figure(column.key, column.name)) and figure.by_class
        ]
        names = dict.fromkeys(name for _, values in found for name in values)
        rows = tuple(
            (name, tuple(format_value(v[name]) if name in v else "—" for _, v in found))
            for name in names
        )
        if rows:
            tables.append(ClassTable(column.heading, tuple(run for run, _ in found), rows))
    return tables
