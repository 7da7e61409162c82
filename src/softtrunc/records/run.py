"""Recipe, metrics and figures of a run.

Readers take files as far as they go: a run that is still training, or was killed, cuts its last
line short, and an older version wrote less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FiniteFloat, TypeAdapter, ValidationError

from softtrunc.feedback.files import write_bytes, write_text
from softtrunc.feedback.json import parse_json, read_json
from softtrunc.feedback.yaml import dump_yaml, parse_yaml


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


Known = Annotated[float | None, BeforeValidator(_finite)]
"""A number, None where it is absent or not finite."""
Whole = Annotated[int | None, BeforeValidator(_finite)]
"""Likewise a whole one."""


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
    loss: tuple[Known, ...]
    error: tuple[Known, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class MetricsLine:
    """One line of `metrics.jsonl`; None where a value is absent or not finite.

    - `loss`: the mean over the steps since the line before.
    - `taus`, `grad_norms`: of each of those steps, the truncation time and the global norm of the
      gradient before clipping; empty where an older version did not record them. A step was
      clipped, to that length, if its norm is above the recipe's `training.grad_clip`.
    - `learning_rate`: of the last step. `seconds`: training time so far, over all resumes.
    """

    step: int
    loss: Known = None
    taus: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    learning_rate: Known = None
    images_per_second: Known = None
    seconds: Known = None
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
    levels (0 of floats, which are no images); `value_range` is what the model sees them as, None
    where no model saw them.
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
    - `by_class`: the same of each class's images alone, by the class's name.
    - `solver_error`: of an ODE, measured on a few images against a far tighter tolerance: mean and
      root mean square of the difference per image.
    """

    key: str
    name: str
    value: FiniteFloat
    standard_error: Known = None
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    seconds: Known = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    data: FigureData | None = None
    nfe: Mapping[str, float] | None = None
    by_class: Mapping[str, FiniteFloat] | None = None
    solver_error: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TrainingCost:
    """What the training took; seconds are wall-clock, the rate is in images per second."""

    seconds: Known = None
    images_per_second: Known = None
    parameters: Whole = None
    steps: Whole = None
    batch_size: Whole = None


@dataclass(frozen=True)
class Evaluation:
    """Everything in `evaluation.json`: the figures of one checkpoint and one kind of weights.

    `created` is a time in UTC, ISO 8601; `versions` are those of the packages.
    """

    run: str = ""
    step: Whole = None
    weights: str = "unknown"
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    training: TrainingCost = TrainingCost()


_MOST_COLUMNS = 20  # of a grid that a person can take in

_LINE = TypeAdapter(MetricsLine)
_DATA = TypeAdapter(FigureData)
_FIGURE = TypeAdapter(Figure)
_EVALUATION = TypeAdapter(Evaluation)


def class_columns(classes: int) -> int | None:
    """Columns of a grid of samples whose classes take turns: one for each class.

    None where that would be one column, or more than a person takes in: the grid is near-square.
    """
    return classes if 1 < classes <= _MOST_COLUMNS else None


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
    provenance = content.pop("provenance", None)
    return RecipeRecord(content, provenance if isinstance(provenance, dict) else {})


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
    if not path.exists():
        return None
    try:
        content = read_json(path)
        written = content.pop("figures", [])
        block = _old_block(content.pop("data", None), written)
        return _EVALUATION.validate_python({**content, "figures": _figures(written, block)})
    except (ValueError, TypeError, AttributeError, FileNotFoundError) as error:
        raise ValueError(
            f"{path}: damaged: mend it, or move it away and run `softtrunc evaluate` again"
        ) from error


def flatten(value: object, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots; tuples become lists."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _rows(path: Path) -> Iterator[tuple[int, bytes, MetricsLine | None]]:
    """Number, text and content of each line that is not blank."""
    for number, raw in enumerate(path.read_bytes().splitlines() if path.is_file() else (), start=1):
        if raw.strip():
            yield number, raw, _metrics_line(raw)


def _metrics_line(raw: bytes) -> MetricsLine | None:
    try:
        values = parse_json(raw)
        taus = values.get("taus") or [values.get("tau")]
        values["taus"] = [tau for tau in taus if _finite(tau) and tau > 0.0]
        return _LINE.validate_python(values)
    except (ValueError, TypeError, AttributeError):
        return None


def _figures(written: Sequence[dict[str, Any]], block: FigureData | None) -> Iterator[Figure]:
    for values in written:
        if values.get("data") is None and block is not None:
            values["data"] = _old_data(values.get("protocol") or {}, block)
        try:
            yield _FIGURE.validate_python({"name": values.get("key"), **values})
        except ValidationError:
            continue  # it has no value


def _old_block(values: object, figures: Sequence[Mapping[str, Any]]) -> FigureData | None:
    """The one block of data of an older file, None where it cannot be believed.

    After a second evaluation on other images it had the split of one and the images of the other.
    """
    try:
        block = _DATA.validate_python(values)
    except ValidationError:
        return None
    protocols = [figure.get("protocol") or {} for figure in figures]
    mislabelled = any(
        protocol.get("reference_fingerprint") == block.fingerprint
        and not str(protocol.get("reference")).endswith(f" {block.split}")
        for protocol in protocols
    )
    return None if mislabelled else block


def _old_data(protocol: Mapping[str, Any], block: FigureData) -> FigureData | None:
    """What an older file says of the data of one figure."""
    fingerprint, n = protocol.get("reference_fingerprint"), protocol.get("n_reference")
    if fingerprint is None or n is None:
        return block if protocol.get("split") == block.split else None
    name, _, split = str(protocol.get("reference")).rpartition(" ")
    same = name == block.name  # other splits of the same images have the levels of the block
    return FigureData(name, split, n, fingerprint, block.levels) if same else None
