"""Write a run's model as files that `ScoreModel.from_pretrained` and diffusers read."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import check_place, whole_folder
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.text import one_line
from softtrunc.hub import upload_folder
from softtrunc.interop import noise_levels
from softtrunc.jobs.card import model_card
from softtrunc.records import (
    Evaluation,
    RecipeRecord,
    read_evaluation,
    write_evaluation,
    write_recipe,
)
from softtrunc.runs.open_run import OpenRun, open_run
from softtrunc.training import AnyWeights, weights_name

_PICTURE = "samples.png"
# What diffusers makes of the folder: a pipeline whose unet is the model that lies beside the index.
# Its other schedulers take the same settings.
_INDEX_FILE = "model_index.json"
_INDEX = {
    "_class_name": "DDIMPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["softtrunc.interop.diffusers_unet", "DiffusersUNet"],
}


def export_run(
    path: Path,
    out: Path,
    *,
    weights: AnyWeights = "ema",
    licence: str | None = None,
    source: str | None = None,
) -> Path:
    """Write the newest checkpoint of a run into a new folder.

    The folder holds `config.json` and `model.safetensors` (see `ScoreModel.from_pretrained`), a
    model card `README.md`, `recipe.yaml`, `evaluation.json` where it is of these weights, a grid of
    samples where the run has one, and `model_index.json` with `scheduler/scheduler_config.json`,
    which make it a pipeline of diffusers (not of data that are no images). It appears whole or not
    at all.

    Args:
        path: the run folder.
        out: the folder to write; new or empty.
        weights: averaged or raw, or the length of an average to make.
        licence: of the weights, as the Hub names licences; None: not chosen yet.
        source: the name under which others will find the model; None: not known.

    Returns:
        The folder.

    Raises:
        UserError: if the run cannot be opened, or the place is taken or being written.
    """
    with only_one(out, "exporting to it"):
        check_place(out)
        opened = open_run(path, weights=weights)
        with user_errors(f"--out {out}"), whole_folder(out) as partial:
            _write(opened, partial, weights, path.resolve().name, licence, source)
    return out


def _write(
    opened: OpenRun,
    folder: Path,
    weights: AnyWeights,
    title: str,
    licence: str | None,
    source: str | None,
) -> None:
    picture = _newest_grid(opened)
    if picture is not None:  # drawn anew: what lies under its name may hold more than an image
        _read_grid(picture).save(folder / _PICTURE)
    evaluation = _evaluation(opened, weights)
    if evaluation is not None:
        write_evaluation(folder / "evaluation.json", evaluation)
    provenance = {**opened.run.provenance(), "step": opened.step}
    record = RecipeRecord(opened.recipe.model_dump(), provenance)
    write_recipe(folder / "recipe.yaml", record)
    card = model_card(
        opened.recipe,
        opened.card,
        opened.model,
        evaluation,
        title=title,
        step=opened.step,
        weights=weights_name(weights),
        picture=None if picture is None else _PICTURE,
        init_from=provenance.get("init_from"),
        licence=licence,
        source=source,
    )
    opened.model.cpu().save_pretrained(folder, card=card)
    if not opened.card.on_grid:  # a pipeline of diffusers makes pictures
        return
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    levels = noise_levels(opened.model.sde, opened.model.value_range)
    settings = {"_class_name": _INDEX["scheduler"][1], **levels.scheduler_config()}
    scheduler.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    index = json.dumps(_INDEX, indent=1) + "\n"
    (folder / _INDEX_FILE).write_text(index, encoding="utf-8")


def _read_grid(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.convert(image.mode)
    except (OSError, ValueError, SyntaxError) as error:  # as Pillow says that it is none
        raise UserError(f"{path}: not a readable grid of samples: delete it") from error


def _newest_grid(opened: OpenRun) -> Path | None:
    """The grid that evaluation drew, else the last one of training; both show averaged weights.

    A link is left out: it may lead out of the run.
    """
    inside, samples = opened.run.path.resolve(), opened.run.samples
    for grid in (samples / "final.png", *sorted(samples.glob("step-*.png"), reverse=True)):
        own = grid.is_file() and not grid.is_symlink() and grid.resolve().is_relative_to(inside)
        if own:
            return grid
    return None


def _evaluation(opened: OpenRun, weights: AnyWeights) -> Evaluation | None:
    """The run's `evaluation.json`, if it speaks of these weights."""
    file = opened.run.evaluation_file
    if file.is_symlink():
        return None
    with user_errors():
        found = read_evaluation(file)
    if found is None or (found.step, found.weights) != (opened.step, weights_name(weights)):
        return None
    return found if found.figures else None


def push_export(folder: Path, repo_id: str, *, private: bool | None = None) -> str:
    """Upload an exported folder to the Hugging Face Hub.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the Hub cannot be reached or refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return upload_folder(folder, repo_id, private=private)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"--push {repo_id}: {one_line(error, 300)}: the model is in {folder}; log in with "
            "`hf auth login`, then `hf upload` it or export again"
        ) from error
