"""The report: one self-contained HTML page that compares runs. Its words are in the template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.feedback.files import write_text
from softtrunc.report import plots, words
from softtrunc.report.anatomy import AnatomyView, view_anatomy
from softtrunc.report.by_class import class_tables
from softtrunc.report.plots import Series
from softtrunc.report.plots_base import Picture, RunStyle, image, run_style
from softtrunc.report.plots_scatter import Point, trade_off
from softtrunc.report.runs import RunRecord, grid_step, read_run, run_labels
from softtrunc.report.study import StudySummary, trade_off_picture
from softtrunc.report.summary import Column, figure_columns, format_truncation, summary_rows
from softtrunc.report.templates import render
from softtrunc.report.words import Shown


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    study: StudySummary | None = None,
) -> Path:
    """Write one HTML page, pictures and styles inside, that compares the runs.

    The same folders give the same bytes.

    Args:
        runs: run folders, at least one; a folder given twice counts once.
        out: the file to write, usually ending in .html; its folder is made.
        title: heading of the page; by default the names of the runs.
        study: of which `runs` are a part: its table and picture come first.

    Returns:
        `out`.

    Raises:
        ValueError: if there is no run, a folder is no run, or `out` is a folder.
    """
    out = Path(out)
    if not runs:
        raise ValueError("report: no runs given; give one or more run folders, e.g. runs/demo")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; write a file name, e.g. {out / 'report.html'}")
    folders: dict[Path, Path] = {}
    for path in map(Path, runs):
        folders.setdefault(path.resolve(), path)
    write_text(out, _render([read_run(path) for path in folders.values()], title, study))
    return out


def _render(records: Sequence[RunRecord], title: str | None, study: StudySummary | None) -> str:
    labels = run_labels(records)
    runs = [
        words.Shown(record, label, run_style(i))
        for i, (record, label) in enumerate(zip(records, labels, strict=True))
    ]
    figures, _ = figure_columns(records)
    return render(
        "page.html.j2",
        title=title or (" vs ".join(labels) if len(runs) <= 3 else f"{len(runs)} runs compared"),
        lead=words.lead(records),
        runs=runs,
        differences=words.differences(records),
        table=summary_rows(records),
        study=study,
        study_picture=None if study is None else trade_off_picture(study),
        style_of=run_style,
        fingerprints={print_ for run in records if (print_ := run.data.get("fingerprint"))},
        trade_off=_density_and_samples(runs, figures),
        by_class=class_tables(runs, figures),
        samples=_grids(runs),
        progress=_growth(runs),
        error_by_time=_by_time(runs, "error"),
        loss_by_time=_by_time(runs, "loss"),
        examples_by_time=_by_time(runs, "count"),
        maps=_error_maps(runs),
        taus=_taus(runs),
        clipping=_clipping(runs),
        loss=_over_steps(runs, loss=True),
        figures_over_steps=_figures_over_steps(runs, figures),
        weightings={run.setting("objective", "weighting") for run in records},
        speed=_over_steps(runs, loss=False),
        costs=[(run, run.record.cost) for run in runs],
        anatomies=_anatomies(runs),
        protocols=words.protocols(runs, figures),
        versions=words.versions(runs),
        count=words.count,
    )


class _Card(NamedTuple):
    """A picture and what stands below it; `style` where it shows one run only."""

    picture: Picture
    caption: str
    style: RunStyle | None = None


def _density_and_samples(runs: Sequence[Shown], figures: Sequence[Column]) -> Picture | None:
    """The density and the distance that most runs share; None if no run has both."""
    pairs = [
        [
            (run, x, y)
            for run in runs
            if (x := run.record.figure(density.key))
            and (y := run.record.figure(distance.key, distance.name))
            and y.better == "lower"  # of a score, more is better: it is no distance
        ]
        for distance in figures
        if distance.key not in DENSITY_FIGURES
        for density in figures
        if density.key in DENSITY_FIGURES
    ]
    shared = max(pairs, key=len, default=[])
    if not shared:
        return None
    points = [
        Point(run.style, run.label, x.value, y.value, x.standard_error, y.standard_error)
        for run, x, y in shared
    ]
    _, x, y = shared[0]
    name = DENSITY_FIGURES[x.key] if x.key == "nelbo" else x.name
    y_label = f"{y.name}, {y.unit}" if y.unit else y.name
    return trade_off(points, f"{name}, {x.unit or 'bits/dim'}", y_label)


def _grids(runs: Sequence[Shown]) -> list[_Card]:
    """Real images first (once per data set), then one grid per run."""
    real: dict[bytes, _Card] = {}
    samples = []
    for run in runs:
        record = run.record
        if (picture := _image(record.real_samples)) is not None:
            name = words.data_words(record).split(" (")[0]
            caption = f"Real images ({name})" if name else "Real images"
            real.setdefault(picture.data, _Card(picture, caption))
        picture = _image(record.final_samples)
        if picture is not None:
            step = record.evaluation.step if record.evaluation else record.last_step
            how = "final samples" if step is None else f"final samples, step {step:,}"
        elif record.progress:
            picture = _image(record.progress[-1])
            how = f"samples while training, {_step_words(record.progress[-1])}"
        if picture is not None:
            how += words.classes_words(record)
            samples.append(_Card(picture, f"{run.label}: {how}", run.style))
    return [*real.values(), *samples]


def _growth(runs: Sequence[Shown]) -> list[tuple[Shown, list[_Card]]]:
    """Up to four grids per run, evenly spaced over its training."""
    rows = []
    for run in runs:
        paths = run.record.progress
        if len(paths) > 4:
            paths = tuple(paths[round(i * (len(paths) - 1) / 3)] for i in range(4))
        drawn = [(path, picture) for path in paths if (picture := _image(path)) is not None]
        if len(drawn) > 1:
            rows.append((run, [_Card(picture, _step_words(path)) for path, picture in drawn]))
    return rows


def _by_time(runs: Sequence[Shown], what: Literal["loss", "error", "count"]) -> Picture | None:
    """Error or loss by diffusion time late in the training, or the share of all its examples."""
    if what == "count":
        points = [plots.example_share(run.record.metrics) for run in runs]
    else:
        points = [plots.late_means(run.record.metrics, what) for run in runs]
    if not any(x for x, _ in points):
        return None
    series = [Series(run.style, x, y) for run, (x, y) in zip(runs, points, strict=True)]
    axis = "diffusion time t (small: almost clean, 1: pure noise)"
    if what == "count":
        return plots.curves(series, axis, "share of examples", x_scale="time", y_scale="zero")
    label = "weighted loss" if what == "loss" else "error per dimension"
    return plots.curves(series, axis, label, x_scale="time", y_scale="log")


def _over_steps(runs: Sequence[Shown], *, loss: bool) -> Picture | None:
    """The loss, pale as recorded and smoothed on top, or the speed of training."""
    series = []
    for run in runs:
        lines = run.record.metrics
        recorded = [(line.step, line.loss if loss else line.images_per_second) for line in lines]
        known = {step: value for step, value in recorded if value is not None}
        if known:
            values = list(known.values())
            drawn = (plots.smoothed(values), values) if loss else (values, None)
            series.append(Series(run.style, list(known), *drawn))
    if not series:
        return None
    axis = "optimiser step"
    if loss:
        return plots.curves(series, axis, "training loss", x_scale="steps", y_scale="auto")
    return plots.curves(series, axis, "images/s", x_scale="steps", y_scale="zero")


def _figures_over_steps(runs: Sequence[Shown], figures: Sequence[Column]) -> list[_Card]:
    """Each figure by training step, where a run has it at two checkpoints or more."""
    cards = []
    for column in figures:
        series = []
        for run in runs:
            measured = run.record.figure(column.key, column.name)
            known = [] if measured is None else run.record.over_steps(column.key, measured.name)
            if len(known) > 1:
                steps, values = zip(*known, strict=True)
                series.append(Series(run.style, steps, values))
        if series:
            label = f"{column.title}, {column.unit}" if column.unit else column.title
            picture = plots.curves(series, "optimiser step", label, x_scale="steps", y_scale="auto")
            cards.append(_Card(picture, f"{column.title} by training step"))
    return cards


def _error_maps(runs: Sequence[Shown]) -> list[_Card]:
    """The error by diffusion time over training, a map a run, with one scale of colours."""
    bins = [line.by_log10_t for run in runs for line in run.record.metrics if line.by_log10_t]
    errors = [error for each in bins for error in each.error if error is not None and error > 0.0]
    if not errors:
        return []
    limits = (min(errors), max(errors))
    drawn = [(run, plots.error_map(run.record.metrics, limits)) for run in runs]
    return [_Card(picture, run.label, run.style) for run, picture in drawn if picture is not None]


def _taus(runs: Sequence[Shown]) -> list[_Card]:
    """The truncation times that each run drew."""
    cards = []
    for run in runs:
        drawn = [tau for line in run.record.metrics for tau in line.taus]
        if drawn:
            law = format_truncation(run.record, show_eps=True)
            picture = plots.tau_histogram(drawn, run.record.truncation, run.style)
            cards.append(_Card(picture, f"{run.label}: {law}; {len(drawn):,} steps", run.style))
    return cards


def _clipping(runs: Sequence[Shown]) -> tuple[list[_Card], Picture | None]:
    """Gradient norms by truncation time, a plot a run, and the shares of clipped steps of all."""
    cards, shares = [], []
    for run in runs:
        threshold = run.record.number("training", "grad_clip")
        bins = plots.norms_by_tau(run.record.metrics, threshold)
        if bins:
            words = "no clipping" if threshold is None else f"clipped at {threshold:g}"
            picture = plots.norm_plot(bins, threshold, run.style)
            cards.append(_Card(picture, f"{run.label}: {words}", run.style))
            clipped = [each.clipped for each in bins]
            shares.append(Series(run.style, [each.log_tau for each in bins], clipped))
    if not any(any(line.y) for line in shares):
        return cards, None
    axes = ("truncation time τ", "share of the steps")
    return cards, plots.curves(shares, *axes, x_scale="time", y_scale="zero")


def _anatomies(runs: Sequence[Shown]) -> list[AnatomyView]:
    """What `softtrunc anatomy` left in the runs' folders, in the colours of the page."""
    looks = {run.record.name: run.style for run in runs}
    found = []
    for run in runs:
        view = view_anatomy(run.record.path / "anatomy", looks)
        found += [] if view is None else [view]
    return found


def _image(path: Path | None) -> Picture | None:
    return None if path is None else image(path)


def _step_words(path: Path) -> str:
    step = grid_step(path)
    return path.stem if step is None else f"step {step:,}"
