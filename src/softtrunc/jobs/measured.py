"""What the evaluation of a recipe writes unless told otherwise, and whether it is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from softtrunc.evaluation.distances import against
from softtrunc.evaluation.features import DIGITS, PACKAGED, extractor_identity
from softtrunc.evaluation.figure import FORMS
from softtrunc.evaluation.protocol import DensityProtocol
from softtrunc.feedback.errors import UserError
from softtrunc.recipes.build import build_sde
from softtrunc.recipes.load import override_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.records import Figure, read_evaluation
from softtrunc.runs.folder import Run, flatten


def knows_cells(recipe: Recipe) -> bool:
    """Whether the model was trained on what the recipe's bits per dimension are of.

    Trained without dequantisation it saw the grey levels, and nothing of the cells between them:
    figures of the levels are tight, all others are bounds, but loose ones, measured when asked for.
    """
    of_levels = (FORMS[key].of_levels for key in recipe.evaluation.figures)
    floats = recipe.data.value_range is not None
    return floats or recipe.data.dequantize or all(of_levels)


def check_extractor(recipe: Recipe, overrides: Sequence[str], where: str) -> None:
    """Refuse an extractor that a file chose: TorchScript is code, and whoever runs it names it.

    Args:
        recipe: as the file says it, before the overrides.
        overrides: `a.b=c` changes from the command line.
        where: what the file is called.

    Raises:
        UserError: if its path comes from the file alone.
    """
    named = recipe.evaluation.features
    if named is None or named in PACKAGED:
        return
    bare = recipe.evaluation.model_copy(update={"features": None})
    told = override_recipe(recipe.model_copy(update={"evaluation": bare}), overrides, "--set")
    if told.evaluation.features is None:
        raise UserError(
            f"{where}: its recipe names the TorchScript file {named!r}, which is code: give "
            f"--features {named} (--set evaluation.features=PATH) to run it"
        )


def reference_splits(recipe: Recipe) -> tuple[str, ...]:
    """What samples are compared with.

    The field's distances are to the training images. Held-out ones tell memory from skill, but
    only where they are many for the number of features, as the digits are for theirs.
    """
    return ("train", "test") if recipe.evaluation.features == DIGITS else ("train",)


def density_protocol(recipe: Recipe, limit: int | None = None) -> DensityProtocol:
    """How bits per dimension are measured, of the first `limit` images or of all."""
    names = {field.name for field in dataclasses.fields(DensityProtocol)}
    settings = recipe.evaluation.model_dump(include=names)
    settings |= {"dequantized": recipe.data.dequantize, "labels": recipe.data.labels}
    settings["data_range"] = recipe.data.value_range
    return DensityProtocol(**settings, limit=limit)


def dequantizer_settings(recipe: Recipe) -> dict[str, object]:
    """What the protocol of a learned figure says of the dequantiser's size and training."""
    settings = recipe.evaluation.dequantizer.model_dump()
    return {"training_steps": settings.pop("steps"), **settings}


def samples_protocol(recipe: Recipe) -> dict[str, object]:
    """What the protocol of a figure of samples says of how they came about."""
    return {
        "sampler": recipe.sampling.model_dump(),
        "quantization": "clipped, rounded to the nearest level",
        "seed": recipe.evaluation.seed,
    }


def measured_figures(run: Run, recipe: Recipe) -> list[Figure]:
    """The figures of a run that the recipe's evaluation would write, of the recipe's last step.

    The whole protocol is compared, as far as it is known without the images: with those alone that
    a figure says it is of.
    """
    try:
        found = read_evaluation(run.evaluation_file)
    except ValueError:
        return []
    if found is None or (found.step, found.weights) != (recipe.training.steps, "ema"):
        return []
    return [figure for figure in found.figures if _answers(figure, recipe)]


def missing_figures(run: Run, recipe: Recipe) -> set[str]:
    """Keys of the figures that the recipe's evaluation would write, and that are not there."""
    wanted: set[str] = set(recipe.evaluation.figures) if knows_cells(recipe) else set()
    if recipe.evaluation.features is not None:
        wanted |= {against("frechet_distance", split) for split in reference_splits(recipe)}
    return wanted - {figure.key for figure in measured_figures(run, recipe)}


def is_measured(run: Run, recipe: Recipe) -> bool:
    """Whether `evaluation.json` holds every figure that the recipe's evaluation would write."""
    return not missing_figures(run, recipe)


def _answers(figure: Figure, recipe: Recipe) -> bool:
    try:
        expected = flatten(_expected(figure, recipe))
    except (OSError, ValueError):  # no such extractor, or too little noise for lossless figures
        return False
    found = flatten(figure.protocol)
    # The digits' classifier takes them as they are; the rest of the words tells of grey images.
    resized = str(found.get("resize", "none")).startswith(("none", recipe.evaluation.resize))
    return resized and all(found.get(key) == value for key, value in expected.items())


def _expected(figure: Figure, recipe: Recipe) -> dict[str, object]:
    """What the figure's protocol would say.

    Raises:
        ValueError: if that cannot be known.
        OSError: if the extractor is not there.
    """
    spec, data = recipe.evaluation, figure.data
    if data is None:
        raise ValueError("of unknown images")
    for key, form in FORMS.items():
        if key == figure.key and data.value_range is not None:
            protocol = density_protocol(recipe)
            expected = protocol.describe(key, build_sde(recipe), data.levels, data.value_range)
            if form.dequantization == "learned":
                expected["dequantizer"] = dequantizer_settings(recipe)
            return {"split": "test", "n": data.n, **expected}
    split = "test" if figure.key.endswith("_test") else "train"
    return {
        **samples_protocol(recipe),
        **extractor_identity(spec.features),
        "samples": spec.samples,
        "reference": f"{data.name} {split}",
        "n_reference": data.n,
    }
