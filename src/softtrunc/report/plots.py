"""The plots of training and the numbers behind them, from the lines of `metrics.jsonl` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from softtrunc.records import MetricsLine
from softtrunc.report import plots_base as base
from softtrunc.report.plots_base import Picture, RunStyle, drawing, encoded
from softtrunc.report.runs import Truncation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 300


def late_means(
    lines: Sequence[MetricsLine], what: Literal["loss", "error"]
) -> tuple[list[float], list[float]]:
    """Mean by bin of `log10 t` over the last third of the training, each example counted once.

    Returns:
        The centres of the bins that saw an example, and the means there.
    """
    late = [line for line in lines if 3 * line.step > 2 * lines[-1].step]
    edges, sums, counts = _binned(late, what)
    centres, seen = (edges[:-1] + edges[1:]) / 2, counts > 0
    return centres[seen].tolist(), (sums[seen] / counts[seen]).tolist()


def example_share(lines: Sequence[MetricsLine]) -> tuple[list[float], list[float]]:
    """The share of all training examples by bin of `log10 t`: bin centres, shares (sum 1)."""
    edges, _, counts = _binned(lines, "count")
    if counts.sum() == 0:
        return [], []
    return ((edges[:-1] + edges[1:]) / 2).tolist(), (counts / counts.sum()).tolist()


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred running mean over a twentieth of the values, shorter at both ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return [float(mean) for mean in (total[high] - total[low]) / (high - low)]


def prior_share(law: Truncation, edges: Sequence[float]) -> list[float]:
    """The probability of tau between neighbouring edges of `log10 tau` under the prior.

    Mass on the first edge belongs to the first bin, as that of hard truncation at eps does.
    """
    import torch

    from softtrunc.truncation import HardTruncation, PowerPrior

    prior = HardTruncation(law.eps) if law.hard else PowerPrior(law.k, law.eps, law.tau_max)
    below = prior.cdf(10.0 ** torch.tensor(edges, dtype=torch.float64))
    below[0] = 0.0
    return [float(share) for share in below.diff()]


class NormBin(NamedTuple):
    """Gradient norms before clipping of the steps whose tau lies in one half of a decade.

    - `log_tau`: the mean of `log10 tau` over these steps; `steps`: how many they are.
    - `low`, `median`, `high`: the 10 %, 50 % and 90 % quantiles of the norms.
    - `clipped`: the share of the steps whose norm is above the threshold; 0 without one.
    """

    log_tau: float
    steps: int
    low: float
    median: float
    high: float
    clipped: float


def norms_by_tau(lines: Sequence[MetricsLine], threshold: float | None) -> list[NormBin]:
    """Gradient norms by truncation time, over the whole training.

    Lines that hold no norm for each tau, as those of older versions, are left out.
    """
    whole = [line for line in lines if len(line.taus) == len(line.grad_norms)]
    log_tau = np.log10([tau for line in whole for tau in line.taus])
    norms = np.asarray([norm for line in whole for norm in line.grad_norms])
    # Rounding must not push a tau that equals eps, often a power of ten, into the bin below.
    bins = np.floor(2.0 * log_tau + 1e-9)
    found = []
    for each in np.unique(bins):
        here = norms[bins == each]
        low, median, high = map(float, np.quantile(here, (0.1, 0.5, 0.9)))
        clipped = 0.0 if threshold is None else float((here > threshold).mean())
        log = float(log_tau[bins == each].mean())
        found.append(NormBin(log, len(here), low, median, high, clipped))
    return found


class Series(NamedTuple):
    """A line: x and y in data units; `faint` is drawn pale behind it (e.g. before smoothing)."""

    style: RunStyle
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] | None = None

    def at(self, kept: Sequence[int]) -> Series:
        """Some of the points."""
        faint = None if self.faint is None else [self.faint[i] for i in kept]
        return Series(self.style, [self.x[i] for i in kept], [self.y[i] for i in kept], faint)


def curves(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_scale: Literal["time", "steps"],
    y_scale: Literal["log", "zero", "auto"],
) -> Picture:
    """Lines of several runs in one pair of axes.

    Args:
        series: one line a run.
        x_label: says what x is.
        y_label: says what y is, and its unit.
        x_scale: "time": x is `log10 t`, ticks show t; "steps": optimiser steps.
        y_scale: "log", "zero" (linear, from 0) or "auto" (log if the values span a factor of 20).
    """
    positive = [v for line in series for v in line.y if v > 0]
    wide = bool(positive) and max(positive) > 20 * min(positive)
    log = y_scale == "log" or (y_scale == "auto" and wide)
    with drawing() as (figure, axes):
        for line in map(_positive, series) if log else series:
            line = _thinned(line)
            if line.faint is not None:
                axes.plot(line.x, line.faint, color=line.style.colour, alpha=0.28, linewidth=0.7)
            axes.plot(
                line.x,
                line.y,
                color=line.style.colour,
                linewidth=1.7,
                marker=line.style.marker,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                markevery=1 if x_scale == "time" else max(1, len(line.x) // 8),
            )
        if log and positive:
            axes.set_yscale("log")
            base.label_log_axis(axes.yaxis)
        elif y_scale == "zero":
            axes.set_ylim(bottom=0.0)
            base.label_counts(axes.yaxis)
        if x_scale == "time":
            _time_axis(axes)
        else:
            axes.set_xlim(left=0.0)
            base.label_counts(axes.xaxis)
        axes.set(xlabel=x_label, ylabel=y_label)
        return encoded(figure)


def tau_histogram(taus: Sequence[float], law: Truncation | None, style: RunStyle) -> Picture:
    """The share of the steps by truncation time, against what the prior promises."""
    start = math.log10(law.eps if law is not None else min(taus))
    end = max(0.0, start + 0.25)
    edges = np.linspace(start, end, 1 + max(1, round((end - start) / 0.25)))
    # Rounding must not push a tau that equals eps out of the first bin.
    log_tau = np.clip(np.log10(np.asarray(taus, dtype=np.float64)), edges[0], edges[-1])
    share = np.histogram(log_tau, bins=edges)[0] / len(taus)
    with drawing() as (figure, axes):
        axes.stairs(share, edges, fill=True, color=style.colour, alpha=0.55)
        if law is not None:
            axes.stairs(prior_share(law, edges.tolist()), edges, color=base.INK, linewidth=1.3)
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
        _time_axis(axes, start)
        axes.set(xlabel="truncation time τ", ylabel="share of the steps")
        return encoded(figure)


def norm_plot(bins: Sequence[NormBin], threshold: float | None, style: RunStyle) -> Picture:
    """Gradient norms against truncation time: medians, 10 to 90 % bars, the clipping threshold."""
    shown = [each for each in bins if each.low > 0.0]
    with drawing() as (figure, axes):
        axes.errorbar(
            [each.log_tau for each in shown],
            [each.median for each in shown],
            yerr=[
                [each.median - each.low for each in shown],
                [each.high - each.median for each in shown],
            ],
            fmt=style.marker,
            color=style.colour,
            markersize=5,
            capsize=2,
            linestyle="-",
        )
        if threshold is not None:
            axes.axhline(threshold, color=base.INK, linewidth=1.3, linestyle="--")
        axes.set_yscale("log")
        base.label_log_axis(axes.yaxis)
        _time_axis(axes, min((each.log_tau for each in bins), default=0.0))
        axes.set(xlabel="truncation time τ", ylabel="gradient norm")
        return encoded(figure)


def error_map(lines: Sequence[MetricsLine], limits: tuple[float, float]) -> Picture | None:
    """The unweighted error by diffusion time (upwards) over training (rightwards).

    Args:
        lines: the run's metrics.
        limits: smallest and largest error of the shared colour scale, both > 0.

    Returns:
        None if the run has fewer than two lines with bins.
    """
    known = [line for line in lines if line.by_log10_t is not None]
    if len(known) < 2:
        return None
    columns, edges_x, edges = [], [0.0], np.zeros(0)
    for group in np.array_split(np.arange(len(known)), min(48, len(known))):
        edges, sums, counts = _binned([known[i] for i in group], "error")
        columns.append(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
        edges_x.append(known[group[-1]].step)
    if len({len(column) for column in columns}) != 1:
        return None
    with drawing() as (figure, axes):
        from matplotlib.colors import LogNorm

        low, high = limits
        mesh = axes.pcolormesh(
            edges_x,
            edges,
            np.ma.masked_invalid(np.stack(columns, axis=1)),
            norm=LogNorm(low, max(high, low * 1.01)),
            cmap="cividis",
            rasterized=True,
        )
        axes.grid(visible=False)
        bar = figure.colorbar(mesh, ax=axes, pad=0.02)
        bar.outline.set_visible(False)
        base.label_log_axis(bar.ax.yaxis)
        bar.set_label("error")
        base.label_times(axes.yaxis)
        base.label_counts(axes.xaxis)
        axes.set(xlabel="optimiser step", ylabel="diffusion time t")
        return encoded(figure)


def _binned(
    lines: Sequence[MetricsLine], what: Literal["loss", "error", "count"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of `log10 t`, and sums and counts of the examples that have a mean.

    Lines whose edges are not those of the last one are left out; "count" counts all examples.
    """
    known = [line.by_log10_t for line in lines if line.by_log10_t is not None]
    if not known:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    edges = known[-1].edges
    sums, counts = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for bins in known:
        if bins.edges == edges:
            values = np.asarray(getattr(bins, what), dtype=np.float64)  # an absent mean is NaN
            seen = np.isfinite(values)
            sums[seen] += (values * bins.count)[seen]
            counts[seen] += np.asarray(bins.count)[seen]
    return np.asarray(edges), sums, counts


def _time_axis(axes: Axes, start: float = -5.0) -> None:
    axes.set_xlim(min(start, -5.0) - 0.15, 0.1)
    base.label_times(axes.xaxis)


def _positive(line: Series) -> Series:
    """The points that a logarithmic axis can show."""
    faint = line.y if line.faint is None else line.faint
    return line.at([i for i, y in enumerate(line.y) if y > 0 and faint[i] > 0])


def _thinned(line: Series) -> Series:
    """At most `_MOST_POINTS` points of a long line, the last one included."""
    if len(line.x) <= _MOST_POINTS:
        return line
    kept = np.linspace(0, len(line.x) - 1, _MOST_POINTS).round().astype(int)
    return line.at(np.unique(kept).tolist())
