"""The model card of a run: what it was trained on, how, and every figure with its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from softtrunc.data import DataCard
from softtrunc.recipes.load import dump_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.records import Evaluation, Figure
from softtrunc.score import ScoreModel

_TASK = "unconditional-image-generation"


def model_card(
    recipe: Recipe,
    data: DataCard,
    model: ScoreModel,
    evaluation: Evaluation | None,
    *,
    title: str,
    step: int,
    weights: str,
    picture: str | None = None,
    init_from: Mapping[str, Any] | None = None,
    licence: str | None = None,
    source: str | None = None,
) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        recipe: of the run.
        data: what is known of the training images.
        model: the exported model.
        evaluation: content of `evaluation.json`, if it is of this checkpoint and these weights.
        title: heading, and the name under which figures are listed.
        step: optimiser steps behind the weights.
        weights: "ema", "raw", or "ema-0.05" of an average of length 0.05.
        picture: file of a grid of samples beside the card.
        init_from: what the run's provenance says of the weights that it started from.
        licence: of the weights, as the Hub names licences, e.g. "apache-2.0"; None: not chosen yet.
        source: what `ScoreModel.from_pretrained` is to be given; None: not known yet.
    """
    from jinja2 import Environment, StrictUndefined

    figures = evaluation.figures if evaluation else ()
    head = ModelCardData(
        library_name="softtrunc",
        license=licence,
        pipeline_tag=_TASK if data.on_grid else None,
        tags=["score-based-diffusion", "soft-truncation", recipe.sde.kind],
        model_name=title if figures else None,
        eval_results=[_result(figure, data) for figure in figures] or None,
    )
    template = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(
        head=head.to_yaml(),
        title=title,
        recipe=recipe,
        recipe_text=dump_recipe(recipe).rstrip(),
        data=data,
        data_source=_bare(data.source),
        licence=licence,
        source=source or "PATH OR OWNER/NAME",
        sde=type(model.sde).__name__,
        value_range=model.value_range,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=weights,
        step=step,
        picture=picture,
        origin=_origin(init_from),
        figures=[
            {
                "name": figure.name,
                "value": _value(figure),
                "protocol": "; ".join(f"{k}: {_short(v)}" for k, v in figure.protocol.items()),
            }
            for figure in figures
        ],
    )


def _origin(init_from: Mapping[str, Any] | None) -> str:
    """The weights that a run started from."""
    if init_from is None:
        return ""
    name, data = _bare(str(init_from["source"])), init_from.get("data")
    return f"`{name}`, trained on {data}" if data else f"`{name}`"


def _bare(source: str) -> str:
    """Where something came from, without the folders of a machine."""
    return Path(source).name if Path(source).is_absolute() else source


def _result(figure: Figure, data: DataCard) -> EvalResult:
    return EvalResult(
        task_type=_TASK if data.on_grid else "other",
        dataset_type=data.name,
        dataset_name=data.name,
        dataset_split=figure.protocol.get("split"),
        metric_type=figure.key,
        metric_name=figure.name,
        metric_value=figure.value,
    )


def _value(figure: Figure) -> str:
    value, error = figure.value, figure.standard_error
    text = f"{value:.4g}" if error is None else f"{value:.3f} ± {error:.3f}"
    return f"{text} {figure.unit}".rstrip()


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items() if item is not None)
    text = (f"{value:.6g}" if isinstance(value, float) else str(value)).replace("|", "/")
    return text[:12] if len(text) == 64 else text  # a SHA-256
