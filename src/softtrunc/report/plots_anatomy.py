"""The plots of an anatomy. Left is small t, as everywhere in the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from softtrunc.records import AnatomyBin, AnatomyChange, AnatomyRun, ChimeraPoint, RegenerationPoint
from softtrunc.report import plots_base as base
from softtrunc.report.plots_base import Picture, RunStyle, drawing, encoded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bits_by_time(runs: Sequence[AnatomyRun], styles: Sequence[RunStyle], unit: str) -> Picture:
    """What each log-SNR adds to the bound, in bits/dim (`unit`) per unit of log-SNR."""
    with drawing() as (figure, axes):
        for run, style in zip(runs, styles, strict=True):
            heights = [part.bits_per_dim / _width(part) for part in run.bins]
            axes.stairs(heights, _edges(run.bins), color=style.colour, linewidth=1.7, baseline=None)
        axes.axhline(0.0, color=base.FAINT, linewidth=0.8)
        _log_snr_axis(axes, runs[0].bins)
        axes.set(ylabel=f"{unit} per unit of log-SNR")
        return encoded(figure)


def bits_below(runs: Sequence[AnatomyRun], styles: Sequence[RunStyle], unit: str) -> Picture:
    """The bits that all smaller times add, over time."""
    with drawing() as (figure, axes):
        for run, style in zip(runs, styles, strict=True):
            bits = [0.0, *(part.bits_below for part in run.bins)]
            axes.plot(_edges(run.bins), bits, color=style.colour, linewidth=1.7)
        _log_snr_axis(axes, runs[0].bins)
        axes.set(ylabel=f"{unit}, all smaller times")
        return encoded(figure)


def error_by_log_snr(runs: Sequence[AnatomyRun], styles: Sequence[RunStyle]) -> Picture:
    """The held-out error of the predicted noise, per dimension."""
    with drawing() as (figure, axes):
        for run, style in zip(runs, styles, strict=True):
            shown = [part for part in run.bins if part.error > 0.0]
            _line(axes, list(map(_middle, shown)), [part.error for part in shown], style)
        axes.set_yscale("log")
        base.label_log_axis(axes.yaxis)
        _log_snr_axis(axes, runs[0].bins)
        axes.set(ylabel="error per dimension")
        return encoded(figure)


def change_by_time(change: AnatomyChange, style: RunStyle, unit: str) -> Picture:
    """What the second run adds to or takes from the first one's bits, with two standard errors."""
    bits = [part.bits_per_dim for part in change.bins]
    errors = [part.standard_error for part in change.bins]
    with _changes(change.bins, bits, errors, style) as (figure, axes):
        axes.set(ylabel=f"change of the bin, {unit}")
        return encoded(figure)


def error_change(first: AnatomyRun, change: AnatomyChange, style: RunStyle) -> Picture:
    """The second run's error over the first one's, less one, with two paired standard errors."""
    before = [part.error if part.error > 0.0 else math.nan for part in first.bins]
    ratios = [b.error / a for a, b in zip(before, change.bins, strict=True)]
    errors = [b.error_standard_error / a for a, b in zip(before, change.bins, strict=True)]
    with _changes(change.bins, ratios, errors, style) as (figure, axes):
        axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:+.3g} %")
        axes.set(ylabel="change of the error")
        return encoded(figure)


@contextmanager
def _changes(
    bins: Sequence[AnatomyBin], values: Sequence[float], errors: Sequence[float], style: RunStyle
) -> Iterator[tuple[Figure, Axes]]:
    """A plot of changes by log-SNR, around zero, with two standard errors."""
    with drawing() as (figure, axes):
        axes.errorbar(
            list(map(_middle, bins)),
            values,
            yerr=[2.0 * error for error in errors],
            fmt=style.marker,
            color=style.colour,
            markersize=5,
            capsize=2,
            linestyle="-",
        )
        axes.axhline(0.0, color=base.INK, linewidth=0.8)
        _log_snr_axis(axes, bins)
        yield figure, axes


def chimera_curves(
    runs: Sequence[AnatomyRun],
    points: Sequence[ChimeraPoint],
    styles: Sequence[RunStyle],
    distance: str,
) -> Picture | None:
    """The named distance by the time at which one run takes over; dashed: each run alone."""
    known = [(p.above, p.log_snr, p.distance) for p in points if p.distance is not None]
    if len(known) < len(points):
        return None
    with drawing() as (figure, axes):
        for run, style in zip(runs, styles, strict=True):
            curve = [(log_snr, value) for above, log_snr, value in known if above == run.name]
            _line(axes, [x for x, _ in curve], [y for _, y in curve], style)
            if run.distance is not None:
                axes.axhline(run.distance, color=style.colour, linewidth=1.0, linestyle="--")
        axes.set_ylim(bottom=0.0)
        _log_snr_axis(axes, runs[0].bins)
        axes.set(ylabel=f"{distance} of the samples")
        axes.set_xlabel("log-SNR at which one model takes over from the other")
        return encoded(figure)


def law_of_times(run: AnatomyRun, style: RunStyle) -> Picture | None:
    """The share of training's draws in each bin, and what each bin's loss counts in a step."""
    if not run.law_is_known:
        return None
    edges = _edges(run.bins)
    clipped = [part.clipped_weight for part in run.bins]
    with drawing() as (figure, axes):
        shares = _over_largest([part.share_of_draws or 0.0 for part in run.bins])
        axes.stairs(shares, edges, fill=True, color=style.colour, alpha=0.25)
        weights = _over_largest([part.weight or 0.0 for part in run.bins])
        axes.stairs(weights, edges, color=style.colour, linewidth=1.7)
        if run.law_is_recorded:
            left = _over_largest([weight or 0.0 for weight in clipped])
            axes.stairs(left, edges, color=base.INK, linestyle="--", linewidth=1.4)
        axes.set_ylim(bottom=0.0)
        _log_snr_axis(axes, run.bins)
        axes.set(ylabel="over the largest bin's")
        return encoded(figure)


def regeneration_curve(points: Sequence[RegenerationPoint], style: RunStyle) -> Picture:
    """How alike a real image and its regeneration are, by the time it was noised up to."""
    with drawing() as (figure, axes):
        _line(axes, [p.log_snr for p in points], [p.correlation for p in points], style)
        axes.invert_xaxis()
        axes.set_ylim(min(0.0, *(p.correlation for p in points)), 1.02)
        axes.set(xlabel="log-SNR up to which the image was noised", ylabel="correlation")
        return encoded(figure)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], style: RunStyle) -> None:
    axes.plot(x, y, color=style.colour, marker=style.marker, markersize=5.5, linewidth=1.7)


def _over_largest(values: Sequence[float]) -> list[float]:
    most = max(values) or 1.0
    return [value / most for value in values]


def _edges(bins: Sequence[AnatomyBin]) -> list[float]:
    """The ends of the bins, from the smallest time on."""
    return [bins[0].log_snr[1], *(part.log_snr[0] for part in bins)]


def _middle(part: AnatomyBin) -> float:
    return sum(part.log_snr) / 2


def _width(part: AnatomyBin) -> float:
    return part.log_snr[1] - part.log_snr[0]


def _log_snr_axis(axes: Axes, bins: Sequence[AnatomyBin]) -> None:
    edges = _edges(bins)
    margin = 0.02 * (edges[0] - edges[-1])
    axes.set_xlim(edges[0] + margin, edges[-1] - margin)
    axes.set_xlabel("log-SNR (left: small t, almost clean; right: pure noise)")
