"""The anatomy of one run or two as a page, and as a section of the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from softtrunc.feedback.files import write_text
from softtrunc.records import Anatomy, AnatomyRun, read_anatomy
from softtrunc.report import plots_anatomy as plots
from softtrunc.report.plots_base import Picture, RunStyle, image, run_style
from softtrunc.report.templates import render

_FILE = "anatomy.json"


class Key(NamedTuple):
    """A run of an anatomy: its name and looks."""

    label: str
    style: RunStyle


class Law(NamedTuple):
    """What training made of the times in one run; the picture is None where that is not known."""

    run: AnatomyRun
    style: RunStyle
    picture: Picture | None


class Grid(NamedTuple):
    """A grid of images and what its rows are."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class AnatomyView:
    """An anatomy with its pictures; a picture is None where there is nothing to draw."""

    record: Anatomy
    runs: tuple[Key, ...]
    bits: Picture
    below: Picture
    error: Picture
    change: Picture | None
    error_change: Picture | None
    chimera: Picture | None
    laws: tuple[Law, ...]
    regeneration: Picture | None
    grids: tuple[Grid, ...]

    @property
    def title(self) -> str:
        """The names of the runs."""
        return " and ".join(run.label for run in self.runs)

    @property
    def halves(self) -> list[tuple[str, float]]:
        """Of each run, the time below which half of the likelihood loss lies, to a bin.

        That is the error's integral over log-SNR. The bound's own bins may be negative.
        """
        found = []
        for run in self.record.runs:
            widths = [part.log_snr[1] - part.log_snr[0] for part in run.bins]
            losses = (part.error * width for part, width in zip(run.bins, widths, strict=True))
            below = list(itertools.accumulate(losses))
            half = next(i for i, loss in enumerate(below) if loss >= below[-1] / 2)
            found.append((run.name, run.bins[half].t[1]))
        return found


def view_anatomy(folder: Path, looks: Mapping[str, RunStyle] | None = None) -> AnatomyView | None:
    """The anatomy in `folder`, drawn; None if there is none.

    Args:
        folder: where `anatomy.json` and the grids lie.
        looks: how runs look, by name; if one has none here, as the first runs of a report.

    Raises:
        ValueError: if `anatomy.json` is damaged.
    """
    record = read_anatomy(folder / _FILE)
    if record is None:
        return None
    runs, change = record.runs, record.difference
    if looks is None or any(run.name not in looks for run in runs):
        looks = {run.name: run_style(i) for i, run in enumerate(runs)}
    styles = [looks[run.name] for run in runs]
    keys = tuple(Key(run.name, style) for run, style in zip(runs, styles, strict=True))
    laws = (
        Law(run, key.style, plots.law_of_times(run, key.style))
        for run, key in zip(runs, keys, strict=True)
    )
    return AnatomyView(
        record,
        keys,
        plots.bits_by_time(runs, styles, record.unit),
        plots.bits_below(runs, styles, record.unit),
        plots.error_by_log_snr(runs, styles),
        None if change is None else plots.change_by_time(change, styles[1], record.unit),
        None if change is None else plots.error_change(runs[0], change, styles[1]),
        plots.chimera_curves(runs, record.chimera, styles, record.distance)
        if record.chimera
        else None,
        tuple(laws),
        plots.regeneration_curve(record.regeneration, styles[0]) if record.regeneration else None,
        tuple(_grids(folder, record)),
    )


def _grids(folder: Path, record: Anatomy) -> list[Grid]:
    """The grids that are there, with what their rows show."""
    times = sorted({p.t for p in record.chimera} | {p.t for p in record.regeneration})
    at = ", ".join(f"{t:.2g}" for t in times)
    names = [run.name for run in record.runs]
    captions = {
        "regeneration.png": f"Real images; then the same noised up to t = {at} and drawn again"
    }
    if len(names) == 2:
        for (i, above), (j, below) in (
            ((1, names[0]), (2, names[1])),
            ((2, names[1]), (1, names[0])),
        ):
            captions[f"chimera-{i}-above-{j}.png"] = (
                f"Rows: {above} alone; {above} above t = {at} and {below} below it; {below} alone. "
                "Every row starts from the same noise"
            )
    found = ((image(folder / name), caption) for name, caption in captions.items())
    return [Grid(picture, caption) for picture, caption in found if picture is not None]


def write_anatomy_page(folder: Path) -> Path:
    """Write `anatomy.html` beside `anatomy.json`; pictures and styles are inside.

    Raises:
        ValueError: if there is no anatomy in `folder`, or it is damaged.
    """
    view = view_anatomy(folder)
    if view is None:
        raise ValueError(f"{folder}: no {_FILE}: run `softtrunc anatomy` first")
    page = folder / "anatomy.html"
    write_text(page, render("anatomy_page.html.j2", title=f"Anatomy of {view.title}", view=view))
    return page
