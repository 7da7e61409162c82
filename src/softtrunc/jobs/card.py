"""The model card of a run: what it was trained on, how, and every figure with its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from softtrunc.data import DataCard
from softtrunc.recipes.load import dump_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.score import ScoreModel

__all__ = ["model_card"]

_TASK = "unconditional-image-generation"
_PAPER = "https://arxiv.org/abs/2106.05527"


def model_card(
    recipe: Recipe,
    data: DataCard,
    model: ScoreModel,
    evaluation: Mapping[str, Any] | None,
    *,
    title: str,
    step: int,
    weights: str,
    picture: str | None = None,
) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        recipe: of the run.
        data: what is known of the training images.
        model: the exported model.
        evaluation: content of `evaluation.json`, if it is of this checkpoint and these weights.
        title: heading, and the name under which figures are listed.
        step: optimiser steps behind the weights.
        weights: "ema" or "raw".
        picture: file of a grid of samples beside the card.
    """
    figures: Sequence[Mapping[str, Any]] = evaluation["figures"] if evaluation else ()
    head = ModelCardData(
        library_name="softtrunc",
        pipeline_tag=_TASK,
        tags=["score-based-diffusion", "soft-truncation", recipe.sde.kind],
        model_name=title if figures else None,
        eval_results=[_result(figure, data) for figure in figures] or None,
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    truncation = (
        "hard truncation"
        if recipe.truncation.hard
        else f"Soft Truncation, k = {recipe.truncation.k:g}"
    )
    low, high = model.value_range
    kind = "averaged weights" if weights == "ema" else "last weights"
    sections = [
        f"---\n{head.to_yaml()}\n---",
        f"# {title}",
        f"A score model trained with softtrunc ([Kim et al., 2022]({_PAPER})): recipe "
        f"`{recipe.name}`"
        + (f" ({recipe.description})" if recipe.description else "")
        + f". {type(model.sde).__name__}, {truncation}, {recipe.objective.weighting} weighting, "
        f"{recipe.network.preset} with {count:,} parameters, {kind} after {step:,} steps of "
        f"{recipe.training.batch_size}.",
    ]
    if picture is not None:
        sections.append(f"![Samples]({picture})")
    sections += [
        "## Use",
        _usage(data),
        f"The data range of the model is [{low:g}, {high:g}]. `softtrunc.interop.DiffusersUNet` "
        "makes it callable by the schedulers of diffusers; `scheduler/` holds their settings.",
        "## Figures",
        _figure_table(figures)
        if figures
        else "Nothing has been measured on these weights: `softtrunc evaluate RUN` before "
        "`softtrunc export RUN` puts figures here.",
        "## Data",
        _data_table(data),
        "## Recipe",
        f"```yaml\n{dump_recipe(recipe).rstrip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _result(figure: Mapping[str, Any], data: DataCard) -> EvalResult:
    split = figure["protocol"].get("split")
    return EvalResult(
        task_type=_TASK,
        dataset_type=data.name,
        dataset_name=data.name,
        dataset_split=split,
        metric_type=figure["key"],
        metric_name=figure["name"],
        metric_value=figure["value"],
    )


def _usage(data: DataCard) -> str:
    return f"""```python
from softtrunc import ScoreModel
from softtrunc.samplers import DPMSolver

model = ScoreModel.from_pretrained("PATH OR OWNER/NAME")
images = DPMSolver(steps=25).sample(model, (16, {data.channels}, {data.height}, {data.width})).x
```"""


def _figure_table(figures: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| figure | value | protocol |", "|---|---|---|"]
    for figure in figures:
        error = figure.get("standard_error")
        value = f"{figure['value']:.4g}"
        if error is not None:
            value = f"{figure['value']:.3f} ± {error:.3f}"
        protocol = "; ".join(f"{key}: {_short(v)}" for key, v in figure["protocol"].items())
        if figure["unit"]:
            value += f" {figure['unit']}"
        lines.append(f"| {figure['name']} | {value} | {protocol} |")
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items() if item is not None)
    text = (f"{value:.6g}" if isinstance(value, float) else str(value)).replace("|", "/")
    return text[:12] if len(text) == 64 else text  # a SHA-256


def _data_table(data: DataCard) -> str:
    rows = {
        "name": data.name,
        "split": data.split,
        "images": f"{data.count:,} of {data.channels} x {data.height} x {data.width}",
        "grey levels": data.levels,
        "preprocessing": data.preprocessing or "none",
        "fingerprint (SHA-256)": f"`{data.fingerprint}`",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
