"""What a recipe may say of its training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from softtrunc.recipes.values import (
    Count,
    Held,
    Natural,
    NotNegative,
    Positive,
    Rate,
    Section,
    Seed,
)


class Training(Section):
    """Optimisation and what is written on the way.

    - `steps`: optimiser steps. `batch_size`: examples per step over all processes.
    - `micro_batch_size`: most examples in one forward pass; null: no limit.
    - `learning_rate`, `betas`, `adam_eps`, `weight_decay`: of AdamW.
    - `warmup_steps`: steps over which the learning rate grows from 0.
    - `schedule`, `final_learning_rate`: the learning rate after warm-up: "constant", or falling to
      the final one over the remaining steps, by half a "cosine" or in a "linear" way.
    - `grad_clip`: largest norm of the gradient; null: no clipping.
    - `ema_rate`: share of the averaged weights that is kept at each step.
    - `posthoc_ema`: also save averages from which `--ema LENGTH` computes one of any length later.
    - `seed`: of the first weights, the order of the images, the noise and the times.
    - `label_dropout`: share of the labels that training leaves out, with `data.labels`, so that the
      model also learns images without a class. Guidance needs it.
    - `precision`: "no" (float32) or "bf16" (autocast; schedules stay in float64).
    - `compile`: run the network through torch.compile.
    - `tf32`: training on CUDA may multiply float32 in TF32.
    - `channels_last`: memory layout of convolution weights; null: the one known to be faster.
    - `log_every`, `sample_every`, `checkpoint_every`: steps between lines of metrics.jsonl, grids
      of samples and checkpoints; `keep_checkpoints`: how many of the newest stay (null: all).
    - `samples`: images in a grid.
    - `shard`: spread weights, gradients, moments and average over the processes (PyTorch's FSDP2),
      for networks that one device cannot hold; slower.
    - `timeout`: seconds that a process waits for the others' part of a step. A process without a
      sign of life for a minute, or for this time if it is shorter, counts as dead.
    - `tracker`: also log to "tensorboard" (into the run folder) or "wandb"; both come with
      `pip install 'softtrunc[tracking]'`.
    """

    steps: Count
    batch_size: Held = 128
    micro_batch_size: Held | None = None
    learning_rate: Rate = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    warmup_steps: Natural = 5000
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_learning_rate: NotNegative = 0.0
    grad_clip: Positive | None = 1.0
    ema_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999
    posthoc_ema: bool = False
    seed: Seed = 0
    label_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    tf32: bool = True
    channels_last: bool | None = None
    log_every: Count = 100
    sample_every: Count | None = 10_000
    checkpoint_every: Count = 10_000
    keep_checkpoints: Count | None = 3
    samples: Held = 64
    shard: bool = False
    timeout: Annotated[float, Field(ge=1.0, le=1e6)] = 600.0
    tracker: Literal["tensorboard", "wandb"] | None = None

    @model_validator(mode="after")
    def _layout_of_shards(self) -> Training:
        if self.shard and self.channels_last:
            raise ValueError("channels_last: true cannot be had with shard: true: leave one out")
        return self
