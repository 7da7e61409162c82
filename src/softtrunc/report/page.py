"""The report: one self-contained HTML page that compares runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from softtrunc.evaluation.figure import DENSITY_FIGURES
from softtrunc.report import figures
from softtrunc.report.figures import Picture, Point, RunStyle, Series
from softtrunc.report.runs import Measurement, RunSummary, read_run, run_labels
from softtrunc.report.study import StudySummary, trade_off_picture
from softtrunc.report.summary import (
    figure_names,
    format_setting,
    format_truncation,
    format_value,
    summary_rows,
)

__all__ = ["write_report"]

_TIME_AXIS = "diffusion time t (small: almost clean, 1: pure noise)"
_PIXELATED_BELOW = 600


@dataclass(frozen=True)
class _Run:
    summary: RunSummary
    label: str
    style: RunStyle


@dataclass(frozen=True)
class _Card:
    """A picture with the words around it; `style` where it shows one run only."""

    picture: Picture
    alt: str
    caption: str
    style: RunStyle | None = None

    @property
    def pixelated(self) -> bool:
        return self.picture.width is not None and self.picture.width < _PIXELATED_BELOW


@dataclass(frozen=True)
class _Shared:
    """A fact, and the runs it holds for (empty: all of them)."""

    item: str
    value: str
    runs: tuple[str, ...]
    extra: tuple[str, ...] = ()


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    study: StudySummary | None = None,
) -> Path:
    """Write one HTML page, pictures and styles inside, that compares the runs.

    The same folders give the same bytes. The page is written beside `out` and renamed, so that a
    reader (or a crash) never meets half a page.

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
    folders = {Path(path).resolve(): Path(path) for path in reversed(list(runs))}
    summaries = [read_run(path) for path in reversed(list(folders.values()))]
    html = _render(summaries, title, study)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(html, encoding="utf-8")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return out


def _render(summaries: Sequence[RunSummary], title: str | None, study: StudySummary | None) -> str:
    from jinja2 import Environment, StrictUndefined

    runs = [
        _Run(summary, label, figures.run_style(i))
        for i, (summary, label) in enumerate(zip(summaries, run_labels(summaries), strict=True))
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("softtrunc.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    table = summary_rows(summaries)
    return template.render(
        title=title or _title(runs),
        lead=_lead(summaries),
        runs=runs,
        differences=_differences(runs),
        table=table,
        study=study,
        study_picture=None if study is None else _study_picture(study),
        style_of=figures.run_style,
        notes=_notes(runs),
        trade_off=_trade_off(runs),
        samples=_samples(runs),
        progress=_progress(runs),
        by_time=_by_time(runs),
        maps=_maps(runs),
        taus=_taus(runs),
        attention=_attention(runs),
        loss=_loss(runs),
        throughput=_throughput(runs),
        costs=[(run, run.summary.cost) for run in runs],
        protocols=_protocols(runs),
        versions=_versions(runs),
        value=format_value,
        count=_count,
    )


# ---------------------------------------------------------------------------------------------
# Words


def _title(runs: Sequence[_Run]) -> str:
    if len(runs) <= 3:
        return " vs ".join(run.label for run in runs)
    return f"{len(runs)} runs compared"


def _lead(runs: Sequence[RunSummary]) -> str:
    """One sentence: how many models, which data, network, steps and budget."""
    many = len(runs) > 1
    sentence = f"{len(runs)} score models" if many else "One score model"
    data = _common(map(_data_words, runs))
    sentence += f" trained on {data}" if data else " trained on different data" if many else ""
    facts = [
        _common(_sde_words(run) for run in runs),
        _common(_worded("{} network", run.setting("network", "preset")) for run in runs),
        _common(_counted(run.cost.parameters, "parameters") for run in runs),
        _common(_counted(run.cost.steps, "steps") for run in runs),
        _common(_worded("batches of {}", run.cost.batch_size) for run in runs),
    ]
    seconds = [run.cost.seconds for run in runs if run.cost.seconds is not None]
    if seconds:
        low, high = _duration(min(seconds)), _duration(max(seconds))
        span = low if low == high else f"{low} to {high}"
        facts.append(f"{span} of training{' each' if many else ''}")
    shared = [fact for fact in facts if fact]
    return sentence + (f": {', '.join(shared)}." if shared else ".")


def _sde_words(run: RunSummary) -> str:
    kind = run.setting("sde", "kind")
    return f"{str(kind).upper()} SDE" if kind else ""


def _data_words(run: RunSummary) -> str:
    data = run.provenance.get("data")
    data = data if isinstance(data, Mapping) else {}
    name = data.get("name") or run.setting("data", "source")
    if not name:
        return ""
    details = []
    if isinstance(data.get("count"), int):
        details.append(f"{data['count']:,} images")
    shape = [data.get(key) for key in ("channels", "height", "width")]
    if all(isinstance(n, int) for n in shape):
        details.append(" x ".join(str(n) for n in shape))
    if data.get("levels"):
        details.append(f"{data['levels']} levels")
    return f"{name} ({', '.join(details)})" if details else str(name)


def _differences(runs: Sequence[_Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the recipes differ, with each run's value."""
    flat = [_flatten(run.summary.recipe) for run in runs]
    if len(runs) < 2 or not all(flat):
        return []
    keys = dict.fromkeys(key for settings in flat for key in settings if key != "name")
    rows = [(key, [_text(settings.get(key)) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _notes(runs: Sequence[_Run]) -> list[str]:
    """What the folders lack, and what a reader should know before comparing."""
    notes = []
    for run in runs:
        summary = run.summary
        notes += [f"{run.label}: {sentence}." for sentence in summary.missing]
        if summary.skipped_lines:
            lines = "line" if summary.skipped_lines == 1 else "lines"
            notes.append(
                f"{run.label}: {summary.skipped_lines} unreadable {lines} of metrics.jsonl skipped."
            )
        evaluated = summary.evaluation.step if summary.evaluation else None
        last = summary.metrics[-1].step if summary.metrics else None
        if evaluated is not None and last is not None and evaluated < last:
            notes.append(
                f"{run.label}: evaluated at step {evaluated:,}, trained up to step {last:,}."
            )
    trained_on = {print_ for run in runs if (print_ := _fingerprint(run.summary))}
    if len(trained_on) > 1:
        notes.append("The runs were trained on different data (fingerprints differ).")
    return notes


def _fingerprint(run: RunSummary) -> str:
    data = run.provenance.get("data")
    return str(data.get("fingerprint") or "") if isinstance(data, Mapping) else ""


# ---------------------------------------------------------------------------------------------
# Pictures


def _study_picture(study: StudySummary) -> _Card | None:
    picture = trade_off_picture(study)
    if picture is None:
        return None
    return _Card(
        picture,
        "Scatter plot of sample quality against density, one point per setting",
        "Each point is one setting, averaged over its seeds; bars are one standard error of that "
        "mean. The lower left corner is best at both.",
    )


def _trade_off(runs: Sequence[_Run]) -> _Card | None:
    """The density and the distance that most runs share; None if no run has both."""
    summaries = [run.summary for run in runs]
    names = figure_names(summaries)
    pairs = [
        [(run, x, y) for run in runs if (x := _get(run, density)) and (y := _get(run, distance))]
        for distance in names
        if distance[0] not in DENSITY_FIGURES and _lower_is_better(runs, distance)
        for density in names
        if density[0] in DENSITY_FIGURES
    ]
    shared = max(pairs, key=len, default=[])
    if not shared:
        return None
    points = [
        Point(run.style, run.label, x.value, y.value, x.standard_error, y.standard_error)
        for run, x, y in shared
    ]
    x, y = shared[0][1], shared[0][2]
    name = DENSITY_FIGURES[x.key] if x.key == "nelbo" else x.name
    picture = figures.trade_off(
        points, f"{name}, {x.unit or 'bits/dim'}", y.name + (f", {y.unit}" if y.unit else "")
    )
    return _Card(
        picture,
        f"Scatter plot of {y.name} against {x.name}, one point per run",
        "Each point is one run: further left it gives unseen images a higher density, further "
        "down its samples look more like real ones, so the lower left corner is best at both."
        + (" Bars are one standard error." if any(p.x_error or p.y_error for p in points) else ""),
    )


def _get(run: _Run, figure: tuple[str, str | None]) -> Measurement | None:
    return run.summary.measurement(*figure)


def _lower_is_better(runs: Sequence[_Run], figure: tuple[str, str | None]) -> bool:
    return any(m.better == "lower" for run in runs if (m := _get(run, figure)))


def _samples(runs: Sequence[_Run]) -> list[_Card]:
    """Real images first (once per data set), then one grid per run."""
    cards: list[_Card] = []
    real: dict[bytes, _Card] = {}
    for run in runs:
        picture = _image(run.summary.real_samples)
        if picture is not None and picture.data not in real:
            name = _data_words(run.summary).split(" (")[0]
            caption = f"Real images{f' ({name})' if name else ''}"
            real[picture.data] = _Card(picture, caption, caption + _reduced(picture))
    cards += real.values()
    for run in runs:
        summary = run.summary
        picture = _image(summary.final_samples)
        if picture is not None:
            evaluation = summary.evaluation
            step = evaluation.step if evaluation else summary.last_step
            how = "final samples" + (f", step {step:,}" if step is not None else "")
        elif summary.progress:
            picture = _image(summary.progress[-1])
            how = f"samples while training, {_step_words(summary.progress[-1])}"
        if picture is not None:
            caption = f"{run.label}: {how}"
            cards.append(_Card(picture, caption, caption + _reduced(picture), run.style))
    return cards


def _progress(runs: Sequence[_Run]) -> list[tuple[_Run, list[_Card]]]:
    """Up to four grids per run, evenly spaced over its training."""
    rows = []
    for run in runs:
        paths = run.summary.progress
        if len(paths) > 4:
            paths = tuple(paths[round(i * (len(paths) - 1) / 3)] for i in range(4))
        found = ((path, _image(path)) for path in paths)
        cards = [
            _Card(picture, f"{run.label}, {_step_words(path)}", _step_words(path))
            for path, picture in found
            if picture is not None
        ]
        if len(cards) > 1:
            rows.append((run, cards))
    return rows


def _image(path: Path | None) -> Picture | None:
    return None if path is None else figures.image(path)


def _reduced(picture: Picture) -> str:
    return " (shown reduced)" if picture.reduced else ""


def _step_words(path: Path) -> str:
    digits = path.stem.removeprefix("step-")
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem


def _by_time(runs: Sequence[_Run]) -> list[_Card]:
    errors = [Series(run.style, *figures.late_means(run.summary.metrics, "error")) for run in runs]
    losses = [Series(run.style, *figures.late_means(run.summary.metrics, "loss")) for run in runs]
    if not any(line.x for line in errors):
        return []
    return [
        _Card(
            figures.curves(
                errors, _TIME_AXIS, "error per dimension", x_scale="time", y_scale="log"
            ),
            "Unweighted error by diffusion time, one line per run",
            "Score error: how far the predicted noise is from the noise that was added, squared, "
            "averaged over the last third of the training. Small t decides the density, large t "
            "decides what samples look like.",
        ),
        _Card(
            figures.curves(losses, _TIME_AXIS, "weighted loss", x_scale="time", y_scale="log"),
            "Weighted loss by diffusion time, one line per run",
            "Weighted loss: the same error with the weight that the optimiser gives it, over the "
            "same steps.",
        ),
    ]


def _maps(runs: Sequence[_Run]) -> list[_Card]:
    errors = [
        error
        for run in runs
        for line in run.summary.metrics
        if line.by_log10_t is not None
        for error in line.by_log10_t.error
        if error is not None and error > 0.0
    ]
    if not errors:
        return []
    limits = (min(errors), max(errors))
    drawn = ((run, figures.error_map(run.summary.metrics, limits)) for run in runs)
    return [
        _Card(
            picture,
            f"Heat map of the error of {run.label} by diffusion time over training",
            run.label,
            run.style,
        )
        for run, picture in drawn
        if picture is not None
    ]


def _taus(runs: Sequence[_Run]) -> list[_Card]:
    cards = []
    for run in runs:
        taus = [tau for line in run.summary.metrics for tau in line.taus]
        if taus:
            law = format_truncation(run.summary, show_eps=True)
            cards.append(
                _Card(
                    figures.tau_histogram(taus, run.summary.truncation, run.style),
                    f"Histogram of the truncation times of {run.label}",
                    f"{run.label}: {law}; {len(taus):,} steps",
                    run.style,
                )
            )
    return cards


def _attention(runs: Sequence[_Run]) -> _Card | None:
    shares = [Series(run.style, *figures.example_share(run.summary.metrics)) for run in runs]
    if not any(line.x for line in shares):
        return None
    return _Card(
        figures.curves(shares, _TIME_AXIS, "share of examples", x_scale="time", y_scale="zero"),
        "Share of training examples by diffusion time, one line per run",
        "At which diffusion times the training examples of the whole run were drawn: a random "
        "truncation time moves them from small t to large t.",
    )


def _loss(runs: Sequence[_Run]) -> _Card | None:
    series = []
    for run in runs:
        known = [(line.step, line.loss) for line in run.summary.metrics if line.loss is not None]
        raw = [loss for _, loss in known]
        if raw:
            steps = [float(step) for step, _ in known]
            series.append(Series(run.style, steps, figures.smoothed(raw), raw))
    if not series:
        return None
    weightings = {run.summary.setting("objective", "weighting") for run in runs}
    return _Card(
        figures.curves(series, "optimiser step", "training loss", x_scale="steps", y_scale="auto"),
        "Training loss over steps, one line per run",
        "What the optimiser minimised, as recorded (pale) and smoothed. A random truncation time "
        "makes the loss jump from step to step; that is no sign of trouble."
        + (
            " Heights of runs with different weightings cannot be compared."
            if len(weightings) > 1
            else ""
        ),
    )


def _throughput(runs: Sequence[_Run]) -> _Card | None:
    series = []
    for run in runs:
        rates = [
            (float(line.step), line.images_per_second)
            for line in run.summary.metrics
            if line.images_per_second is not None
        ]
        if rates:
            series.append(Series(run.style, [s for s, _ in rates], [r for _, r in rates]))
    if not series:
        return None
    return _Card(
        figures.curves(series, "optimiser step", "images/s", x_scale="steps", y_scale="zero"),
        "Images per second over steps, one line per run",
        "How many training images per second the machine got through. Drawing the truncation "
        "time costs nothing, so runs of one network on one idle machine should lie together.",
    )


# ---------------------------------------------------------------------------------------------
# Protocols and versions


def _protocols(runs: Sequence[_Run]) -> list[_Shared]:
    """Every figure's protocol; runs with the same one share a line."""
    lines: list[_Shared] = []
    summaries = [run.summary for run in runs]
    for key, name in figure_names(summaries):
        measured = [(run.label, m) for run in runs if (m := _get(run, (key, name)))]
        title = name or measured[0][1].name
        entries = [
            (
                label,
                " · ".join(f"{k}: {_text(v)}" for k, v in sorted(_flatten(m.protocol).items())),
            )
            for label, m in measured
        ]
        for value, labels in _group(entries):
            took = tuple(
                f"{label}: {words}"
                for label, m in measured
                if label in labels and (words := _took(m))
            )
            lines.append(_Shared(title, value or "not recorded", _unless_all(labels, runs), took))
    return lines


def _took(measured: Measurement) -> str:
    parts = []
    if measured.seconds is not None:
        parts.append(_duration(measured.seconds))
    if measured.nfe_mean is not None:
        most = f" (at most {measured.nfe_max:,.0f})" if measured.nfe_max is not None else ""
        parts.append(f"{measured.nfe_mean:,.4g} network evaluations{most}")
    return ", ".join(parts)


def _versions(runs: Sequence[_Run]) -> list[_Shared]:
    """Versions, data and weights behind training and evaluation; equal values share a line."""
    facts: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        summary = run.summary
        found = {f"training: {k}": v for k, v in _flatten(summary.provenance).items()}
        if summary.evaluation is not None:
            evaluation = summary.evaluation
            record = {
                "created": evaluation.created,
                "weights": evaluation.weights,
                "step": evaluation.step,
                "versions": evaluation.versions,
                "data": evaluation.data,
            }
            found |= {f"evaluation: {k}": v for k, v in _flatten(record).items()}
        for item, value in found.items():
            facts.setdefault(item, []).append((run.label, _text(value)))
    return [
        _Shared(item, value, _unless_all(labels, runs))
        for item, entries in sorted(
            facts.items(), key=lambda fact: fact[0].split(":")[0] != "training"
        )
        for value, labels in _group(entries)
    ]


# ---------------------------------------------------------------------------------------------
# Helpers


def _group(entries: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Values in order of appearance, each with the labels that have it."""
    grouped: dict[str, list[str]] = {}
    for label, value in entries:
        grouped.setdefault(value, []).append(label)
    return list(grouped.items())


def _unless_all(labels: Sequence[str], runs: Sequence[_Run]) -> tuple[str, ...]:
    return () if len(labels) == len(runs) else tuple(labels)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: object) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_setting(value)
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def _common(values: Iterable[str]) -> str:
    """The value if all runs have the same one, otherwise nothing."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""


def _worded(words: str, value: object) -> str:
    return words.format(value) if value else ""


def _counted(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}" if number else ""


def _count(number: float | None) -> str:
    return "—" if number is None else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
