"""Does Soft Truncation cost anything, and how near does training come to the machine's peak?"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conv_peak, matmul_peak, synchronize
from softtrunc.data import ImageDataset
from softtrunc.networks import flops_per_image, parameter_count
from softtrunc.recipes import Recipe, load_recipe
from softtrunc.recipes.build import (
    build_data,
    build_model,
    build_network_config,
    build_objective,
    build_training,
)
from softtrunc.training import TrainState, fit

console = Console(width=140, highlight=False)

# forward, gradient of the activations, gradient of the weights
STEP_OVER_FORWARD = 3


def random_images(size: int, count: int = 64) -> ImageDataset:
    """Synthetic images: speed does not depend on what they show."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return ImageDataset.create(pixels, name="noise", split="train", source="synthetic")


def stepper(recipe: Recipe, data: ImageDataset, accelerator: Accelerator):
    """An endless sequence of training steps."""
    card = data.card
    model = build_model(recipe, channels=card.channels, image_size=(card.height, card.width))
    config = build_training(recipe)
    state = TrainState.create(model.to(accelerator.device), config)
    if recipe.training.compile:
        model.network.compile()
    return fit(state, build_objective(recipe), data, config, steps=10**9, accelerator=accelerator)


def timed(steps, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    next(steps)
    synchronize(device)
    return time.perf_counter() - start


def soft_against_hard(accelerator: Accelerator, rounds: int) -> None:
    """Alternate single steps of both, so that whatever else the machine does hits both alike."""
    recipes = [load_recipe(name) for name in ("digits-vp-nll", "digits-vp-nll-st")]
    data = build_data(recipes[0], "train")
    hard, soft = (stepper(recipe, data, accelerator) for recipe in recipes)
    pairs = []
    for i in range(rounds + 5):
        first, second = (hard, soft) if i % 2 else (soft, hard)
        times = [timed(s, accelerator.device) for s in (first, second)]
        pairs.append(times if i % 2 else times[::-1])
    pairs = pairs[5:]
    hards, softs = zip(*pairs, strict=True)
    ratio = statistics.median(h / s for h, s in pairs)
    spread = statistics.quantiles([h / s for h, s in pairs], n=4)
    error = 0.93 * (spread[2] - spread[0]) / len(pairs) ** 0.5  # of a median, normal approximation
    batch = recipes[0].training.batch_size
    console.print(
        f"demo network, batch {batch}: hard {batch / statistics.median(hards):,.0f} img/s, Soft "
        f"Truncation {batch / statistics.median(softs):,.0f} img/s; throughput ratio "
        f"{ratio:.4f} ± {error:.4f} (median of {len(pairs)} alternating pairs)"
    )


def share_of_peak(precisions: list[str], compiled: bool, cifar_steps: int) -> None:
    """Images/s and GFLOP/s of whole training steps beside the peaks."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("network", "precision", "batch", "img/s", "GFLOP/s", "of matmul", "of conv"):
        table.add_column(column, justify="left" if column in ("network", "precision") else "right")
    for precision in precisions:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(mixed_precision=precision)
        device = accelerator.device
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        peaks = matmul_peak(device, dtype), conv_peak(device, dtype)
        console.print(
            f"{device.type}, {precision}: matmul {peaks[0]:,.0f} GFLOP/s, "
            f"3x3 convolution {peaks[1]:,.0f} GFLOP/s"
        )
        common = [f"training.precision='{precision}'", f"training.compile={compiled}"]
        cifar = ["network.preset=ddpmpp", "training.batch_size=16"]
        if device.type == "cuda":
            cifar[1] = "training.batch_size=128"
        cases = (
            ("demo (1x8x8)", load_recipe("digits-vp-nll-st", common), None, 30),
            ("ddpmpp (3x32x32)", load_recipe("digits-vp-nll-st", common + cifar), 32, cifar_steps),
        )
        for name, recipe, size, count in cases:
            data = build_data(recipe, "train") if size is None else random_images(size)
            card = data.card
            shape = {"channels": card.channels, "image_size": (card.height, card.width)}
            network = build_network_config(recipe, **shape)
            steps = stepper(recipe, data, accelerator)
            next(steps)
            seconds = statistics.median(timed(steps, device) for _ in range(count))
            rate = recipe.training.batch_size / seconds
            gflops = rate * STEP_OVER_FORWARD * flops_per_image(network) / 1e9
            table.add_row(
                f"{name}, {parameter_count(network) / 1e6:.2f} M",
                precision,
                str(recipe.training.batch_size),
                f"{rate:,.1f}",
                f"{gflops:,.0f}",
                *(f"{gflops / peak:.0%}" for peak in peaks),
            )
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="pairs of steps, hard and soft")
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--cifar-steps", type=int, default=3)
    options = parser.parse_args(arguments)
    soft_against_hard(Accelerator(), options.rounds)
    share_of_peak(options.precision, options.compile, options.cifar_steps)


if __name__ == "__main__":
    main()
