"""What a recipe would do, without doing it: `train --dry-run`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from softtrunc.data import SigmaMax, estimate_sigma_max, find_preset
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.jobs.rate import STEP_OVER_FORWARD, training_rate
from softtrunc.networks import estimate_activation_bytes, flops_per_image, parameter_count
from softtrunc.recipes.build import (
    build_data,
    build_network_config,
    build_objective,
    build_sampler,
    build_sde,
    build_training,
)
from softtrunc.recipes.load import dump_recipe
from softtrunc.recipes.schema import Recipe
from softtrunc.training import LENGTHS, MOST_SNAPSHOTS, micro_batches

_SECONDS_A_DAY = 86_400.0


class _Card(NamedTuple):
    """A graphics card's peak rates by its data sheet, dense, in FLOP/s."""

    name: str
    tf32: float
    bf16: float


_CARDS = (_Card("A100", 156e12, 312e12), _Card("H100", 495e12, 989e12))
# Convolutional U-Nets stay well below the peak of matrix products. An assumption, not a
# measurement, so it is printed wherever it is used.
_ASSUMED_SHARE = 0.35
# What kernels need beside intermediate results, and what the allocator cannot give out again. On
# a CPU peaks of whole training steps were 1.4 times the intermediate results alone.
_WORKING_SPACE = 1.4


class _Images(NamedTuple):
    channels: int
    size: tuple[int, int]
    number: int | None
    words: str
    distance: SigmaMax | None = None


class Cost(NamedTuple):
    """Estimates of what a training takes.

    - `parameters`: their number. `forward`: FLOP of one image's forward pass.
    - `step`, `total`: FLOP of an optimiser step and of all of them.
    - `state_bytes`: weights, gradients, optimiser and average in float32.
    - `activation_bytes`: largest memory of intermediate results on one device, of `micro` images,
      and of the kernels that make them.
    """

    parameters: int
    forward: int
    step: int
    total: int
    state_bytes: int
    activation_bytes: int
    micro: int

    def days(self, rate: float) -> float:
        """Days on a device that sustains `rate` FLOP/s."""
        return self.total / rate / _SECONDS_A_DAY


def estimate(recipe: Recipe, *, channels: int, image_size: tuple[int, int]) -> Cost:
    """What training a recipe on one device costs; nothing is allocated.

    Raises:
        UserError: if the network or the micro-batches cannot be built.
    """
    spec = recipe.training
    config = build_network_config(recipe, channels=channels, image_size=image_size)
    with user_errors("training"):
        _, micro = micro_batches(build_training(recipe), 1)
    parameters, forward = parameter_count(config), flops_per_image(config)
    step = STEP_OVER_FORWARD * forward * spec.batch_size
    return Cost(
        parameters=parameters,
        forward=forward,
        step=step,
        total=step * spec.steps,
        # Weights, gradients, two moments and the averages, all float32.
        state_bytes=(5 + len(LENGTHS) * spec.posthoc_ema) * 4 * parameters,
        activation_bytes=round(
            _WORKING_SPACE
            * estimate_activation_bytes(config, micro, 2 if spec.precision == "bf16" else 4)
        ),
        micro=micro,
    )


def parameters_of(recipe: Recipe) -> int | None:
    """Number of parameters, None where the recipe leaves the images' shape to the data."""
    channels, size = recipe.data.channels, recipe.data.height_and_width
    if recipe.data.source == "digits":
        channels, size = 1, (8, 8)
    if channels is None or size is None:
        return None
    return parameter_count(build_network_config(recipe, channels=channels, image_size=size))


def describe(recipe: Recipe, *, tflops: float | None = None, seconds: float = 0.0) -> str:
    """The resolved recipe and what it costs, as text; every part is built and checked.

    Data that are not there are no hindrance where the recipe says their shape.

    Args:
        recipe: what would be done.
        tflops: TFLOP/s that the device sustains in training; None: shares of two cards' peaks.
        seconds: for how long this machine's own rate is measured; 0: not at all.

    Raises:
        UserError: if any part of the recipe is not usable.
    """
    spec, images = recipe.training, _images(recipe)
    build_objective(recipe)
    build_sampler(recipe.sampling, build_sde(recipe))
    cost = estimate(recipe, channels=images.channels, image_size=images.size)
    steps = f"{spec.steps:,} of batch {spec.batch_size}"
    if cost.micro < spec.batch_size:
        parts = spec.batch_size // cost.micro
        steps += f" ({parts} micro-batches of {cost.micro} on one device)"
    if images.number:
        steps += f", {spec.steps * spec.batch_size / images.number:,.0f} epochs"
    rows = {
        "data": images.words,
        **_sigma_max(recipe, images),
        "parameters": f"{cost.parameters:,}",
        "steps": steps,
        "compute": f"{_flop(cost.forward)} an image forward, {_flop(cost.step)} a step, "
        f"{_flop(cost.total)} in all",
        "time": _time(recipe, cost, tflops),
        **_here(recipe, cost, images, seconds),
        "memory": _memory(recipe, cost),
        "disk": _disk(recipe, cost.parameters),
    }
    lines = [f"{name:<{max(map(len, rows))}}  {text}" for name, text in rows.items()]
    return "\n".join([dump_recipe(recipe).rstrip(), "", *lines])


def _sigma_max(recipe: Recipe, images: _Images) -> dict[str, str]:
    """What the data suggest, at the size at which they are trained on, beside the recipe."""
    if images.distance is None or recipe.sde.kind not in ("ve", "rve"):
        return {}
    found = images.distance
    return {
        "sigma_max": f"{recipe.sde.sigma_max:g}; the largest distance among {found.images:,} "
        f"images is {found.value:.1f}"
    }


def _here(recipe: Recipe, cost: Cost, images: _Images, seconds: float) -> dict[str, str]:
    """Time of training on this machine, as it is measured."""
    if seconds <= 0.0:
        return {}
    config = build_network_config(recipe, channels=images.channels, image_size=images.size)
    rate = training_rate(config, cost.micro, precision=recipe.training.precision, seconds=seconds)
    if rate is None:
        return {
            "here": f"not measured: one image takes {_flop(cost.step / recipe.training.batch_size)}"
        }
    took = cost.days(rate.flops) * 24
    words = f"{took:,.3g} hours" if took >= 1 else f"{60 * took:,.3g} minutes"
    return {"here": f"{words} on {rate.device} (measured: {_flop(rate.flops)}/s)"}


def _memory(recipe: Recipe, cost: Cost) -> str:
    """What is held at one time on one device."""
    parts = [f"{_size(cost.state_bytes)} for weights, gradients, optimiser and average"]
    if recipe.training.precision == "bf16":
        parts.append(f"{_size(2 * cost.parameters)} for half-precision copies of the weights")
    parts.append(f"{_size(cost.activation_bytes)} for activations of {cost.micro} images")
    return f"about {', '.join(parts)} (estimates for one device; sample grids take less)"


def _disk(recipe: Recipe, parameters: int) -> str:
    """What the run folder takes: weights, average and two moments in every checkpoint."""
    spec = recipe.training
    one = 4 * 4 * parameters
    written = math.ceil(spec.steps / spec.checkpoint_every)
    kept = min(written, spec.keep_checkpoints or written)
    # While a checkpoint is written the oldest is still there.
    most = min(written, kept + 1)
    words = f"{kept} checkpoints of {_size(one)}, one more meanwhile"
    total = most * one
    if spec.posthoc_ema:
        snapshots, averages = min(written, MOST_SNAPSHOTS), 4 * len(LENGTHS) * parameters
        words += f"; {snapshots} snapshots of averages of {_size(averages)}, one more meanwhile"
        total += min(written, snapshots + 1) * averages
    return f"about {_size(total)} for {words}"


def _images(recipe: Recipe) -> _Images:
    """The images where they are at hand, otherwise as the recipe says."""
    spec = recipe.data
    absent = ""
    if spec.source is not None:
        try:
            data = build_data(recipe, "train")
        except UserError as error:
            if spec.image_size is None or spec.channels is None:
                raise
            absent = f" (not there: {error})"
        else:
            card = data.card
            what = "images" if card.on_grid else "tensors of floats"
            words = f"{card.count:,} {what} of {card.channels} x {card.height} x {card.width}"
            size, distance = (card.height, card.width), None
            if recipe.sde.kind in ("ve", "rve") and card.count > 1:
                low, high = card.value_range or (0, card.levels - 1)
                distance = estimate_sigma_max(data.images, high - low)
            return _Images(card.channels, size, card.count, words, distance)
    size, channels = spec.height_and_width or (32, 32), spec.channels or 3
    words = f"images of {channels} x {size[0]} x {size[1]}"
    if spec.preset is None:
        return _Images(channels, size, None, f"your {words}{absent}")
    with user_errors("data"):
        known = find_preset(spec.preset)
    words = f"{known.title}, {known.train:,} {words}{absent or '; not given'}"
    return _Images(channels, size, known.train, words)


def _time(recipe: Recipe, cost: Cost, tflops: float | None) -> str:
    """Days of training on one device, and what rate they assume."""
    if tflops is not None:
        return f"{_days(cost.days(tflops * 1e12))} on one device at the {tflops:g} TFLOP/s given"
    half = recipe.training.precision == "bf16"
    peaks = {card.name: card.bf16 if half else card.tf32 for card in _CARDS}
    days = [
        f"{_days(cost.days(_ASSUMED_SHARE * peak))} on one {name}" for name, peak in peaks.items()
    ]
    kind = "bf16" if half else "TF32"
    rates = " and ".join(f"{peak / 1e12:.0f}" for peak in peaks.values())
    return (
        f"{', '.join(days)} (assuming {_ASSUMED_SHARE:.0%} of their {kind} peaks of {rates} "
        "TFLOP/s; --tflops for another rate)"
    )


def _days(days: float) -> str:
    if days >= 0.1:
        return f"{days:.3g} GPU-days"
    minutes = days * 24 * 60
    return f"{minutes:.3g} GPU-minutes" if minutes >= 1 else "under a GPU-minute"


def _size(n: float) -> str:
    return _scaled(n, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _flop(n: float) -> str:
    return _scaled(n, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(n: float, base: int, units: Sequence[str]) -> str:
    place = 0
    while n >= 1000 and place < len(units) - 1:  # three digits are shown
        n, place = n / base, place + 1
    return f"{n:,.3g} {units[place]}"
