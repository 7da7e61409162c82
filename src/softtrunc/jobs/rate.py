"""How fast this machine trains a recipe, found by training it for some seconds."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from softtrunc.data import ImageDataset
from softtrunc.networks import flops_per_image
from softtrunc.recipes.build import (
    build_model,
    build_network_config,
    build_objective,
    build_training,
)
from softtrunc.recipes.schema import Recipe
from softtrunc.runs.devices import find_devices
from softtrunc.training import StepRecord, TrainState, fit, micro_batches
from softtrunc.training.speed import fast_kernels, lay_out

STEP_OVER_FORWARD = 3
"""A training step: forward, gradient of the activations, gradient of the weights."""

# FLOP of a step that any CPU core does in some seconds.
_MOST = 3e11
# Of the images: speed does not depend on what they show.
_IMAGES = 256


class Rate(NamedTuple):
    """Images a second that a device trained on, in steps of so many, and its name."""

    images: float
    batch_size: int
    device: str


def blank_images(recipe: Recipe, channels: int, size: tuple[int, int]) -> ImageDataset:
    """Images of one value, with labels if need be, where the real ones are not at hand."""
    shape, labels = (_IMAGES, channels, *size), None
    if recipe.data.labels:
        classes = recipe.network.options.get("num_classes")
        labels = np.arange(_IMAGES) % (classes if isinstance(classes, int) else 10)
    if (ends := recipe.data.value_range) is not None:
        return ImageDataset.of_floats(
            np.full(shape, ends[0], dtype=np.float32),
            name="blank",
            split="train",
            source="made",
            value_range=ends,
            labels=labels,
        )
    pixels = np.zeros(shape, dtype=np.uint8)
    return ImageDataset.create(pixels, name="blank", split="train", source="made", labels=labels)


def training_rate(recipe: Recipe, data: ImageDataset, *, seconds: float = 10.0) -> Rate | None:
    """Train a recipe for some `seconds`, in steps that grow up to its batch.

    It is the training itself: its loop, optimiser and average, its layouts and kernels. Only
    `training.compile` is left out, since compiling alone takes longer.

    Args:
        recipe: of the training, on this device alone.
        data: images to train on.
        seconds: after which no further step is begun.

    Returns:
        The rate of the fastest steps; None if a small one would take too long on a CPU, or more
        memory than the device has.
    """
    spec, card = recipe.training, data.card
    accelerator = find_devices(spec.timeout, precision=spec.precision).accelerator
    device, shape = accelerator.device, (card.height, card.width)
    config = build_network_config(recipe, channels=card.channels, image_size=shape)
    told, objective = build_training(recipe), build_objective(recipe)
    _, micro = micro_batches(told, 1)
    size = min(2, micro)  # a mixed loss has two halves
    if device.type == "cpu" and STEP_OVER_FORWARD * flops_per_image(config) * size > _MOST:
        return None
    few = None if data.labels is None else data.labels[:_IMAGES]
    data = dataclasses.replace(data, images=np.array(data.images[:_IMAGES]), labels=few)
    model = build_model(recipe, channels=card.channels, image_size=shape).to(device)
    lay_out(model.network, device, spec.channels_last)
    state = TrainState.create(model, told)

    def steps(size: int) -> Generator[StepRecord, None, None]:
        cut = dataclasses.replace(told, batch_size=size, micro_batch_size=min(size, micro))
        yield from fit(
            state,
            objective,
            data,
            cut,
            steps=10**18,
            value_range=model.value_range,
            accelerator=accelerator,
        )

    best, end = Rate(0.0, size, _name(device)), time.perf_counter() + seconds
    with fast_kernels(device, tf32=spec.tf32):
        try:
            while True:
                most = micro if size < micro else spec.batch_size
                with closing(steps(size)) as records:
                    taken = _fastest(records, end, grow=size < most)
                best = max(best, best._replace(images=size / taken, batch_size=size))
                if size == most or time.perf_counter() + 4 * taken > end:
                    break
                size = min(2 * size, most)
        except torch.OutOfMemoryError:  # of an accelerator
            return best if best.images else None
    return best


def _fastest(records: Iterator[StepRecord], end: float, *, grow: bool) -> float:
    """Seconds of the fastest step until `end`, or of the first if a larger one comes after it."""

    def step() -> float:
        started = time.perf_counter()
        float(next(records).grad_norm)  # waits for a device to finish
        return time.perf_counter() - started

    step()  # the first one finds its kernels
    fastest = step()
    while not grow and time.perf_counter() + fastest < end:
        fastest = min(fastest, step())
    return fastest


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"this CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"this {platform.machine()} {device.type.upper()}"
