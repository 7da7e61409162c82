"""What Soft Truncation costs, what `fit` costs beside a bare loop, and the share of the peaks."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from benchmarks.machine import Ratio, conv_peak, interleaved, matmul_peak, seconds
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
from softtrunc.training.speed import keep_freed_memory, lay_out

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
    model.to(accelerator.device)
    lay_out(model, accelerator.device, recipe.training.channels_last)
    state = TrainState.create(model, config)
    if recipe.training.compile:
        model.network.compile()
    return fit(state, build_objective(recipe), data, config, steps=10**9, accelerator=accelerator)


def bare(recipe: Recipe, data: ImageDataset, device: torch.device) -> Iterator[None]:
    """The loop that one writes by hand for the same step: images, noise, network, Adam, average."""
    card, spec = data.card, recipe.training
    model = build_model(recipe, channels=card.channels, image_size=(card.height, card.width))
    network, sde = model.to(device).train(), model.sde
    lay_out(network, device, spec.channels_last)
    parameters = [p for p in network.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0, fused=True)
    images = torch.from_numpy(np.array(data.images)).to(device)
    while True:
        batch = images[torch.randint(len(images), (spec.batch_size,), device=device)].float()
        x = (batch + torch.rand_like(batch)) * (2.0 / card.levels) - 1.0
        t = 1e-5 + (1.0 - 1e-5) * torch.rand(len(x), device=device)
        alpha, sigma = (v[:, None, None, None] for v in sde.marginal(t))
        noise = torch.randn_like(x)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            out = network(alpha * x + sigma * noise, t)
        optimizer.zero_grad(set_to_none=True)
        (out - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1.0 - spec.ema_rate)
        yield


def compared(name: str, first: Iterator[object], second: Iterator[object], rounds: int) -> None:
    """Single steps of both in turns, and the ratio of their times."""
    device = Accelerator().device
    run = partial(next, first), partial(next, second)
    for step in run * 3:
        step()
    pairs = interleaved(*run, device, rounds)
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = Ratio.of(pairs)
    console.print(
        f"{name}: {1e3 * ours:,.1f} and {1e3 * theirs:,.1f} ms a step, {ratio.median:.4f} ± "
        f"{ratio.error:.4f} times as long (median of {rounds} pairs)"
    )


def soft_against_hard(accelerator: Accelerator, rounds: int) -> None:
    recipes = [load_recipe(name) for name in ("digits-vp-nll-st", "digits-vp-nll")]
    data = build_data(recipes[0], "train")
    soft, hard = (stepper(recipe, data, accelerator) for recipe in recipes)
    compared("demo network, Soft Truncation against hard", soft, hard, rounds)


def fit_against_bare(accelerator: Accelerator, rounds: int, large_rounds: int) -> None:
    demo = load_recipe("digits-vp-nll")
    data = build_data(demo, "train")
    pair = stepper(demo, data, accelerator), bare(demo, data, accelerator.device)
    compared("demo network, fit against a bare loop", *pair, rounds)
    if large_rounds == 0:
        return
    options = ["network.preset=ddpmpp", "training.batch_size=16"]
    large, data = load_recipe("digits-vp-nll", options), random_images(32)
    pair = stepper(large, data, accelerator), bare(large, data, accelerator.device)
    compared("DDPM++, fit against a bare loop", *pair, large_rounds)


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
            step = partial(next, steps)
            rate = recipe.training.batch_size / statistics.median(
                seconds(step, device) for _ in range(count)
            )
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
    parser.add_argument("--rounds", type=int, default=400, help="pairs of steps of the demo")
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--cifar-steps", type=int, default=3)
    parser.add_argument("--large-rounds", type=int, default=6, help="pairs of DDPM++; 0: none")
    parser.add_argument("--costs", action="store_true", help="leave out the shares of the peaks")
    options = parser.parse_args(arguments)
    accelerator = Accelerator()
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    soft_against_hard(accelerator, options.rounds)
    fit_against_bare(accelerator, options.rounds, options.large_rounds)
    if options.costs:
        return
    share_of_peak(options.precision, options.compile, options.cifar_steps)


if __name__ == "__main__":
    main()
