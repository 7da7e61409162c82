"""Showing runs: figures, tables and the HTML page, from records alone."""

from softtrunc.report.page import write_report
from softtrunc.report.runs import RunRecord, read_run
from softtrunc.report.summary import SummaryTable, summary_rows

__all__ = ["RunRecord", "SummaryTable", "read_run", "summary_rows", "write_report"]
