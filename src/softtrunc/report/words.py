"""The words of the page: what the runs share, where they differ, how they were measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from softtrunc.records import Figure, class_columns, flatten
from softtrunc.report.plots_base import RunStyle
from softtrunc.report.runs import RunRecord
from softtrunc.report.summary import Column, format_setting


@dataclass(frozen=True)
class Shown:
    """A run on the page, with its label and looks."""

    record: RunRecord
    label: str
    style: RunStyle


@dataclass(frozen=True)
class Shared:
    """A fact, and the runs it holds for."""

    item: str
    value: str
    runs: tuple[str, ...]
    extra: tuple[str, ...] = ()


def lead(runs: Sequence[RunRecord]) -> str:
    """One sentence: how many models, which data, network, steps and budget."""
    many = len(runs) > 1
    sentence = f"{len(runs)} score models" if many else "One score model"
    data = _common(map(data_words, runs))
    sentence += f" trained on {data}" if data else " trained on different data" if many else ""
    facts = [
        _common(_worded("{} SDE", str(run.setting("sde", "kind") or "").upper()) for run in runs),
        _common(_worded("{} network", run.setting("network", "preset")) for run in runs),
        _common(_worded("{:,} parameters", run.cost.parameters) for run in runs),
        _common(_worded("{:,} steps", run.cost.steps) for run in runs),
        _common(_worded("batches of {}", run.cost.batch_size) for run in runs),
    ]
    seconds = [run.cost.seconds for run in runs if run.cost.seconds is not None]
    if seconds:
        low, high = _duration(min(seconds)), _duration(max(seconds))
        span = low if low == high else f"{low} to {high}"
        facts.append(f"{span} of training{' each' if many else ''}")
    shared = [fact for fact in facts if fact]
    return sentence + (f": {', '.join(shared)}." if shared else ".")


def data_words(run: RunRecord) -> str:
    """The training data: "digits (1,437 images, 1 x 8 x 8, 17 levels)", "" if not recorded."""
    data = run.data
    name = data.get("name") or run.setting("data", "source")
    if not name:
        return ""
    shape = [data.get(key) for key in ("channels", "height", "width")]
    details = [
        f"{data['count']:,} images" if isinstance(data.get("count"), int) else "",
        " x ".join(map(str, shape)) if all(shape) else "",
        _worded("{} levels", data.get("levels")),
    ]
    known = ", ".join(detail for detail in details if detail)
    return f"{name} ({known})" if known else str(name)


def classes_words(run: RunRecord) -> str:
    """Which class each column of a grid of samples is of, "" where its columns are none."""
    names = run.data.get("classes")
    if run.setting("data", "labels") is not True or not isinstance(names, list | tuple):
        return ""
    if run.setting("sampling", "label") is not None:
        return ""
    columns = class_columns(len(names))
    return "" if columns is None else f"; columns: {', '.join(map(str, names))}"


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """The settings in which the recipes differ, with each run's value."""
    flat = [flatten(run.recipe) for run in runs]
    if len(runs) < 2 or not all(flat):
        return []
    keys = dict.fromkeys(key for settings in flat for key in settings if key != "name")
    rows = [(key, [_text(settings.get(key)) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def protocols(runs: Sequence[Shown], figures: Sequence[Column]) -> list[Shared]:
    """Every figure's protocol and data; runs with the same ones share a line."""
    lines: list[Shared] = []
    for column in figures:
        measured = {
            run.label: figure
            for run in runs
            if (figure := run.record.figure(column.key, column.name)) is not None
        }
        title = column.name or next(iter(measured.values())).name
        for value, labels in _group({k: _protocol(f) for k, f in measured.items()}):
            took = ((label, _took(measured[label])) for label in labels)
            extra = tuple(f"{label}: {words}" for label, words in took if words)
            lines.append(Shared(title, value or "not recorded", tuple(labels), extra))
    return lines


def versions(runs: Sequence[Shown]) -> list[Shared]:
    """Versions, data and weights behind training and evaluation; equal values share a line."""
    training: dict[str, dict[str, str]] = {}
    evaluation: dict[str, dict[str, str]] = {}
    for run in runs:
        for item, value in flatten(run.record.provenance).items():
            training.setdefault(f"training: {item}", {})[run.label] = _text(value)
        found = run.record.evaluation
        if found is not None:
            facts = {"created": found.created, "weights": found.weights, "step": found.step}
            for item, value in flatten(facts | {"versions": found.versions}).items():
                evaluation.setdefault(f"evaluation: {item}", {})[run.label] = _text(value)
    return [
        Shared(item, value, tuple(labels))
        for item, values in (training | evaluation).items()
        for value, labels in _group(values)
    ]


def count(number: float | None) -> str:
    """A number with its thousands apart, a dash for None."""
    return "—" if number is None else f"{number:,.0f}"


def _protocol(figure: Figure) -> str:
    data = {} if figure.data is None else {"data": asdict(figure.data)}
    entries = flatten({**figure.protocol, **data})
    return " · ".join(f"{key}: {_text(value)}" for key, value in sorted(entries.items()))


def _took(figure: Figure) -> str:
    parts = [] if figure.seconds is None else [_duration(figure.seconds)]
    if figure.nfe is not None and "mean" in figure.nfe:
        most = f" (at most {figure.nfe['max']:,.0f})" if "max" in figure.nfe else ""
        parts.append(f"{figure.nfe['mean']:,.4g} network evaluations{most}")
    return ", ".join(parts)


def _group(entries: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """The values of all labels in order of appearance, each with the labels that have it."""
    grouped: dict[str, list[str]] = {}
    for label, value in entries.items():
        grouped.setdefault(value, []).append(label)
    return list(grouped.items())


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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
