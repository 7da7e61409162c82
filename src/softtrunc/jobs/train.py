"""Train a recipe into a run folder: log, sample, save, stop and go on."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator

from softtrunc.data import ImageDataset, stretch_levels, to_uint8
from softtrunc.data.pictures import save_grid
from softtrunc.feedback.errors import RunFailedError, UserError, user_errors
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.feedback.signals import stop_on_signal
from softtrunc.recipes.build import (
    build_data,
    build_model,
    build_objective,
    build_sampler,
    build_training,
)
from softtrunc.recipes.schema import Recipe
from softtrunc.runs.folder import Run, flatten
from softtrunc.samplers import Sampler
from softtrunc.score import ScoreModel
from softtrunc.training import (
    Monitor,
    NonFiniteLossError,
    Stopwatch,
    TrainState,
    find_checkpoint,
    fit,
    list_checkpoints,
    load_checkpoint,
    micro_batches,
    remove_unfinished,
    save_checkpoint,
)

__all__ = ["TrainOutcome", "train"]

# A signal is answered within this many steps where several processes train.
_STEPS_BETWEEN_QUESTIONS = 10
# Unreadable files are named one by one up to here.
_MOST_NAMED = 20


@dataclass(frozen=True)
class TrainOutcome:
    """Where a run stands: finished steps, training seconds, and whether a signal ended it early."""

    step: int
    seconds: float
    interrupted: bool


def _save_samples(
    run: Run,
    recipe: Recipe,
    state: TrainState,
    model: ScoreModel,
    data: ImageDataset,
    sampler: Sampler,
) -> None:
    """Samples of the averaged weights from the same seeds every time."""
    count = recipe.training.samples
    device = next(model.parameters()).device
    model.eval()
    with state.ema.applied(model):
        drawn = sampler.sample(
            model, (count, *data.images.shape[1:]), seeds=range(count), device=device
        )
    images = to_uint8(
        drawn.x,
        levels=data.card.levels,
        value_range=model.value_range,
        dequantized=recipe.data.dequantize,
    )
    save_grid(stretch_levels(images, data.card.levels), run.samples / f"step-{state.step:08d}.png")


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    accelerator: Accelerator | None = None,
) -> TrainOutcome:
    """Train `recipe` into the run folder `out`.

    SIGINT and SIGTERM end the run after the present step with a checkpoint. Under several
    processes all must call it; the first one writes.

    Args:
        recipe: what to do.
        out: the run folder; new or empty unless `resume`.
        resume: go on from the newest checkpoint.
        progress: where bars and lines go.
        accelerator: devices and processes; None: by the recipe's precision.

    Raises:
        UserError: if the folder is taken, the recipe or data differ from those of the run, a
            checkpoint is damaged, or the recipe cannot be built.
        RunFailedError: if a loss is not finite; the last checkpoint stays.
    """
    spec = recipe.training
    if spec.tracker is not None and find_spec(spec.tracker) is None:
        raise UserError(
            f"training.tracker={spec.tracker}: not installed: pip install 'softtrunc[tracking]'"
        )
    accelerator = accelerator or Accelerator(
        mixed_precision=spec.precision, log_with=spec.tracker, project_dir=out
    )
    main = accelerator.is_main_process
    progress = progress if progress is not None and main else Silent()
    run = Run(out)
    going_on = resume and run.exists
    if not going_on:
        run.check_vacant()
    data = build_data(recipe, "train", progress)
    if going_on:
        run.check_same(recipe, data.card)
    config = build_training(recipe)
    objective = build_objective(recipe)
    sampler = build_sampler(recipe.sampling)
    model = build_model(
        recipe, channels=data.card.channels, image_size=(data.card.height, data.card.width)
    ).to(accelerator.device)
    with user_errors("training"):
        _, micro = micro_batches(config, accelerator.num_processes)
        for size in (config.batch_size, micro):
            objective.draw(size)  # what the loss cannot split is refused now, not in the middle
    state = TrainState.create(model, config)
    seconds = 0.0
    if going_on and list_checkpoints(run.checkpoints):
        with user_errors():
            info = load_checkpoint(find_checkpoint(run.checkpoints), state)
        seconds = info.seconds
        if state.step > spec.steps:
            raise UserError(
                f"{out}: already at step {state.step}: write training.steps={state.step} or more"
            )
    accelerator.wait_for_everyone()  # every process has looked before the first one writes
    for left_out in data.skipped[:_MOST_NAMED]:
        progress.say(f"left out {left_out.name}: {left_out.reason}")
    if len(data.skipped) > _MOST_NAMED:
        more = len(data.skipped) - _MOST_NAMED
        progress.say(f"left out {more} more files; softtrunc.data.inspect(path) lists them all")
    if main:
        with user_errors(f"--out {out}"):
            run.start(recipe, data.card)
        remove_unfinished(run.checkpoints)
        run.cut_metrics(state.step)
        run.samples.mkdir(exist_ok=True)
        real = torch.from_numpy(data.images[: spec.samples].copy())
        save_grid(stretch_levels(real, data.card.levels), run.samples / "data.png")
    if spec.compile:
        model.network.compile()
    if spec.tracker is not None:
        settings = {key: str(value) for key, value in flatten(recipe.model_dump()).items()}
        accelerator.init_trackers("softtrunc", config=settings)

    clock = Stopwatch(seconds)
    monitor = Monitor(
        accelerator,
        dimensions=data.images[0].size,
        summed=recipe.objective.reduction == "sum",
        clock=clock,
    )

    def log() -> str:
        try:
            row = monitor.row()
        except NonFiniteLossError as error:
            raise RunFailedError(f"{error}; {_kept(run)}") from error
        if row is None:
            return ""
        if main:
            run.add_metrics(row.to_dict())
        if spec.tracker is not None:
            accelerator.log(row.scalars(), step=row.step)
        return f"loss {row.loss:.4f}  {row.images_per_second:,.0f} img/s"

    def save() -> None:
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            raise RunFailedError(
                f"step {state.step}: the weights are not finite: lower training.learning_rate; "
                f"{_kept(run)}"
            )
        if main:
            save_checkpoint(
                run.checkpoints, state, seconds=clock.seconds, keep=spec.keep_checkpoints
            )

    note = ""
    with (
        stop_on_signal() as stop,
        progress.task(f"train {out.name}", spec.steps, done=state.step) as bar,
    ):
        for record in fit(
            state,
            objective,
            data,
            config,
            steps=spec.steps,
            value_range=model.value_range,
            accelerator=accelerator,
        ):
            monitor.add(record)
            step = record.step
            last = step == spec.steps
            due = step % spec.log_every == 0
            # Processes must agree to stop at the same step: they ask each other every few steps.
            wanted = stop.signal is not None
            if accelerator.num_processes > 1:
                wanted = step % _STEPS_BETWEEN_QUESTIONS == 0 and _anyone(accelerator, wanted)
            saving = step % spec.checkpoint_every == 0 or last or wanted
            sampling = main and spec.sample_every is not None and step % spec.sample_every == 0
            if due or saving:
                note = log()
            bar.advance(1, note)
            clock.pause()
            if saving:
                save()
            if sampling:
                _save_samples(run, recipe, state, model, data, sampler)
            clock.resume()
            if wanted:
                break
    accelerator.wait_for_everyone()
    if spec.tracker is not None:
        accelerator.end_training()
    return TrainOutcome(state.step, clock.seconds, interrupted=state.step < spec.steps)


def _kept(run: Run) -> str:
    """What is left of a run that failed."""
    saved = list_checkpoints(run.checkpoints)
    return f"the last checkpoint is kept in {saved[-1]}" if saved else "no checkpoint was written"


def _anyone(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set on any process."""
    mine = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(mine, reduction="sum").item() > 0)
