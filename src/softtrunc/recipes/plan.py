"""What a recipe would do, without doing it: `train --dry-run`."""

from __future__ import annotations

from softtrunc.networks import estimate_activation_bytes, flops_per_image, parameter_count
from softtrunc.recipes.build import (
    build_data,
    build_network_config,
    build_objective,
    build_sampler,
    build_training,
)
from softtrunc.recipes.errors import user_errors
from softtrunc.recipes.load import dump_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.training import micro_batches

__all__ = ["describe"]

# A training step: forward, gradient of the activations, gradient of the weights.
_STEP_OVER_FORWARD = 3


def _size(n: float, units: tuple[str, ...] = ("B", "KiB", "MiB", "GiB", "TiB")) -> str:
    for unit in units[:-1]:
        if n < 1024:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} {units[-1]}"


def _flop(n: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if n < 1000:
            return f"{n:.3g} {unit}FLOP"
        n /= 1000
    return f"{n:,.3g} EFLOP"


def describe(recipe: Recipe) -> str:
    """The resolved recipe and what it costs, as text; every part is built and checked.

    Raises:
        UserError: if any part of the recipe is not usable.
    """
    spec = recipe.training
    lines = [dump_recipe(recipe).rstrip(), ""]
    if recipe.data.source is None:
        # Costs can be told without the images where the recipe says their shape.
        size = recipe.data.image_size or 32
        height, width = (size, size) if isinstance(size, int) else size
        channels: int = recipe.data.channels or 3
        count = None
    else:
        card = build_data(recipe, "train").card
        height, width, channels, count = card.height, card.width, card.channels, card.count
    config = build_network_config(recipe, channels=channels, image_size=(height, width))
    build_objective(recipe)
    build_sampler(recipe.sampling)
    with user_errors("training"):
        share, micro = micro_batches(build_training(recipe), 1)
    parameters, forward = parameter_count(config), flops_per_image(config)
    element = 2 if spec.precision == "bf16" else 4
    activations = estimate_activation_bytes(config, micro, element)
    # Weights, gradients, two moments and the average, all float32.
    state = 5 * 4 * parameters
    step = _STEP_OVER_FORWARD * forward * spec.batch_size
    rows = {
        "data": f"{count if count is not None else 'your'} images of "
        f"{channels} x {height} x {width}",
        "parameters": f"{parameters:,}",
        "steps": f"{spec.steps:,} of batch {spec.batch_size}"
        + (f" ({share // micro} micro-batches of {micro} on one device)" if micro < share else "")
        + (f", {spec.steps * spec.batch_size / count:,.0f} epochs" if count else ""),
        "compute": f"{_flop(forward)} an image forward, {_flop(step)} a step, "
        f"{_flop(step * spec.steps)} in all",
        "memory": f"about {_size(state)} for weights, gradients, optimiser and average, "
        f"{_size(activations)} for activations (estimates for one device)",
    }
    width_of_names = max(map(len, rows))
    lines += [f"{name:<{width_of_names}}  {text}" for name, text in rows.items()]
    return "\n".join(lines)
