"""A run folder: what training writes and everything else reads."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from softtrunc.data import DataCard
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import check_place, write_text
from softtrunc.recipes.load import dump_recipe, parse_recipe
from softtrunc.recipes.schema import Recipe

__all__ = ["UNKNOWN_FINGERPRINT", "Run", "differing", "flatten", "now", "package_versions"]

UNKNOWN_FINGERPRINT = "unknown"
"""In the data card of an imported run, whose training data were not at hand."""

# What may change when a run goes on: how long it runs and what it writes, not what it computes.
_FREE_ON_RESUME = (
    "name",
    "description",
    "training.steps",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.samples",
    "training.tracker",
    "training.micro_batch_size",
    "sampling",
    "evaluation",
    "data.source",  # the fingerprint says whether the data are the same, not where they lie
)


def now() -> str:
    """The present time in UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def package_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("softtrunc", "torch", "numpy", "accelerate")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The old and the new value by joined key, where two nested mappings differ."""
    old, new = flatten(was), flatten(now)
    keys = sorted(old.keys() | new.keys())
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


@dataclass(frozen=True)
class Run:
    """A run folder on disk."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe with its provenance."""
        return self.path / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """The folder of sample grids."""
        return self.path / "samples"

    @property
    def evaluation_file(self) -> Path:
        """Every figure with its protocol."""
        return self.path / "evaluation.json"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.recipe_file.exists()

    def _content(self) -> dict[str, Any]:
        if not self.recipe_file.is_file():
            raise UserError(
                f"{self.path}: no run here (no recipe.yaml): name a folder that "
                "`softtrunc train` wrote"
            )
        try:
            content = yaml.safe_load(self.recipe_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.recipe_file}: not readable as YAML") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.recipe_file}: cut short or edited: it holds no recipe")
        return content

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            UserError: if this is no run folder, or its recipe is damaged.
        """
        content = self._content()
        content.pop("provenance", None)
        return parse_recipe(content, str(self.recipe_file))

    def data_card(self) -> DataCard:
        """What the training data were.

        Raises:
            UserError: if this is no run folder, or its recipe is damaged.
        """
        provenance = self._content().get("provenance") or {}
        with user_errors(f"{self.recipe_file}: provenance.data"):
            return DataCard.from_dict(provenance.get("data") or {})

    def start(self, recipe: Recipe, card: DataCard) -> None:
        """Write `recipe.yaml`; the run exists from here on."""
        self.path.mkdir(parents=True, exist_ok=True)
        provenance = {"created": now(), "versions": package_versions(), "data": asdict(card)}
        write_text(self.recipe_file, dump_recipe(recipe, provenance))

    def check_vacant(self) -> None:
        """Refuse a folder that holds a run or anything else.

        Raises:
            UserError: if the folder is taken.
        """
        if self.exists:
            raise UserError(
                f"{self.path}: holds a run already: add --resume to go on with it, or choose "
                "another --out"
            )
        check_place(self.path)

    def check_same(self, recipe: Recipe, card: DataCard) -> None:
        """Refuse to go on with another recipe or other data.

        Raises:
            UserError: saying what differs.
        """
        wrong = [
            f"{key} was {old!r}, is {new!r}"
            for key, (old, new) in differing(
                self.recipe().model_dump(), recipe.model_dump()
            ).items()
            if not any(key == free or key.startswith(free + ".") for free in _FREE_ON_RESUME)
        ]
        if wrong:
            raise UserError(
                f"{self.path}: --resume with another recipe: {'; '.join(wrong)}: give the "
                "recipe it was started with, or choose another --out"
            )
        before = self.data_card()
        if before.fingerprint != card.fingerprint:
            raise UserError(
                f"{self.path}: --resume with other data: {before.name} with {before.count} images "
                f"(SHA-256 {before.fingerprint[:12]}) was {card.name} with {card.count} images "
                f"(SHA-256 {card.fingerprint[:12]}): give the data it was started with"
            )

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a last line cut short by a kill is left out.

        Raises:
            UserError: if any other line is damaged.
        """
        if not self.metrics_file.exists():
            return []
        rows: list[dict[str, Any]] = []
        lines = self.metrics_file.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                int(row["step"])
                rows.append(row)
            except (ValueError, KeyError, TypeError):
                if number < len(lines):
                    raise UserError(
                        f"{self.metrics_file}: line {number} is damaged: mend or delete it"
                    ) from None
        return rows

    def cut_metrics(self, step: int) -> None:
        """Forget rows beyond `step`: they will be computed and written again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
