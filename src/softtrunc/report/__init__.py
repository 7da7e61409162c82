"""Judging runs and showing them: figures, tables and the HTML page."""

from softtrunc.report.page import write_report
from softtrunc.report.runs import RunSummary, read_run
from softtrunc.report.summary import SummaryTable, summary_rows

__all__ = ["RunSummary", "SummaryTable", "read_run", "summary_rows", "write_report"]
