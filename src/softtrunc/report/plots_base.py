"""Pictures held in memory, and the paper that every plot of the report is drawn on.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by all common kinds of colour blindness; its yellow is too
# pale for white paper and makes way for a brown.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#8C5A2B"]
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
INK, FAINT = "#222222", "#666666"
_MEASURED_FONT = "'DejaVu Sans'"
_PAGE_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGEST_SIDE, _PIXELATED_BELOW = 1200, 600
_PNG_DPI = 200
_SIZE = 4.4, 3.1  # inches

Encoding = Literal["svg", "png"]
"""Drawings that scale, or pixels for places that take no drawings."""


class RunStyle(NamedTuple):
    """How a run looks in every picture: a colour, a marker, and the marker as an SVG path."""

    colour: str
    marker: str
    swatch: str


@dataclass(frozen=True)
class Picture:
    """An encoded picture; `width` and `height` in pixels, None for drawings that scale."""

    mime: str
    data: bytes
    width: int | None = None
    height: int | None = None
    reduced: bool = False

    @property
    def pixelated(self) -> bool:
        """Whether it is small enough to be enlarged pixel by pixel."""
        return self.width is not None and self.width < _PIXELATED_BELOW

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


def run_style(index: int) -> RunStyle:
    """The style of run number `index`; colours repeat after 8 runs, with other markers."""
    shift = index // len(_COLOURS)
    marker, swatch = _MARKERS[(index + shift) % len(_MARKERS)]
    return RunStyle(_COLOURS[index % len(_COLOURS)], marker, swatch)


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


@contextmanager
def drawing() -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style and size; matplotlib's settings are restored afterwards.

    All have one size, so that their texts have one size on the page.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # From the defaults, so that nobody's own matplotlibrc changes the report.
    style = matplotlib.rc_params_from_file(
        Path(__file__).with_name("paper.mplstyle"), use_default_template=True
    )
    with warnings.catch_warnings(), matplotlib.rc_context(style):
        # Names in other scripts: the browser has the glyphs that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def encoded(figure: Figure, encoding: Encoding = "svg") -> Picture:
    """The picture of a figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    if encoding == "png":
        figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
        width, height = (round(side * _PNG_DPI) for side in figure.get_size_inches())
        return Picture("image/png", buffer.getvalue(), width, height)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", dpi=_PNG_DPI, metadata=nothing)
    text = buffer.getvalue().replace(_MEASURED_FONT.encode(), _PAGE_FONTS.encode())
    return Picture("image/svg+xml", text)


def label_times(axis: Axis) -> None:
    """Ticks at the powers of ten of an axis of `log10` of a time."""
    from matplotlib.ticker import MultipleLocator

    axis.set_major_locator(MultipleLocator(1.0))
    axis.set_major_formatter(lambda v, _: _power_of_ten(v))


def label_log_axis(axis: Axis) -> None:
    """Ticks at 1, 2, 5 where the axis is short, at powers of ten where it is long."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    short = (1.0, 2.0, 5.0) if decades > 0.5 else (1.0, 1.2, 1.5, 2.0, 2.5, *range(3, 10))
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else short
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda v, _: _plain(v))


def label_counts(axis: Axis) -> None:
    """Ticks at a few round numbers, large ones in thousands and millions."""
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
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g} k"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
