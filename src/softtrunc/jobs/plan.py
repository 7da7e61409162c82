"""What a recipe would do, without doing it: `train --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from softtrunc.data import ImageDataset, SigmaMax, estimate_sigma_max, find_preset
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.jobs.cost import Cost, estimate
from softtrunc.jobs.rate import blank_images, training_rate
from softtrunc.networks import parameter_count
from softtrunc.recipes.build import (
    build_data,
    build_network_config,
    build_objective,
    build_sampler,
    build_sde,
    with_classes,
)
from softtrunc.recipes.load import dump_recipe
from softtrunc.recipes.schema import Recipe


class _Card(NamedTuple):
    """A graphics card's peak rates by its data sheet, dense, in FLOP/s."""

    name: str
    float32: float
    tf32: float
    bf16: float


_CARDS = (_Card("A100", 19.5e12, 156e12, 312e12), _Card("H100", 67e12, 495e12, 989e12))
# Convolutional U-Nets stay well below the peak of matrix products. An assumption, not a
# measurement, so it is printed wherever it is used.
_ASSUMED_SHARE = 0.35


class _Images(NamedTuple):
    channels: int
    size: tuple[int, int]
    number: int | None
    words: str
    data: ImageDataset | None = None
    distance: SigmaMax | None = None

    @property
    def nbytes(self) -> int:
        """Of all of them, as they are stored; 0 where their number is not known."""
        if self.data is not None:
            return self.data.images.nbytes
        return (self.number or 0) * self.channels * self.size[0] * self.size[1]


def parameters_of(recipe: Recipe) -> int | None:
    """Number of parameters, None where the recipe leaves the images' shape to the data."""
    channels, size = recipe.data.channels, recipe.data.height_and_width
    if recipe.data.source == "digits":
        channels, size = 1, (8, 8)
    if channels is None or size is None:
        return None
    return parameter_count(build_network_config(recipe, channels=channels, image_size=size))


def describe(
    recipe: Recipe, *, tflops: float | None = None, seconds: float = 0.0, processes: int = 1
) -> str:
    """The resolved recipe and what it costs, as text; every part is built and checked.

    Data that are not there are no hindrance where the recipe says their shape.

    Args:
        recipe: what would be done.
        tflops: TFLOP/s that the device sustains in training; None: shares of two cards' peaks.
        seconds: for how long this machine's own rate is measured; 0: not at all.
        processes: that share the training, a device each.

    Raises:
        UserError: if any part of the recipe is not usable.
    """
    spec, images = recipe.training, _images(recipe)
    build_objective(recipe)
    build_sampler(recipe.sampling, build_sde(recipe))
    built = recipe if images.data is None else with_classes(recipe, images.data.card)
    cost = estimate(
        built,
        channels=images.channels,
        image_size=images.size,
        data_bytes=images.nbytes,
        processes=processes,
    )
    share = spec.batch_size // processes
    steps = f"{spec.steps:,} of batch {spec.batch_size}"
    if processes > 1:
        steps += f", {share} in each of {processes} processes"
    if cost.micro < share:
        steps += f" ({share // cost.micro} micro-batches of {cost.micro} on one device)"
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
        **_here(built, cost, images, seconds, processes),
        "memory": _memory(cost, spec.shard, share, processes),
        **_grid(cost),
        "disk": _disk(cost),
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


def _here(
    recipe: Recipe, cost: Cost, images: _Images, seconds: float, processes: int
) -> dict[str, str]:
    """Time of training on this machine, as it is measured."""
    if seconds <= 0.0:
        return {}
    if processes > 1:
        return {"here": "not measured: leave the launcher out to measure one process"}
    data = images.data
    if data is None:
        data = blank_images(recipe, images.channels, images.size)
        recipe = with_classes(recipe, data.card)
    rate, spec = training_rate(recipe, data, seconds=seconds), recipe.training
    each = cost.step / spec.batch_size
    if rate is None:
        return {"here": f"not measured: too large; one image takes {_flop(each)}"}
    took = spec.steps * spec.batch_size / rate.images / 3600
    without = ", not compiled" if spec.compile else ""
    return {
        "here": f"{_hours(took)} on {rate.device} (measured{without}: {rate.images:,.3g} images/s "
        f"in steps of {rate.batch_size}, {_flop(rate.images * each)}/s)"
    }


def _memory(cost: Cost, sharded: bool, share: int, processes: int) -> str:
    """What one device holds when it holds the most."""
    spread = f", spread over {processes} devices" if sharded and processes > 1 else ""
    parts = [
        (cost.state_bytes, f"for weights, gradients, optimiser and average{spread}"),
        (cost.data_bytes, "for the data"),
    ]
    if cost.in_step >= cost.in_grid:
        when = "in a step"
        parts += [
            (cost.half_bytes, "for half-precision copies of the weights"),
            (cost.bucket_bytes, "for gradients that processes exchange"),
            (cost.batch_bytes, f"for the batch{' of a process' if processes > 1 else ''}"),
            (cost.activation_bytes, f"for activations of {cost.micro} images"),
        ]
    else:
        when = f"while samples are drawn (a step: {_size(cost.in_step)})"
        parts += [
            (cost.average_bytes, "for the weights that the average takes the place of"),
            (cost.grid_bytes, f"for activations of {cost.drawn} images"),
        ]
    told = ", ".join(f"{_size(n)} {words}" for n, words in parts if n)
    if processes == 1 and cost.micro < share and not sharded:
        told += f"; in one of several processes: {_size(4 * cost.parameters)} more for gradients"
    return f"about {_size(max(cost.in_step, cost.in_grid))} on one device {when}: {told}"


def _grid(cost: Cost) -> dict[str, str]:
    """What a device holds while samples are drawn."""
    if not cost.drawn:
        return {}
    images = f"{cost.drawn} image{'s' if cost.drawn > 1 else ''}"
    return {"grid": f"about {_size(cost.in_grid)} on one device while {images} are drawn at a time"}


def _disk(cost: Cost) -> str:
    """What the run folder takes."""
    disk = cost.disk
    words = f"{disk.kept} checkpoints of {_size(disk.checkpoint)}"
    if disk.most > disk.kept:
        words += ", one more meanwhile"
    if disk.snapshots:
        words += f"; {disk.snapshots} snapshots of averages of {_size(disk.snapshot)}"
        if disk.most_snapshots > disk.snapshots:
            words += f", up to {disk.most_snapshots - disk.snapshots} more with checkpoints"
    grids = f"{disk.grids} grid{'s' if disk.grids > 1 else ''} of {_size(disk.grid)}"
    return f"about {_size(disk.total)} for {words}; {grids}; {_size(disk.metrics)} of metrics"


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
            return _Images(card.channels, size, card.count, words, data, distance)
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
    if recipe.training.precision == "bf16":
        kind, peaks = "bf16", {card.name: card.bf16 for card in _CARDS}
    elif recipe.training.tf32:
        kind, peaks = "TF32", {card.name: card.tf32 for card in _CARDS}
    else:
        kind, peaks = "float32", {card.name: card.float32 for card in _CARDS}
    days = [
        f"{_days(cost.days(_ASSUMED_SHARE * peak))} on one {name}" for name, peak in peaks.items()
    ]
    rates = " and ".join(f"{peak / 1e12:g}" for peak in peaks.values())
    return (
        f"{', '.join(days)} (assuming {_ASSUMED_SHARE:.0%} of their {kind} peaks of {rates} "
        "TFLOP/s; --tflops for another rate)"
    )


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.{1 if hours < 100 else 0}f} hours"
    return f"{60 * hours:.3g} minutes"


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
    while n >= 999.5 and place < len(units) - 1:  # three digits are shown
        n, place = n / base, place + 1
    return f"{n:,.3g} {units[place]}"
