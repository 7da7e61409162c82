"""What a run folder says of itself: recipe, metrics and figures, written and read here alone.

Nothing here needs torch. Readers take files as far as they go: a run that is still training, or was
killed, cuts its last line short, and an older version wrote less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softtrunc.feedback.files import write_bytes, write_text
from softtrunc.feedback.yaml import dump_yaml, parse_yaml

__all__ = [
    "Evaluation",
    "Figure",
    "FigureData",
    "Metrics",
    "MetricsLine",
    "RecipeRecord",
    "TimeBins",
    "TrainingCost",
    "append_metrics",
    "cut_metrics",
    "median_rate",
    "read_evaluation",
    "read_metrics",
    "read_recipe",
    "write_evaluation",
    "write_recipe",
]


@dataclass(frozen=True)
class RecipeRecord:
    """A run's `recipe.yaml`: its settings, and where they came from (versions, data)."""

    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class TimeBins:
    """Means over the training examples whose `log10 t` lies between neighbouring edges.

    `edges` has one entry more than the others; a mean is None where no example fell. `error` is per
    dimension.
    """

    edges: tuple[float, ...]
    loss: tuple[float | None, ...]
    error: tuple[float | None, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class MetricsLine:
    """One line of `metrics.jsonl`; None where a value is absent or not finite.

    - `loss`: the mean over the steps since the line before.
    - `taus`, `grad_norms`: of each of those steps, the truncation time and the global norm of the
      gradient before clipping; empty where an older version did not record them.
    - `learning_rate`: of the last step. `seconds`: training time so far, over all resumes.
    """

    step: int
    loss: float | None
    taus: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    learning_rate: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    by_log10_t: TimeBins | None = None

    @property
    def scalars(self) -> dict[str, float]:
        """The single numbers that are known, those of lists as the last step has them."""
        known = {
            "step": self.step,
            "loss": self.loss,
            "tau": self.taus[-1] if self.taus else None,
            "grad_norm": self.grad_norms[-1] if self.grad_norms else None,
            "learning_rate": self.learning_rate,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
        }
        return {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True)
class Metrics:
    """The content of `metrics.jsonl`.

    - `lines`: steps strictly increasing; where a resumed run wrote some again, the later ones.
    - `damaged`: numbers of the lines that cannot be read; `cut_short`: the last line is one.
    """

    lines: tuple[MetricsLine, ...]
    damaged: tuple[int, ...]
    cut_short: bool


@dataclass(frozen=True)
class FigureData:
    """The images that a figure is of, or that samples were compared with.

    `n` counts all images of the split, `fingerprint` is their SHA-256, `levels` the number of grey
    levels; `value_range` is what the model sees them as, None where no model saw them.
    """

    name: str
    split: str
    n: int
    fingerprint: str
    levels: int
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figure:
    """A number of `evaluation.json` with everything that it means.

    - `key`: machine name, e.g. "nll_residual"; `name`: what a person reads.
    - `value`, `standard_error` (None: not known), `unit` ("" if it has none).
    - `better`: "lower" or "higher", None if not recorded.
    - `seconds`: what measuring took.
    - `protocol`: counts, solver, tolerances: all that another must know to repeat it.
    - `data`: which images; None if not recorded.
    - `nfe`: network evaluations per example, "mean" and "max".
    - `solver_error`: of an ODE, measured on a few images against a far tighter tolerance: mean and
      root mean square of the difference per image.
    """

    key: str
    name: str
    value: float
    standard_error: float | None
    unit: str
    better: str | None
    seconds: float | None
    protocol: Mapping[str, Any]
    data: FigureData | None = None
    nfe: Mapping[str, float] | None = None
    solver_error: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TrainingCost:
    """What the training took; seconds are wall-clock, the rate is in images per second."""

    seconds: float | None = None
    images_per_second: float | None = None
    parameters: int | None = None
    steps: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything in `evaluation.json`: the figures of one checkpoint and one kind of weights.

    `created` is a time in UTC, ISO 8601; `versions` are those of the packages.
    """

    run: str
    step: int | None
    weights: str
    created: str
    versions: Mapping[str, str]
    figures: tuple[Figure, ...]
    training: TrainingCost


def write_recipe(path: Path, record: RecipeRecord) -> None:
    """Write a run's `recipe.yaml`."""
    write_text(path, dump_yaml({**record.settings, "provenance": record.provenance}))


def read_recipe(path: Path) -> RecipeRecord:
    """Read a run's `recipe.yaml`.

    Raises:
        OSError: if there is none.
        ValueError: naming the file, if it is damaged.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as YAML") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: cut short or edited: it holds no recipe")
    settings = _mapping(content)
    return RecipeRecord(settings, _mapping(settings.pop("provenance", None)))


def append_metrics(path: Path, line: MetricsLine) -> None:
    """Add a line to `metrics.jsonl`."""
    norms = [float(f"{norm:.5g}") for norm in line.grad_norms]  # compact: plots need no more
    values = {**line.scalars, "taus": line.taus, "grad_norms": norms}
    if line.by_log10_t is not None:
        values["by_log10_t"] = asdict(line.by_log10_t)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def cut_metrics(path: Path, step: int) -> None:
    """Forget the lines beyond `step`: they will be computed and written again."""
    kept = [raw + b"\n" for _, raw, line in _rows(path) if line is not None and line.step <= step]
    write_bytes(path, b"".join(kept))


def read_metrics(path: Path) -> Metrics:
    """Read `metrics.jsonl`; no such file is no line."""
    lines: list[MetricsLine] = []
    damaged: list[int] = []
    number = 0
    for number, _, line in _rows(path):
        if line is None:
            damaged.append(number)
            continue
        while lines and lines[-1].step >= line.step:
            lines.pop()
        lines.append(line)
    return Metrics(tuple(lines), tuple(damaged), number in damaged)


def median_rate(lines: Sequence[MetricsLine]) -> float | None:
    """The median of the images per second, None where none was recorded."""
    rates = sorted(line.images_per_second for line in lines if line.images_per_second is not None)
    return rates[len(rates) // 2] if rates else None


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json`.

    Raises:
        ValueError: if a number is not finite.
    """
    write_text(path, json.dumps(asdict(evaluation), indent=1, allow_nan=False) + "\n")


def read_evaluation(path: Path) -> Evaluation | None:
    """Read `evaluation.json`; figures without a finite value are left out.

    Earlier versions wrote one block of data for all figures: each figure gets what the block and
    its own protocol say for certain.

    Returns:
        None if there is no such file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; run `softtrunc evaluate` again")
    written = [_mapping(figure) for figure in _sequence(content.get("figures"))]
    block = _data(_mapping(content.get("data")))
    if block is not None and _mislabelled(block, written):
        block = None
    figures = (_figure(figure, block) for figure in written)
    training = _mapping(content.get("training"))
    return Evaluation(
        run=str(content.get("run") or ""),
        step=_whole(content.get("step")),
        weights=str(content.get("weights") or "unknown"),
        created=str(content.get("created") or ""),
        versions={key: str(value) for key, value in _mapping(content.get("versions")).items()},
        figures=tuple(figure for figure in figures if figure is not None),
        training=TrainingCost(
            seconds=_number(training.get("seconds")),
            images_per_second=_number(training.get("images_per_second")),
            parameters=_whole(training.get("parameters")),
            steps=_whole(training.get("steps")),
            batch_size=_whole(training.get("batch_size")),
        ),
    )


def _rows(path: Path) -> Iterator[tuple[int, bytes, MetricsLine | None]]:
    """Number, text and content of each line that is not blank."""
    for number, raw in enumerate(path.read_bytes().splitlines() if path.is_file() else (), start=1):
        if raw.strip():
            yield number, raw, _metrics_line(raw)


def _metrics_line(raw: bytes) -> MetricsLine | None:
    try:
        values = _mapping(json.loads(raw))
    except (ValueError, RecursionError):
        return None
    step = _whole(values.get("step"))
    if step is None:
        return None
    taus = _numbers(values.get("taus") or [values.get("tau")])
    return MetricsLine(
        step=step,
        loss=_number(values.get("loss")),
        taus=tuple(tau for tau in taus if tau is not None and tau > 0.0),
        grad_norms=tuple(n for n in _numbers(values.get("grad_norms")) if n is not None),
        learning_rate=_number(values.get("learning_rate")),
        images_per_second=_number(values.get("images_per_second")),
        seconds=_number(values.get("seconds")),
        by_log10_t=_time_bins(_mapping(values.get("by_log10_t"))),
    )


def _time_bins(values: Mapping[str, Any]) -> TimeBins | None:
    edges = tuple(edge for edge in _numbers(values.get("edges")) if edge is not None)
    loss, error, count = (_numbers(values.get(key)) for key in ("loss", "error", "count"))
    if not edges or any(len(row) != len(edges) - 1 for row in (loss, error, count)):
        return None
    return TimeBins(edges, loss, error, tuple(int(n or 0) for n in count))


def _figure(values: Mapping[str, Any], block: FigureData | None) -> Figure | None:
    value = _number(values.get("value"))
    if value is None or not values.get("key"):
        return None
    protocol, better = _mapping(values.get("protocol")), values.get("better")
    return Figure(
        key=str(values["key"]),
        name=str(values.get("name") or values["key"]),
        value=value,
        standard_error=_number(values.get("standard_error")),
        unit=str(values.get("unit") or ""),
        better=better if better in ("lower", "higher") else None,
        seconds=_number(values.get("seconds")),
        protocol=protocol,
        data=_data(_mapping(values.get("data"))) or _old_data(protocol, block),
        nfe=_named_numbers(values.get("nfe")),
        solver_error=_named_numbers(values.get("solver_error")),
    )


def _data(values: Mapping[str, Any]) -> FigureData | None:
    n, levels = _whole(values.get("n")), _whole(values.get("levels"))
    words = [str(values.get(key) or "") for key in ("name", "split", "fingerprint")]
    if n is None or levels is None or not all(words):
        return None
    name, split, fingerprint = words
    ends = [end for end in _numbers(values.get("value_range")) if end is not None]
    value_range = (ends[0], ends[1]) if len(ends) == 2 else None
    return FigureData(name, split, n, fingerprint, levels, value_range)


def _old_data(protocol: Mapping[str, Any], block: FigureData | None) -> FigureData | None:
    """What a file with one block of data for all says of the data of one figure."""
    if block is None:
        return None
    fingerprint, n = protocol.get("reference_fingerprint"), _whole(protocol.get("n_reference"))
    if fingerprint is None or n is None:
        return block if protocol.get("split") == block.split else None
    name, _, split = str(protocol.get("reference")).rpartition(" ")
    same = name == block.name  # the levels are those of the block for other splits of its images
    return FigureData(name, split, n, str(fingerprint), block.levels) if same else None


def _mislabelled(block: FigureData, figures: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the block has the split of one evaluation and the images of another, later one."""
    return any(
        protocol.get("reference_fingerprint") == block.fingerprint
        and not str(protocol.get("reference")).endswith(f" {block.split}")
        for protocol in (_mapping(figure.get("protocol")) for figure in figures)
    )


def _mapping(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _numbers(value: object) -> tuple[float | None, ...]:
    return tuple(map(_number, _sequence(value)))


def _named_numbers(value: object) -> dict[str, float] | None:
    named = {key: _number(number) for key, number in _mapping(value).items()}
    return {key: number for key, number in named.items() if number is not None} or None


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
