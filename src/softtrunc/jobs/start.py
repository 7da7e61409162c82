"""What a training starts from where that is not chance: `train --init-from`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from softtrunc.feedback.errors import UserError, several, user_errors
from softtrunc.networks import ScoreUNet
from softtrunc.networks.plain_state import digest
from softtrunc.pretrained import load_exactly
from softtrunc.recipes.build import build_model
from softtrunc.runs.folder import Run
from softtrunc.score import ScoreModel
from softtrunc.training import (
    TrainState,
    Weights,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    read_checkpoint_info,
)

# Fields of a network that leave what its weights compute as it is, or that their shapes tell.
_LEFT_ALONE = {
    "image_size",
    "attention_resolutions",
    "dropout",
    "init_scale",
    "fourier_scale",
    "checkpoint_activations",
}


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Args:
        source: a run folder, the folder of a saved model, a repository of the Hub (owner/name), or
            the name of a model that ships.
        keep_optimizer: go on with a run's last weights, its average and Adam's moments; else with
            the averaged weights and an optimiser that knows nothing.
    """

    source: str
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        if Path(self.source).is_dir():  # the run may be gone on with from elsewhere
            object.__setattr__(self, "source", str(Path(self.source).resolve()))

    @classmethod
    def recorded(cls, provenance: Mapping[str, Any]) -> Start | None:
        """What a run's `recipe.yaml` says that it started from."""
        found = provenance.get("init_from")
        if not isinstance(found, Mapping):
            return None
        return cls(str(found.get("source")), bool(found.get("keep_optimizer")))

    def __str__(self) -> str:
        return f"{self.source}{' with its optimiser' if self.keep_optimizer else ''}"

    @property
    def _run(self) -> Run | None:
        run = Run(Path(self.source))
        return run if run.exists and run.checkpoints.is_dir() else None

    def fill(self, model: ScoreModel) -> dict[str, Any]:
        """Put the weights into a model, whole and on its first device.

        Returns:
            What `recipe.yaml` is to say of them.

        Raises:
            UserError: if they cannot be read, or belong to another network.
        """
        where = f"--init-from {self.source}"
        run = self._run
        if run is None and self.keep_optimizer:
            raise UserError(f"{where}: --keep-optimizer: no run: a saved model has no moments")
        with user_errors(where):
            facts = self._from_model(model) if run is None else self._from_run(run, model)
        return {**asdict(self), **facts, "sha256": digest(model.state_dict())}

    def _from_model(self, model: ScoreModel) -> dict[str, Any]:
        given = ScoreModel.from_pretrained(self.source)
        _check(given, model)
        load_exactly(model, given.state_dict(), "its weights")
        return {"weights": "exported"}

    def _from_run(self, run: Run, model: ScoreModel) -> dict[str, Any]:
        recipe, card = run.recipe(), run.data_card()
        with torch.device("meta"):  # only its shape is asked for
            size = card.height, card.width
            _check(build_model(recipe, channels=card.channels, image_size=size), model)
        found = find_checkpoint(run.checkpoints)
        if self.keep_optimizer and read_checkpoint_info(found).moments == 0:
            raise UserError(
                f"--init-from {run.path}: --keep-optimizer: its checkpoint holds no moments"
            )
        weights: Weights = "raw" if self.keep_optimizer else "ema"
        step = load_weights(found, model, weights).step
        return {"weights": weights, "step": step, "recipe": recipe.name, "data": card.name}

    def remember(self, state: TrainState) -> None:
        """Give a state the average and the moments too, if they are to be kept; at step 0.

        Raises:
            UserError: if they cannot be read or do not fit.
        """
        run = self._run
        if self.keep_optimizer and run is not None:
            with user_errors(f"--init-from {self.source}"):
                fresh, state.posthoc = state.posthoc, None  # it counts from this run's own start
                load_checkpoint(find_checkpoint(run.checkpoints), state)
            state.step, state.posthoc = 0, fresh


def start_of_resumed(run: Run, given: Start | None) -> Start | None:
    """What a run that goes on started from.

    Raises:
        UserError: if it is told that it was something else.
    """
    recorded = Start.recorded(run.provenance())
    if given is not None and given != recorded:
        was = "from random weights" if recorded is None else f"from {recorded}"
        raise UserError(
            f"{run.path}: --resume --init-from {given}: this run started {was}: leave --init-from "
            "out, or choose another --out"
        )
    return recorded


def check_unchanged(run: Run, filled: Mapping[str, Any]) -> None:
    """Refuse to begin again from weights that are no longer those that the run began from.

    Raises:
        UserError: if they are not.
    """
    if run.provenance()["init_from"].get("sha256") != filled["sha256"]:
        raise UserError(
            f"{run.path}: --resume: it has no checkpoint yet, and {filled['source']}, from which "
            "it started, has changed since: start anew with another --out"
        )


def _check(source: ScoreModel, model: ScoreModel) -> None:
    """Refuse weights that mean something else than those of this model.

    Raises:
        ValueError: saying what differs.
    """
    problems = list(_differences(source, model))
    if problems:
        raise ValueError(f"another model: {several(problems)}: change the recipe, or the source")


def _differences(source: ScoreModel, model: ScoreModel) -> Iterator[str]:
    scale = ("sigma_data",) if model.prediction == "edm" else ()
    for name in ("conditioning", "prediction", "value_range", *scale):
        was, now = getattr(source, name), getattr(model, name)
        if was != now:
            yield f"{name} was {was}, is {now}"
    ours, theirs = model.network, source.network
    if isinstance(ours, ScoreUNet) and isinstance(theirs, ScoreUNet):
        now = ours.config.to_dict()
        for name, was in theirs.config.to_dict().items():
            if name not in _LEFT_ALONE and was != now[name]:
                yield f"{name} was {was}, is {now[name]}"
