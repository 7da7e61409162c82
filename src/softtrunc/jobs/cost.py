"""What a training takes, found without doing it: operations, memory of one device, disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from softtrunc.feedback.errors import user_errors
from softtrunc.jobs.rate import STEP_OVER_FORWARD
from softtrunc.networks import estimate_activation_bytes, flops_per_image, parameter_count
from softtrunc.recipes.build import build_network_config, build_training
from softtrunc.recipes.schema import Recipe
from softtrunc.training import LENGTHS, MOST_SNAPSHOTS, micro_batches
from softtrunc.training.batches import RESIDENT_BYTES

_SECONDS_A_DAY = 86_400.0
_FLOAT = 4
# What kernels need beside intermediate results, and what the allocator cannot give out again. On
# a CPU peaks of whole training steps were 1.4 times the intermediate results alone, and those of
# forward passes without gradients, which keep little, 2.3 to 3.4 times.
_WORKING_SPACE, _WORKING_SPACE_FORWARD = 1.4, 2.7
# Of each image: in a step its pixels, where they lie in their cells, the image and its noise; while
# a sampler works the state, a step before it, the score and noise.
_COPIES_OF_AN_IMAGE = 4
# A row of metrics.jsonl, and what every step adds to it: its tau and the norm of its gradient.
_ROW_BYTES, _STEP_BYTES = 520, 35


@dataclass(frozen=True)
class Cost:
    """Estimates of what a training takes; bytes are of one device.

    - `parameters`: their number. `forward`: FLOP of one image's forward pass.
    - `step`, `total`: FLOP of an optimiser step and of all of them.
    - `micro`, `drawn`: images of a forward pass in a step, and of one in a grid of samples.
    - `state_bytes`: weights, gradients, optimiser and averages, all float32; they are always there.
    - `data_bytes`: images that stay on the device.
    - `half_bytes`: half-precision copies of the weights, in a step.
    - `bucket_bytes`: gradients once more, where several processes add up micro-batches.
    - `batch_bytes`: the images of a step, and their noise.
    - `activation_bytes`: intermediate results of a step, and what the kernels need.
    - `average_bytes`: while samples are drawn, the weights in whose place the average stands.
    - `grid_bytes`: intermediate results of a forward pass of samples, and the samples.
    - `disk`: what the run folder takes.
    """

    parameters: int
    forward: int
    step: int
    total: int
    micro: int
    drawn: int
    state_bytes: int
    data_bytes: int
    half_bytes: int
    bucket_bytes: int
    batch_bytes: int
    activation_bytes: int
    average_bytes: int
    grid_bytes: int
    disk: Disk

    @property
    def in_step(self) -> int:
        """Bytes that a device holds at the fullest moment of a step."""
        return self._always + (
            self.half_bytes + self.bucket_bytes + self.batch_bytes + self.activation_bytes
        )

    @property
    def in_grid(self) -> int:
        """Bytes that a device holds while samples are drawn; 0 if none are."""
        return self._always + self.average_bytes + self.grid_bytes if self.drawn else 0

    @property
    def _always(self) -> int:
        return self.state_bytes + self.data_bytes

    def days(self, rate: float) -> float:
        """Days on a device that sustains `rate` FLOP/s."""
        return self.total / rate / _SECONDS_A_DAY


@dataclass(frozen=True)
class Disk:
    """What a run folder takes, in bytes of one and numbers.

    - `checkpoint`: weights, average and two moments. `kept`: how many stay. `most`: how many there
      are while one is written.
    - `snapshot`: averages from which others are made. `snapshots`, `most_snapshots`: so many.
    - `grid`: a picture of samples or data, of one byte a value. `grids`: how many.
    - `metrics`: all rows of metrics.jsonl.
    """

    checkpoint: int
    kept: int
    most: int
    snapshot: int
    snapshots: int
    most_snapshots: int
    grid: int
    grids: int
    metrics: int

    @property
    def total(self) -> int:
        """Bytes that the folder takes at the most."""
        averages = self.most_snapshots * self.snapshot
        return self.most * self.checkpoint + averages + self.grids * self.grid + self.metrics


def estimate(
    recipe: Recipe,
    *,
    channels: int,
    image_size: tuple[int, int],
    data_bytes: int = 0,
    processes: int = 1,
) -> Cost:
    """What training a recipe costs; nothing is allocated.

    Args:
        recipe: what would be done.
        channels, image_size: of the images.
        data_bytes: of all images together, as they are stored.
        processes: that share the training, a device each.

    Raises:
        UserError: if the network or the micro-batches cannot be built.
    """
    spec = recipe.training
    config = build_network_config(recipe, channels=channels, image_size=image_size)
    with user_errors("training"):
        share, micro = micro_batches(build_training(recipe), processes)
    parameters, forward = parameter_count(config), flops_per_image(config)
    step, weights = STEP_OVER_FORWARD * forward * spec.batch_size, _FLOAT * parameters
    spread = processes if spec.shard else 1
    image = _FLOAT * channels * math.prod(image_size) * _COPIES_OF_AN_IMAGE
    half, half_drawn = spec.precision == "bf16", recipe.sampling.precision != "fp32"
    drawn, grid = 0, 0
    if spec.sample_every is not None and spec.sample_every <= spec.steps:
        # Of a network that is spread all draw every sample, else each its share.
        drawn = min(micro, spec.samples if spread > 1 else -(-spec.samples // processes))
        passed = estimate_activation_bytes(config, drawn, 2 if half_drawn else 4, training=False)
        grid = round(_WORKING_SPACE_FORWARD * passed) + drawn * image + half_drawn * weights // 2
    return Cost(
        parameters=parameters,
        forward=forward,
        step=step,
        total=step * spec.steps,
        micro=micro,
        drawn=drawn,
        # Weights, gradients, two moments and the averages.
        state_bytes=(5 + len(LENGTHS) * spec.posthoc_ema) * weights // spread,
        data_bytes=data_bytes if data_bytes <= RESIDENT_BYTES else 0,
        half_bytes=half * weights // 2,
        # Gradients of the first micro-batches do not lie where the last one's are exchanged.
        bucket_bytes=weights if processes > spread and micro < share else 0,
        batch_bytes=share * image,
        activation_bytes=round(
            _WORKING_SPACE * estimate_activation_bytes(config, micro, 2 if half else 4)
        ),
        average_bytes=weights // spread,
        grid_bytes=grid,
        disk=_disk(recipe, parameters, spec.samples * channels * math.prod(image_size)),
    )


def _disk(recipe: Recipe, parameters: int, grid: int) -> Disk:
    spec = recipe.training
    written = math.ceil(spec.steps / spec.checkpoint_every)
    kept = min(written, spec.keep_checkpoints or written)
    snapshots = min(written, MOST_SNAPSHOTS) if spec.posthoc_ema else 0
    drawn = 0 if spec.sample_every is None else spec.steps // spec.sample_every
    # There is one with every checkpoint too.
    rows = spec.steps // spec.log_every + written
    rows -= spec.steps // math.lcm(spec.log_every, spec.checkpoint_every)
    return Disk(
        checkpoint=4 * _FLOAT * parameters,
        kept=kept,
        # While a checkpoint is written the oldest is still there.
        most=min(written, kept + 1),
        snapshot=len(LENGTHS) * _FLOAT * parameters if spec.posthoc_ema else 0,
        snapshots=snapshots,
        # Checkpoints have theirs too: the last one's is a snapshot, the others' may be thinned out.
        most_snapshots=min(written, snapshots + kept),
        grid=grid,
        grids=1 + drawn,  # the data come first
        metrics=spec.steps * _STEP_BYTES + rows * _ROW_BYTES,
    )
