"""An exported folder becomes a run again, and the models that ship become runs when asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

from softtrunc.data import DataCard
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import whole_folder
from softtrunc.hub import shipped_folder
from softtrunc.recipes.build import build_training
from softtrunc.recipes.load import parse_recipe
from softtrunc.records import read_recipe
from softtrunc.runs.folder import Run
from softtrunc.score import ScoreModel
from softtrunc.training import TrainState, save_checkpoint

_COPIED = ("recipe.yaml", "evaluation.json")


def adopt(folder: Path, out: Path) -> Run:
    """Make a run of a folder that `softtrunc export` wrote; it appears whole or not at all.

    Its one checkpoint holds the exported weights, for both the model and its average, and no
    optimiser state: the run can be measured, sampled from and trained on.

    Args:
        folder: the exported folder.
        out: the run folder to write.

    Raises:
        UserError: if the folder holds no export with its recipe and data card, or `out` is taken.
    """
    run = Run(out)
    run.check_vacant()
    with user_errors(str(folder)):
        record = read_recipe(folder / "recipe.yaml")
        DataCard.from_dict(record.provenance.get("data") or {})
        step = record.provenance.get("step")
        if not isinstance(step, int) or step < 1:
            raise UserError(f"{folder}: recipe.yaml names no step: export the run again")
        recipe = parse_recipe(record.settings, str(folder / "recipe.yaml"))
        state = TrainState.create(ScoreModel.from_pretrained(folder), build_training(recipe))
    state.step = state.ema.updates = step
    with user_errors(f"--out {out}"), whole_folder(out) as partial:
        for name in _COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        save_checkpoint(Run(partial).checkpoints, state)
    return run


def shipped_run(name: str) -> Path | None:
    """The run folder of the model that ships under this name; None: none does.

    It lies in `runs/NAME-shipped` and is made once.
    """
    folder = shipped_folder(name)
    if folder is None:
        return None
    run = Run(Path("runs") / f"{name}-shipped")
    if not run.exists:
        adopt(folder, run.path)
    return run.path
