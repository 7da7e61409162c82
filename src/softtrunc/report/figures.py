"""The pictures of the report, as SVG or PNG held in memory.

Matplotlib is imported when the first picture is drawn, without pyplot: no global figure list, no
display, safe beside a program that plots. Pictures carry no run names except where a point needs
its label; the page prints the key below them, so that names wrap, scale and stay text. All stand
on white, which reads on a light and on a dark page.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from softtrunc.report.runs import MetricsLine, Truncation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator
    from matplotlib.transforms import Bbox

__all__ = [
    "Encoding",
    "Picture",
    "Point",
    "RunStyle",
    "Series",
    "curves",
    "error_map",
    "example_share",
    "image",
    "late_means",
    "prior_share",
    "run_style",
    "smoothed",
    "tau_histogram",
    "trade_off",
]

# Okabe and Ito's palette, told apart by all common kinds of colour blindness; its yellow is too
# pale for white paper and makes way for a brown.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#444444",
    "#8C5A2B",
)
# Matplotlib's marker, and the same shape as an SVG path in a 16 x 16 box.
_MARKERS = (
    ("o", "M8 4a4 4 0 1 0 0 8a4 4 0 1 0 0-8z"),
    ("s", "M4.5 4.5h7v7h-7z"),
    ("^", "M8 3.5l4.5 8h-9z"),
    ("D", "M8 3.2l4.8 4.8l-4.8 4.8l-4.8-4.8z"),
    ("v", "M8 12.5l4.5-8h-9z"),
    ("P", "M6.5 3.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"),
    ("p", "M8 3.5l4.4 3.2l-1.7 5.2h-5.4l-1.7-5.2z"),
    ("h", "M8 3.4l4 2.3v4.6l-4 2.3l-4-2.3v-4.6z"),
)
_INK, _FAINT, _GRID = "#222222", "#666666", "#e4e4e4"
_SIZE = (5.0, 3.3)
_MEASURED_FONT = "'DejaVu Sans'"
_PAGE_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGEST_SIDE = 1200
_MOST_POINTS = 300
_PNG_DPI = 200

Encoding = Literal["svg", "png"]
"""Drawings that scale, or pixels for places that take no drawings."""


class RunStyle(NamedTuple):
    """How a run looks in every picture: a colour, a marker, and the marker as an SVG path."""

    colour: str
    marker: str
    swatch: str


class Series(NamedTuple):
    """A line: x and y in data units; `faint` is drawn pale behind it (e.g. before smoothing)."""

    style: RunStyle
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] | None = None


class Point(NamedTuple):
    """A run in the trade-off plot; an error bar of one standard error where it is known."""

    style: RunStyle
    label: str
    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None


@dataclass(frozen=True)
class Picture:
    """An encoded picture; `width` and `height` in pixels, None for drawings that scale."""

    mime: str
    data: bytes
    width: int | None = None
    height: int | None = None
    reduced: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


def run_style(index: int) -> RunStyle:
    """The style of run number `index`; colours repeat after 8 runs, with other markers."""
    shift = index // len(_COLOURS)
    marker, swatch = _MARKERS[(index + shift) % len(_MARKERS)]
    return RunStyle(_COLOURS[index % len(_COLOURS)], marker, swatch)


# ---------------------------------------------------------------------------------------------
# Numbers behind the pictures


def late_means(
    lines: Sequence[MetricsLine], what: Literal["loss", "error"]
) -> tuple[list[float], list[float]]:
    """Mean by bin of `log10 t` over the last third of the training, each example counted once.

    Returns:
        The centres of the bins that saw an example, and the means there.
    """
    edges, sums, counts = _binned(_last_third(lines), what)
    seen = counts > 0
    centres = (edges[:-1] + edges[1:]) / 2 if len(edges) else edges
    return centres[seen].tolist(), (sums[seen] / counts[seen]).tolist()


def example_share(lines: Sequence[MetricsLine]) -> tuple[list[float], list[float]]:
    """The share of all training examples by bin of `log10 t`: bin centres, shares (sum 1)."""
    edges, _, counts = _binned(lines, None)
    if not len(edges) or counts.sum() == 0:
        return [], []
    return ((edges[:-1] + edges[1:]) / 2).tolist(), (counts / counts.sum()).tolist()


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred running mean over a twentieth of the values, shorter at both ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return ((total[high] - total[low]) / (high - low)).tolist()  # type: ignore[no-any-return]


def prior_share(law: Truncation, edges: Sequence[float]) -> list[float]:
    """The probability of tau between neighbouring edges of `log10 tau` under the prior.

    The paper's family (Kim et al. 2022, section 4): density proportional to `tau^-k` on
    [eps, tau_max]; an infinite k puts all mass at eps, which belongs to the bin that begins there.
    """
    s = (np.asarray(edges) - math.log10(law.eps)) * math.log(10.0)
    if law.hard:
        cdf = (s > 1e-9).astype(np.float64)
        return np.diff(cdf).tolist()  # type: ignore[no-any-return]
    extent, rate = math.log(law.tau_max / law.eps), law.k - 1.0
    s = np.clip(s, 0.0, extent)
    cdf = s / extent if rate == 0.0 else np.expm1(-rate * s) / math.expm1(-rate * extent)
    return np.diff(cdf).tolist()  # type: ignore[no-any-return]


def _last_third(lines: Sequence[MetricsLine]) -> list[MetricsLine]:
    return [line for line in lines if 3 * line.step > 2 * lines[-1].step]


def _binned(
    lines: Sequence[MetricsLine], what: Literal["loss", "error"] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, sums and counts over all lines that have the same edges as the last one."""
    binned = [line.by_log10_t for line in lines if line.by_log10_t is not None]
    if not binned:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    edges = binned[-1].edges
    sums, counts = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for bins in binned:
        if bins.edges != edges:
            continue
        means = bins.error if what == "error" else bins.loss
        for i, (mean, n) in enumerate(zip(means, bins.count, strict=True)):
            if what is None:
                counts[i] += n
            elif mean is not None:
                sums[i] += n * mean
                counts[i] += n
    return np.asarray(edges), sums, counts


# ---------------------------------------------------------------------------------------------
# Pictures


def trade_off(
    points: Sequence[Point], x_label: str, y_label: str, *, encoding: Encoding = "svg"
) -> Picture:
    """Density against sample quality, lower is better on both axes, one labelled point per run."""
    with _drawing((5.2, 3.6)) as (figure, axes):
        for point in points:
            axes.errorbar(
                [point.x],
                [point.y],
                xerr=None if point.x_error is None else [point.x_error],
                yerr=None if point.y_error is None else [point.y_error],
                fmt=point.style.marker,
                color=point.style.colour,
                markersize=9,
                markeredgecolor="white",
                markeredgewidth=0.8,
                elinewidth=1.4,
                capsize=3,
                zorder=3,
            )
        _frame_points(axes, points)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.annotate(
            "",
            xy=(0.02, 0.025),
            xytext=(0.105, 0.14),
            xycoords="axes fraction",
            arrowprops={"arrowstyle": "-|>", "color": _FAINT, "linewidth": 1.2},
        )
        axes.text(0.115, 0.125, "better", transform=axes.transAxes, color=_FAINT, style="italic")
        _place_labels(figure, axes, points)
        return _svg(figure) if encoding == "svg" else _png(figure)


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
    values = [v for line in series for v in line.y if v > 0]
    wide = bool(values) and max(values) > 20 * min(values)
    if y_scale == "log" or (y_scale == "auto" and wide):
        kept = [_positive(line) for line in series]
        log = bool(values)
    else:
        kept, log = list(series), False
    with _drawing(_SIZE) as (figure, axes):
        for line in kept:
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
        if log:
            axes.set_yscale("log")
            _label_log_axis(axes.yaxis)
        elif y_scale == "zero":
            axes.set_ylim(bottom=0.0)
            _label_counts(axes.yaxis)
        if x_scale == "time":
            _label_times(axes)
        else:
            axes.set_xlim(left=0.0)
            _label_counts(axes.xaxis)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure)


def tau_histogram(taus: Sequence[float], law: Truncation | None, style: RunStyle) -> Picture:
    """The share of the steps by truncation time, against what the prior promises."""
    start = math.log10(law.eps if law is not None else min(taus))
    end = max(0.0, start + 0.25)
    edges = np.linspace(start, end, 1 + max(1, round((end - start) / 0.25)))
    # Rounding must not push a tau that equals eps out of the first bin.
    log_tau = np.clip(np.log10(np.asarray(taus, dtype=np.float64)), edges[0], edges[-1])
    share = np.histogram(log_tau, bins=edges)[0] / len(taus)
    with _drawing((4.2, 2.5)) as (figure, axes):
        axes.stairs(share, edges, fill=True, color=style.colour, alpha=0.55)
        if law is not None:
            axes.stairs(prior_share(law, edges.tolist()), edges, color=_INK, linewidth=1.3)
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
        _label_times(axes, start=min(start, -5.0))
        axes.set_xlabel("truncation time τ")
        axes.set_ylabel("share of the steps")
        return _svg(figure)


def error_map(lines: Sequence[MetricsLine], limits: tuple[float, float]) -> Picture | None:
    """The unweighted error by diffusion time (upwards) over training (rightwards).

    Args:
        lines: the run's metrics.
        limits: smallest and largest error of the shared colour scale, both > 0.

    Returns:
        None if the run has fewer than two lines with bins.
    """
    binned = [line for line in lines if line.by_log10_t is not None]
    if len(binned) < 2:
        return None
    groups = np.array_split(np.arange(len(binned)), min(48, len(binned)))
    columns, edges_x = [], [0.0]
    edges = np.zeros(0)
    for group in groups:
        edges, sums, counts = _binned([binned[i] for i in group], "error")
        columns.append(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
        edges_x.append(binned[group[-1]].step)
    if len({len(column) for column in columns}) != 1:
        return None
    with _drawing((4.2, 2.5)) as (figure, axes):
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
        _label_log_axis(bar.ax.yaxis)
        bar.set_label("error")
        axes.yaxis.set_major_locator(_every(1.0))
        axes.yaxis.set_major_formatter(lambda v, _: _power_of_ten(v))
        _label_counts(axes.xaxis)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("diffusion time t")
        return _svg(figure)


def image(path: Path) -> Picture | None:
    """A PNG file as it is, or made smaller (JPEG) if it would weigh the page down.

    Returns:
        None if the file is no readable PNG.
    """
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            opened.load()
            width, height = opened.size
            if max(width, height) <= _LARGEST_SIDE and len(data) <= 2_000_000:
                return Picture("image/png", data, width, height)
            small = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return Picture("image/jpeg", buffer.getvalue(), *small.size, reduced=True)


# ---------------------------------------------------------------------------------------------
# Helpers


@contextmanager
def _drawing(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style; matplotlib's settings are restored afterwards."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "axes.edgecolor": "#999999",
        "axes.labelcolor": _INK,
        "axes.labelpad": 5.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.7,
        "text.color": _INK,
        "text.parse_math": False,
        "xtick.color": "#999999",
        "ytick.color": "#999999",
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "softtrunc",
        "path.simplify": True,
    }
    with warnings.catch_warnings(), matplotlib.rc_context():
        # From the defaults, so that nobody's own matplotlibrc changes the report.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        # Names in other scripts: the browser has the glyphs that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Figure) -> Picture:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", dpi=200, metadata=nothing)
    text = buffer.getvalue().replace(_MEASURED_FONT, _PAGE_FONTS)
    return Picture("image/svg+xml", text.encode("utf-8"))


def _png(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    width, height = (round(side * _PNG_DPI) for side in figure.get_size_inches())
    return Picture("image/png", buffer.getvalue(), width, height)


def _frame_points(axes: Axes, points: Sequence[Point]) -> None:
    """Leave room around the points for labels and the arrow."""
    for ends, set_limits in (
        ([(p.x, p.x_error or 0.0) for p in points], axes.set_xlim),
        ([(p.y, p.y_error or 0.0) for p in points], axes.set_ylim),
    ):
        low, high = min(v - e for v, e in ends), max(v + e for v, e in ends)
        pad = 0.28 * (high - low) or 0.1 * abs(high) or 1.0
        set_limits(low - pad, high + pad)


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Greedily put each label at the spot around its point where it covers least."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = axes.get_window_extent(renderer)
    taken = [Bbox.from_extents(inside.x0, inside.y0, inside.x0 + 95, inside.y0 + 55)]
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        taken.append(Bbox.from_extents(x - 7, y - 7, x + 7, y + 7))
        x_error, y_error = point.x_error or 0.0, point.y_error or 0.0
        corner = (point.x + x_error, point.y + y_error)
        across, up = np.subtract(axes.transData.transform(corner), (x, y))
        taken.append(Bbox.from_extents(x - across, y - 3, x + across, y + 3))
        taken.append(Bbox.from_extents(x - 3, y - up, x + 3, y + up))
    spots = [
        (dx * reach, dy * reach, across, up)
        for reach in (1.0, 1.8, 2.8, 4.0)
        for dx, dy, across, up in (
            (9, 0, "left", "center"),
            (-9, 0, "right", "center"),
            (0, 9, "center", "bottom"),
            (0, -9, "center", "top"),
            (7, 7, "left", "bottom"),
            (7, -7, "left", "top"),
            (-7, 7, "right", "bottom"),
            (-7, -7, "right", "top"),
        )
    ]
    for point in points:
        text = axes.annotate(
            _short(point.label),
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=point.style.colour,
            weight="bold",
        )
        costs = []
        for dx, dy, across, up in spots:
            text.set(position=(dx, dy), ha=across, va=up)
            box = text.get_window_extent(renderer)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, inside)
            costs.append(covered + 3 * outside)
        dx, dy, across, up = spots[int(np.argmin(costs))]
        text.set(position=(dx, dy), ha=across, va=up)
        taken.append(text.get_window_extent(renderer))


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"


def _positive(line: Series) -> Series:
    kept = [i for i, y in enumerate(line.y) if y > 0 and (not line.faint or line.faint[i] > 0)]
    return Series(
        line.style,
        [line.x[i] for i in kept],
        [line.y[i] for i in kept],
        None if line.faint is None else [line.faint[i] for i in kept],
    )


def _thinned(line: Series) -> Series:
    """At most `_MOST_POINTS` points of a long line, the last one included."""
    if len(line.x) <= _MOST_POINTS:
        return line
    kept = np.unique(np.linspace(0, len(line.x) - 1, _MOST_POINTS).round().astype(int))
    return Series(
        line.style,
        [line.x[i] for i in kept],
        [line.y[i] for i in kept],
        None if line.faint is None else [line.faint[i] for i in kept],
    )


def _every(step: float) -> Locator:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(step)


def _label_times(axes: Axes, start: float = -5.0) -> None:
    axes.set_xlim(start - 0.15, 0.1)
    axes.xaxis.set_major_locator(_every(1.0))
    axes.xaxis.set_major_formatter(lambda v, _: _power_of_ten(v))


def _label_log_axis(axis: Axis) -> None:
    """Ticks at 1, 2, 5 where the axis is short, at powers of ten where it is long."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    subs: tuple[float, ...] = (1.0, 2.0, 5.0)
    if decades > 1.5:
        subs = (1.0,) if decades > 3 else (1.0, 3.0)
    if decades < 0.5:
        subs = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda v, _: _plain(v))


def _label_counts(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(lambda v, _: _count(v))


def _power_of_ten(exponent: float) -> str:
    whole = round(exponent)
    if whole >= -2:
        return f"{10.0**whole:g}"
    return "10" + str(whole).translate(_SUPERSCRIPTS)


def _plain(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**exponent
    head = "" if abs(factor - 1) < 1e-6 else f"{factor:.2g}·"
    return f"{head}10{str(exponent).translate(_SUPERSCRIPTS)}"


def _count(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e6 if suffix == "M" else 1e3
            return f"{value / unit:.4g} {suffix}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
