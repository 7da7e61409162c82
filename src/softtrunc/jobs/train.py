"""Train a recipe into a run folder: log, sample, save, stop and go on."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor

from softtrunc.data import ImageDataset, stretch_levels, to_uint8
from softtrunc.data.pictures import save_grid
from softtrunc.feedback.errors import RunFailedError, UserError, user_errors
from softtrunc.feedback.files import complaint
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.feedback.signals import stop_on_signal
from softtrunc.recipes.build import (
    build_data,
    build_model,
    build_objective,
    build_sampler,
    build_sde,
    build_training,
)
from softtrunc.recipes.schema import Recipe
from softtrunc.records import append_metrics
from softtrunc.runs.folder import Run, flatten
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


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    accelerator: Accelerator | None = None,
) -> TrainOutcome:
    """Train `recipe` into the run folder `out`.

    SIGINT, SIGTERM and SIGUSR1 end the run after the present step with a checkpoint. Under several
    processes all must call it; the first one writes.

    Args:
        recipe: what to do.
        out: the run folder; new or empty unless `resume`.
        resume: go on from the newest checkpoint.
        verify: compare every pixel of prepared data with their card before the first step; else
            that is done meanwhile, before the first checkpoint is written.
        progress: where bars and lines go.
        accelerator: devices and processes; None: by the recipe's precision.

    Raises:
        UserError: if the folder is taken, the recipe or data differ from those of the run, a
            checkpoint is damaged, or the recipe cannot be built.
        RunFailedError: if a loss, the weights or samples are not finite, or the disk is full; the
            last checkpoint stays.
    """
    spec = recipe.training
    if spec.tracker is not None and find_spec(spec.tracker) is None:
        raise UserError(
            f"training.tracker={spec.tracker}: not installed: pip install 'softtrunc[tracking]'"
        )
    accelerator = accelerator or Accelerator(
        mixed_precision=spec.precision, log_with=spec.tracker, project_dir=out
    )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > accelerator.num_processes == 1:
        raise UserError(
            f"srun started {tasks} tasks that do not know of each other, and all would write "
            f"{out}: start one a node, with `accelerate launch -m softtrunc train ...` in it"
        )
    if progress is None or not accelerator.is_main_process:
        progress = Silent()
    training = _Training(recipe, Run(out), resume, accelerator, progress)
    if verify:
        training.check.wait()
    accelerator.wait_for_everyone()  # every process has looked before the first one writes
    try:
        training.begin()
        training.go(progress)
    except FloatingPointError as error:  # of the samples
        raise RunFailedError(f"{error}; {training.kept()}") from error
    except OSError as error:
        what = f"{complaint(error)}: {training.kept()}; make room, then --resume"
        raise RunFailedError(what) from error
    step, seconds = training.state.step, training.clock.seconds
    return TrainOutcome(step, seconds, interrupted=step < spec.steps)


class _Check:
    """Every pixel of prepared data, compared with their card while training has begun.

    Args:
        data: the images. `here`: whether this is the process that compares.
    """

    def __init__(self, data: ImageDataset, *, here: bool) -> None:
        self._data = data
        self._error: ValueError | None = None
        # A daemon: nobody waits for it who has a reason to end.
        self._thread = threading.Thread(target=self._compare, daemon=True, name="softtrunc-verify")
        if here and data.unread:
            self._thread.start()

    def _compare(self) -> None:
        try:
            self._data.verify()
        except ValueError as error:
            self._error = error

    def look(self) -> None:
        """Refuse data that are known by now to have changed.

        Raises:
            UserError: if they have.
        """
        if self._error is not None:
            raise UserError(f"{self._error}; nothing learned of them was saved") from self._error

    def wait(self) -> None:
        """Refuse data that have changed, once all of them were read.

        Raises:
            UserError: if they have.
        """
        if self._thread.is_alive():
            self._thread.join()
        self.look()


class _Training:
    """One training: everything is built, and what can be refused is refused, before it begins."""

    def __init__(
        self, recipe: Recipe, run: Run, resume: bool, accelerator: Accelerator, progress: Progress
    ) -> None:
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.main = bool(accelerator.is_main_process)
        going_on = resume and run.exists
        if not going_on:
            run.check_vacant()
        self.data = build_data(recipe, "train", progress)
        if going_on:
            run.check_same(recipe, self.data.card)
            run.check_places()
        card = self.data.card
        self.check = _Check(self.data, here=self.main)
        self.config = build_training(recipe)
        self.objective = build_objective(recipe)
        self.sampler = build_sampler(recipe.sampling, build_sde(recipe))
        self.model = build_model(
            recipe, channels=card.channels, image_size=(card.height, card.width)
        ).to(accelerator.device)
        with user_errors("training"):
            _, micro = micro_batches(self.config, accelerator.num_processes)
            for size in (self.config.batch_size, micro):
                self.objective.draw(size)  # what the loss cannot split is refused now
        self.state = TrainState.create(self.model, self.config)
        self.clock = Stopwatch(self._load() if going_on else 0.0)
        self.clock.pause()
        self.monitor = Monitor(
            accelerator,
            dimensions=self.data.images[0].size,
            summed=recipe.objective.reduction == "sum",
            clock=self.clock,
        )
        for what, count in self.data.converted.items():
            progress.say(f"{count:,} images: {what}")
        for left_out in self.data.skipped[:_MOST_NAMED]:
            progress.say(f"left out {left_out.name}: {left_out.reason}")
        if (more := len(self.data.skipped) - _MOST_NAMED) > 0:
            progress.say(f"left out {more} more files; softtrunc.data.inspect(path) lists them all")

    def _load(self) -> float:
        """Go on from the newest checkpoint, if there is one; the seconds it took to get there."""
        if not list_checkpoints(self.run.checkpoints):
            return 0.0
        with user_errors():
            info = load_checkpoint(find_checkpoint(self.run.checkpoints), self.state)
        if info.step > self.recipe.training.steps:
            raise UserError(
                f"{self.run.path}: already at step {info.step}: write training.steps={info.step} "
                "or more"
            )
        return info.seconds

    def begin(self) -> None:
        """Write what a run folder holds before its first step, and start the trackers."""
        run, spec = self.run, self.recipe.training
        if self.main:
            with user_errors(f"--out {run.path}"):
                run.start(self.recipe, self.data.card)
            remove_unfinished(run.checkpoints)
            run.cut_metrics(self.state.step)
            run.samples.mkdir(exist_ok=True)
            real = torch.from_numpy(self.data.images[: spec.samples].copy())
            self._save_grid(real, "data")
        if spec.compile:
            self.model.network.compile()
        if spec.tracker is not None:
            settings = {k: str(value) for k, value in flatten(self.recipe.model_dump()).items()}
            self.accelerator.init_trackers("softtrunc", config=settings)

    def go(self, progress: Progress) -> None:
        """Take steps until all are done or a signal comes."""
        spec, state, note = self.recipe.training, self.state, ""
        records = fit(
            state,
            self.objective,
            self.data,
            self.config,
            steps=spec.steps,
            value_range=self.model.value_range,
            accelerator=self.accelerator,
        )
        label = f"train {self.run.path.name}"
        if self._owes_grid():  # a kill came between a checkpoint and its grid
            self._sample()
        self.clock.resume()
        with stop_on_signal() as stop, progress.task(label, spec.steps, done=state.step) as bar:
            for record in records:
                self.monitor.add(record)
                step = state.step
                wanted = self._all_stop(step, stop.signal is not None)
                saving = step % spec.checkpoint_every == 0 or step == spec.steps or wanted
                if saving or step % spec.log_every == 0:
                    self.check.look()
                    note = self._log()
                bar.advance(1, note)
                self.clock.pause()
                if saving:
                    # A signal is answered at once: who goes on looks at the data again.
                    self.check.look() if wanted else self.check.wait()
                    self._save()
                if self._owes_grid():
                    self._sample()
                self.clock.resume()
                if wanted:
                    break
        self.accelerator.wait_for_everyone()
        if spec.tracker is not None:
            self.accelerator.end_training()

    def _owes_grid(self) -> bool:
        """Whether a grid of the present step is wanted and not there."""
        every, step = self.recipe.training.sample_every, self.state.step
        if not self.main or every is None or step == 0 or step % every:
            return False
        return not (self.run.samples / f"step-{step:08d}.png").exists()

    def _all_stop(self, step: int, wanted: bool) -> bool:
        """Whether any process is to stop; they ask each other, to stop at the same step."""
        if self.accelerator.num_processes == 1:
            return wanted
        if step % _STEPS_BETWEEN_QUESTIONS:
            return False
        mine = torch.tensor(float(wanted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(mine, reduction="sum").item() > 0)

    def _log(self) -> str:
        """Write a line of metrics; what to show of it beside the bar."""
        try:
            row = self.monitor.row()
        except NonFiniteLossError as error:
            raise RunFailedError(f"{error}; {self.kept()}") from error
        if row is None:
            return ""
        if self.main:
            append_metrics(self.run.metrics_file, row)
        if self.recipe.training.tracker is not None:
            self.accelerator.log(row.scalars, step=row.step)
        return f"loss {row.loss:.4f}  {row.images_per_second:,.0f} img/s"

    def _save(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise RunFailedError(
                f"step {self.state.step}: the weights are not finite: lower "
                f"training.learning_rate; {self.kept()}"
            )
        if self.main:
            keep = self.recipe.training.keep_checkpoints
            save_checkpoint(self.run.checkpoints, self.state, seconds=self.clock.seconds, keep=keep)

    def kept(self) -> str:
        """What is left of a run that failed."""
        saved = list_checkpoints(self.run.checkpoints)
        return (
            f"the last checkpoint is kept in {saved[-1]}" if saved else "no checkpoint was written"
        )

    def _sample(self) -> None:
        """Draw samples of the averaged weights, from the same seeds every time."""
        count = self.recipe.training.samples
        shape = (count, *self.data.images.shape[1:])
        self.model.eval()
        with self.state.ema.applied(self.model):
            drawn = self.sampler.sample(self.model, shape, seeds=range(count))
        images = to_uint8(
            drawn.x,
            levels=self.data.card.levels,
            value_range=self.model.value_range,
            dequantized=self.recipe.data.dequantize,
        )
        self._save_grid(images, f"step-{self.state.step:08d}")

    def _save_grid(self, images: UInt8[Tensor, "n c h w"], name: str) -> None:
        shown = stretch_levels(images, self.data.card.levels)
        save_grid(shown, self.run.samples / f"{name}.png")
