"""A run folder: what training writes and everything else reads."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from softtrunc import records
from softtrunc.data import DataCard
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import check_place
from softtrunc.recipes.load import parse_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.records import MetricsLine, RecipeRecord, flatten

__all__ = ["UNKNOWN_FINGERPRINT", "Run", "differing", "flatten", "now", "package_versions"]

UNKNOWN_FINGERPRINT = "unknown"
"""In the data card of an imported run, whose training data were not at hand."""

# What may change when a run goes on: how long it runs, what it writes and how it is computed up to
# rounding and the draws of dropout; not what it computes.
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
    "training.precision",
    "training.compile",
    "training.tf32",
    "training.channels_last",
    "training.timeout",
    "training.shard",
    "network.options.checkpoint_activations",
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
    def averages(self) -> Path:
        """The folder of snapshots of averages, see `training.posthoc_ema`."""
        return self.path / "averages"

    @property
    def samples(self) -> Path:
        """The folder of sample grids."""
        return self.path / "samples"

    @property
    def evaluation_file(self) -> Path:
        """Every figure with its protocol."""
        return self.path / "evaluation.json"

    def earlier_evaluation_file(self, step: int, weights: str) -> Path:
        """The figures of another checkpoint than the newest, or of other weights."""
        return self.path / "evaluations" / f"step-{step:08d}-{weights}.json"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.recipe_file.exists()

    def _record(self) -> RecipeRecord:
        if not self.recipe_file.is_file():
            raise UserError(
                f"{self.path}: no run here (no recipe.yaml): name a folder that "
                "`softtrunc train` wrote"
            )
        with user_errors():
            return records.read_recipe(self.recipe_file)

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            UserError: if this is no run folder, or its recipe is damaged.
        """
        return parse_recipe(self._record().settings, str(self.recipe_file))

    def data_card(self) -> DataCard:
        """What the training data were.

        Raises:
            UserError: if this is no run folder, or its recipe is damaged.
        """
        with user_errors(f"{self.recipe_file}: provenance.data"):
            return DataCard.from_dict(self._record().provenance.get("data") or {})

    def provenance(self) -> Mapping[str, Any]:
        """When and with what the run was started, and its data card.

        Raises:
            UserError: if this is no run folder, or its recipe is damaged.
        """
        return self._record().provenance

    def start(
        self,
        recipe: Recipe,
        card: DataCard,
        *,
        processes: int = 1,
        init_from: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `recipe.yaml`; the run exists from here on.

        Args:
            recipe: of the run.
            card: of its data.
            processes: that train together.
            init_from: what is known of the weights that it starts from; None: random ones.
        """
        how = {"created": now(), "versions": package_versions(), "processes": processes}
        begun = {} if init_from is None else {"init_from": dict(init_from)}
        self._write(recipe, {**how, **begun, "data": asdict(card)})

    def go_on(self, recipe: Recipe, step: int, *, processes: int) -> None:
        """Write `recipe.yaml` anew, with what changed at `step` beside how the run was started."""
        was = self._record()
        changes = differing(self.recipe().model_dump(), recipe.model_dump())
        resumed = {
            "step": step,
            "at": now(),
            "versions": package_versions(),
            "processes": processes,
            "changed": {key: {"from": old, "to": new} for key, (old, new) in changes.items()},
        }
        earlier = was.provenance.get("resumed") or []
        self._write(recipe, {**was.provenance, "resumed": [*earlier, resumed]})

    def _write(self, recipe: Recipe, provenance: Mapping[str, Any]) -> None:
        records.write_recipe(self.recipe_file, RecipeRecord(recipe.model_dump(), provenance))

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
        free = set(_FREE_ON_RESUME)
        if recipe.training.schedule != "constant":
            free.remove("training.steps")  # they decide every learning rate
        wrong = [
            f"{key} was {old!r}, is {new!r}"
            for key, (old, new) in differing(
                self.recipe().model_dump(), recipe.model_dump()
            ).items()
            if not any(key == each or key.startswith(each + ".") for each in free)
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

    def check_places(self) -> None:
        """Refuse a run to which no more can be written, before anything of it is changed.

        Raises:
            UserError: naming what stands in the place of a file, or a damaged line.
        """
        wanted = dict.fromkeys((self.samples, self.checkpoints, self.averages), Path.is_dir)
        wanted |= dict.fromkeys((self.metrics_file, self.samples / "data.png"), Path.is_file)
        for path, fits in wanted.items():
            if (path.exists() or path.is_symlink()) and not fits(path):
                what = "folder" if fits is Path.is_dir else "regular file"
                raise UserError(f"{path}: is no {what}: delete it, or put back what was there")
        self.metrics()

    def metrics(self) -> tuple[MetricsLine, ...]:
        """The lines of `metrics.jsonl`; a last one cut short by a kill is left out.

        Raises:
            UserError: if any other line is damaged.
        """
        found = records.read_metrics(self.metrics_file)
        for number in found.damaged[:-1] if found.cut_short else found.damaged:
            raise UserError(f"{self.metrics_file}: line {number} is damaged: mend or delete it")
        return found.lines

    def cut_metrics(self, step: int) -> None:
        """Forget lines beyond `step`: they will be computed and written again.

        Raises:
            UserError: if a line is damaged.
        """
        self.metrics()
        records.cut_metrics(self.metrics_file, step)
