"""The training loop: a generator of step records.

One optimiser step draws one truncation time for the whole batch, over all processes and all
micro-batches. The loop computes and yields; whoever iterates decides when to log, sample, save or
stop, and finds the state consistent at every yield.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from softtrunc.data import ImageDataset, to_model_range
from softtrunc.objective import LossTerms, Objective
from softtrunc.training.batches import BatchSource
from softtrunc.training.loss_module import LossModule, step_draw
from softtrunc.training.randomness import (
    DataOrder,
    Stream,
    draw_share,
    step_seed,
)
from softtrunc.training.sharding import gradients_kept, is_sharded, whole
from softtrunc.training.state import TrainingConfig, TrainState


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did. Tensors stay on the device: reading them waits for it.

    - `step`: finished steps, this one included.
    - `tau`: the truncation time, the same on all processes.
    - `learning_rate`: of this step.
    - `t`, `loss`, `error`: one value per example of this process's share, see `LossTerms`.
    - `grad_norm`: global norm of the gradient before clipping, ().
    """

    step: int
    tau: float
    learning_rate: float
    t: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]
    error: Float[Tensor, " b"]
    grad_norm: Float[Tensor, ""]


def micro_batches(config: TrainingConfig, processes: int) -> tuple[int, int]:
    """Examples per process and step, and examples per forward pass.

    Raises:
        ValueError: if the batch does not divide evenly.
    """
    share, rest = divmod(config.batch_size, processes)
    if rest or share == 0:
        raise ValueError(
            f"batch_size={config.batch_size} does not divide over {processes} processes: "
            f"write a multiple of {processes}"
        )
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        divisors = [d for d in range(1, share + 1) if share % d == 0]
        raise ValueError(
            f"micro_batch_size={micro} does not divide the {share} examples of a process: "
            f"write one of {', '.join(map(str, divisors))}"
        )
    return share, micro


def fit(
    state: TrainState,
    objective: Objective,
    data: ImageDataset,
    config: TrainingConfig,
    *,
    steps: int,
    value_range: tuple[float, float] = (-1.0, 1.0),
    accelerator: Accelerator | None = None,
) -> Iterator[StepRecord]:
    """Train from `state.step` until `steps` steps are finished.

    The global batch, its examples, its times and its noise are the same for any number of
    processes and any micro-batch size. Sets torch's global seed in every step (for dropout).

    Args:
        state: model, average, optimiser and step; updated in place. The model's device must be
            the accelerator's.
        objective: the loss.
        data: uint8 images.
        config: how to optimise.
        steps: number of finished steps at which to stop.
        value_range: the model's data range.
        accelerator: devices, processes and precision; None: the default one.

    Yields:
        A record after every optimiser step, with `state` consistent.

    Raises:
        ValueError: if the batch does not divide over the processes or micro-batches.
    """
    accelerator = accelerator or Accelerator()
    share, micro = micro_batches(config, accelerator.num_processes)
    start = accelerator.process_index * share
    mine = slice(start, start + share)
    sharded = is_sharded(state.model)
    module = accelerator.prepare_model(LossModule(state.model, objective), evaluation_mode=sharded)
    no_sync = gradients_kept if sharded else accelerator.no_sync
    drawn = partial(draw_share, share=mine, seed=config.seed, device=accelerator.device)
    ranks = {"rank": accelerator.process_index, "ranks": accelerator.num_processes}
    times = partial(step_draw, objective, config.batch_size, seed=config.seed, **ranks)
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    order = DataOrder(len(data), seed=config.seed)
    with BatchSource(
        data.images,
        order,
        batch_size=config.batch_size,
        share=mine,
        device=accelerator.device,
        labels=data.labels,
    ) as source:
        while state.step < steps:
            step = state.step
            draw = times(step=step).to(accelerator.device)
            uniform = partial(drawn, torch.rand, step=step)
            images, cells = _augmented(source.batch(step), config, uniform)
            x = to_model_range(
                images, levels=data.card.levels, value_range=value_range, noise=cells
            )
            y = _labels(source.labels(step), config, data, uniform) if config.labels else None
            noise = drawn(torch.randn, x.shape[1:], step=step, stream=Stream.NOISE)

            for group in state.optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            state.optimizer.zero_grad(set_to_none=True)
            if not state.model.training:  # samples were drawn in between
                state.model.train()
            terms: list[LossTerms] = []
            for first in range(0, share, micro):
                part = slice(first, first + micro)
                index = (start + first) // micro
                torch.manual_seed(step_seed(config.seed, step, Stream.NETWORK, index))
                last = first + micro == share
                with nullcontext() if last else no_sync(module):
                    out: LossTerms = module(
                        x[part],
                        draw=draw.part(part.start, part.stop),
                        noise=noise[part],
                        condition=None if y is None else {"y": y[part]},
                    )
                    # Each part weighs its share of the batch: the sum is the mean over all.
                    accelerator.backward(out.loss.sum() / share)
                terms.append(out)
            limit = config.grad_clip or math.inf
            grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, limit))
            state.optimizer.step()
            state.step = step + 1
            state.ema.update(state.model)
            if state.posthoc is not None:
                state.posthoc.update(state.model, state.step)
            yield StepRecord(
                step=state.step,
                tau=float(draw.tau),
                learning_rate=config.learning_rate_at(step),
                t=torch.cat([o.t for o in terms]),
                loss=torch.cat([o.loss.detach() for o in terms]),
                error=torch.cat([o.error.detach() for o in terms]),
                grad_norm=grad_norm.detach(),
            )


def _augmented(
    images: UInt8[Tensor, "b c h w"], config: TrainingConfig, uniform: Callable[..., Tensor]
) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
    """Images mirrored at random, and where in its grey level's cell each pixel lies."""
    if config.flip:
        mirrored = uniform((), stream=Stream.FLIPS)[:, None, None, None] < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    if not config.dequantize:
        return images, None
    return images, uniform(images.shape[1:], stream=Stream.PIXELS)


def _labels(
    labels: Int64[Tensor, " b"],
    config: TrainingConfig,
    data: ImageDataset,
    uniform: Callable[..., Tensor],
) -> Int64[Tensor, " b"]:
    """The labels, some of them left out: the number past the last class stands for none."""
    left_out = uniform((), stream=Stream.LABELS) < config.label_dropout
    return labels.masked_fill(left_out, len(data.card.classes))
