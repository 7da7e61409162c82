"""The tables of `softtrunc anatomy`, for 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from softtrunc.records import (
    Anatomy,
    AnatomyBin,
    AnatomyChange,
    AnatomyRun,
    ChimeraPoint,
    RegenerationPoint,
)


def anatomy_tables(content: Anatomy) -> Iterator[Table]:
    """What `anatomy.json` holds: the bins, then what became of samples."""
    if content.difference is None:
        yield _one_run(content.runs[0], content.unit)
        yield _regeneration(content.regeneration)
        return
    yield _two_runs(content.runs, content.difference, content.unit)
    if content.runs[0].distance is not None:
        yield _chimeras(content.runs, content.chimera, content.distance)


_TERMS = ("prior", "residual", "offset")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, justify="right", overflow="fold", no_wrap=column == "log-SNR")
    return table


def _ends(part: AnatomyBin) -> tuple[str, str]:
    low, high = part.log_snr
    return f"{low:.1f} to {high:.1f}", f"{part.t[1]:.2g}"


def _one_run(run: AnatomyRun, unit: str) -> Table:
    """The bound and the law of times."""
    law, recorded = run.law_is_known, run.law_is_recorded
    table = _table(
        f"{run.name}: the bound by time, {unit}",
        (
            *("log-SNR", "t up to", "bits/dim", "± SE", "share", "error"),
            *(("draws", "weight") if law else ()),
            *(("clipped",) if recorded else ()),
        ),
    )
    if not law:
        table.caption = (
            "draws and weights are not known: the loss has two halves, weighed by their errors"
        )
    elif not recorded:
        table.caption = "draws and weight by its recipe: no steps of its training are recorded"
    for part in run.bins:
        cells = [f"{part.share_of_draws:.1%}", f"{part.weight:.3f}"] if law else []
        if recorded:
            cells.append(f"{part.clipped_weight:.3f}")
        table.add_row(
            *_ends(part),
            f"{part.bits_per_dim:.4f}",
            f"{part.standard_error:.4f}",
            f"{part.share_below:.1%}",
            f"{part.error:.4f}",
            *cells,
        )
    for name in _TERMS:
        table.add_row(name, "", f"{getattr(run, name):.4f}")
    total = (f"{run.total_bits_per_dim:.4f}", f"{run.standard_error:.4f}")
    table.add_row("total", "", *total, style="bold")
    return table


def _two_runs(runs: Sequence[AnatomyRun], difference: AnatomyChange, unit: str) -> Table:
    """Two bounds and their paired difference."""
    first, second = (run.name for run in runs)
    table = _table(
        f"the bound by time, {unit}: {first}, {second}, and the second minus the first",
        ("log-SNR", "t up to", first, second, "change", "± SE", "error", "change"),
    )
    for ours, theirs, change in zip(runs[0].bins, runs[1].bins, difference.bins, strict=True):
        table.add_row(
            *_ends(ours),
            f"{ours.bits_per_dim:.4f}",
            f"{theirs.bits_per_dim:.4f}",
            f"{change.bits_per_dim:+.4f}",
            f"{change.standard_error:.4f}",
            f"{ours.error:.4f}",
            f"{change.error:+.4f}",
        )
    for name in _TERMS:
        values = [getattr(run, name) for run in runs]
        table.add_row(name, "", *(f"{v:.4f}" for v in values), f"{values[1] - values[0]:+.4f}")
    table.add_row(
        "total",
        "",
        *(f"{run.total_bits_per_dim:.4f}" for run in runs),
        f"{difference.total_bits_per_dim:+.4f}",
        f"{difference.standard_error:.4f}",
        style="bold",
    )
    return table


def _chimeras(runs: Sequence[AnatomyRun], curves: Sequence[ChimeraPoint], distance: str) -> Table:
    """Distances by the time at which one run takes over from the other."""
    first, second = runs
    a, b = first.name, second.name
    table = _table(f"{distance} of samples to the training images", ("t", "log-SNR", a, b))
    table.columns[2].header, table.columns[3].header = f"{a} above t", f"{b} above t"
    table.add_row("none below", "", f"{first.distance:.3f}", f"{second.distance:.3f}")
    half = len(curves) // 2
    for one, other in zip(curves[:half], curves[half:], strict=True):
        distances = (f"{part.distance:.3f}" for part in (one, other))
        table.add_row(f"{one.t:.2g}", f"{one.log_snr:.1f}", *distances)
    table.add_row("none above", "", f"{second.distance:.3f}", f"{first.distance:.3f}")
    return table


def _regeneration(curve: Sequence[RegenerationPoint]) -> Table:
    table = _table(
        "images noised up to t and sampled again", ("t", "log-SNR", "RMS error", "correlation")
    )
    for part in curve:
        table.add_row(
            f"{part.t:.2g}",
            f"{part.log_snr:.1f}",
            f"{part.squared_error**0.5:.4f}",
            f"{part.correlation:.4f}",
        )
    return table
