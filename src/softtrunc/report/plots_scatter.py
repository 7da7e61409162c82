"""Density against sample quality: a point a run, its label where it covers least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from softtrunc.report.plots_base import FAINT, Encoding, Picture, RunStyle, drawing, encoded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox


class Point(NamedTuple):
    """A run in the trade-off plot; an error bar of one standard error where it is known."""

    style: RunStyle
    label: str
    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None


def trade_off(
    points: Sequence[Point], x_label: str, y_label: str, *, encoding: Encoding = "svg"
) -> Picture:
    """Density against sample quality, lower is better on both axes, one labelled point per run."""
    with drawing() as (figure, axes):
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
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.annotate(
            "",
            xy=(0.02, 0.025),
            xytext=(0.105, 0.14),
            xycoords="axes fraction",
            arrowprops={"arrowstyle": "-|>", "color": FAINT, "linewidth": 1.2},
        )
        axes.text(0.085, 0.03, "better", transform=axes.transAxes, color=FAINT, style="italic")
        _place_labels(figure, axes, points)
        return encoded(figure, encoding)


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
    around = [(9, 0), (-9, 0), (0, 9), (0, -9), (7, 7), (7, -7), (-7, 7), (-7, -7)]
    spots = [(x * reach, y * reach) for reach in (1.0, 1.8, 2.8, 4.0) for x, y in around]
    for point in points:
        text = axes.annotate(
            _short(point.label),
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=point.style.colour,
            weight="bold",
        )
        boxes = [_placed(text, spot, renderer) for spot in spots]
        costs = [
            sum(_overlap(box, other) for other in taken)
            + 3 * (box.width * box.height - _overlap(box, inside))
            for box in boxes
        ]
        taken.append(_placed(text, spots[int(np.argmin(costs))], renderer))


def _placed(text: Annotation, spot: tuple[float, float], renderer: RendererBase) -> Bbox:
    """Move a label so that it begins at `spot`, in points from its point; what it covers there."""
    across = ("center", "left", "right")[int(np.sign(spot[0]))]
    up = ("center", "bottom", "top")[int(np.sign(spot[1]))]
    text.set(position=spot, ha=across, va=up)
    return text.get_window_extent(renderer)


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"
