"""Train a recipe into a run folder: log, sample, save, stop and go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Shaped
from torch import Tensor

from softtrunc.data import from_model, in_pictures
from softtrunc.data.pictures import grid, save_png
from softtrunc.feedback.errors import RunFailedError, UserError, user_errors
from softtrunc.feedback.files import complaint, naming_lost_writes
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.processes import company, is_lost
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.feedback.signals import StopRequest, stop_on_signal
from softtrunc.jobs.class_grid import grid_columns, real_images
from softtrunc.jobs.data_check import DataCheck
from softtrunc.jobs.questions import Deadline, Questions
from softtrunc.jobs.remarks import remarks
from softtrunc.jobs.shared_grid import draw_together
from softtrunc.jobs.start import Start, check_unchanged, start_of_resumed
from softtrunc.jobs.trackers import Trackers, check_tracker
from softtrunc.networks.blocks import AttentionBlock, ResidualBlock
from softtrunc.recipes.build import (
    build_drawn,
    build_model,
    build_objective,
    build_sampler,
    build_sde,
    build_training,
    class_numbers,
    with_classes,
)
from softtrunc.recipes.schema import Recipe
from softtrunc.records import append_metrics
from softtrunc.runs.devices import Devices, find_devices
from softtrunc.runs.folder import Run
from softtrunc.runs.node_images import open_images
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.training import (
    Monitor,
    NonFiniteLossError,
    Stopwatch,
    TrainState,
    find_checkpoint,
    fit,
    keep_averages,
    list_checkpoints,
    load_checkpoint,
    micro_batches,
    remove_unfinished,
    save_checkpoint,
)
from softtrunc.training.sharding import local, shard
from softtrunc.training.speed import fast_kernels, lay_out


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
    start: Start | None = None,
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
        start: the weights to start from; None: random ones, by the recipe's seed.
        progress: where bars and lines go.
        accelerator: devices and processes; None: by the recipe's precision.

    Raises:
        UserError: if the folder is taken, the recipe or data differ from those of the run, a
            checkpoint is damaged, or the recipe cannot be built; or if `start` does not fit.
        RunFailedError: if a loss, the weights or samples are not finite, or the disk is full; the
            last checkpoint stays.
    """
    spec = recipe.training
    check_tracker(recipe)
    devices = (
        find_devices(spec.timeout, precision=spec.precision, tracker=spec.tracker, folder=out)
        if accelerator is None
        else Devices(accelerator, company())
    )
    together = devices.company
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > together.size == 1:
        raise UserError(
            f"srun started {tasks} tasks that do not know of each other, and all would write "
            f"{out}: start one a node, with `accelerate launch -m softtrunc train ...` in it"
        )
    if progress is None or not together.main:
        progress = Silent()
    with only_one(out, "training into it") if together.main else nullcontext():
        training = _Training(recipe, Run(out), resume, start, devices, progress)
        if verify:
            training.check.wait()
        together.meet()  # every process has looked before the first one writes
        try:
            with fast_kernels(devices.accelerator.device, tf32=spec.tf32), naming_lost_writes(out):
                training.begin()
                training.go(progress)
        except FloatingPointError as error:  # of the samples
            raise RunFailedError(f"{error}; {training.kept()}") from error
        except OSError as error:
            what = f"{complaint(error)}: {training.kept()}; make room, then --resume"
            raise RunFailedError(what) from error
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise RunFailedError(
                f"another process of this training is gone; {training.kept()}; go on with --resume"
            ) from error
    return TrainOutcome(training.state.step, training.clock.seconds, interrupted=training.stopped)


class _Training:
    """One training: everything is built, and what can be refused is refused, before it begins."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        resume: bool,
        start: Start | None,
        devices: Devices,
        progress: Progress,
    ) -> None:
        self.run = run
        self.accelerator, self.company = devices
        accelerator, self.main = self.accelerator, self.company.main
        going_on = resume and run.exists
        if not going_on:
            run.check_vacant()
        self.data = open_images(recipe, "train", self.company, progress)
        self.recipe = recipe = with_classes(recipe, self.data.card)
        class_numbers(recipe, self.data.card, range(1))  # what samples ask for is there
        if going_on:
            run.check_same(recipe, self.data.card)
            run.check_places()
            start = start_of_resumed(run, start)
        self.check = DataCheck(self.data, here=self.main)
        self.trackers = Trackers(accelerator, recipe, run.path)
        self.config = build_training(recipe)
        self.objective = build_objective(recipe)
        self.sampler = build_sampler(recipe.sampling, build_sde(recipe))
        self.sharded = recipe.training.shard and self.company.size > 1
        begins = not list_checkpoints(run.checkpoints)
        self.start = start if begins else None
        self.filled: Mapping[str, Any] | None = None
        self.model = self._model()
        with user_errors("training"):
            _, self.micro = micro_batches(self.config, accelerator.num_processes)
            for size in (self.config.batch_size, self.micro):
                self.objective.draw(size)  # what the loss cannot split is refused now
        self.state = TrainState.create(self.model, self.config)
        if self.start is not None:
            self.start.remember(self.state)
        if start is not None:
            progress.say(f"{run.path.name} {'starts' if begins else 'started'} from {start}")
        self.clock = Stopwatch(self._load() if going_on else 0.0)
        self.clock.pause()
        self.stopped = False
        self.monitor = Monitor(
            accelerator,
            dimensions=self.data.images[0].size,
            summed=recipe.objective.reduction == "sum",
            clock=self.clock,
        )
        for line in remarks(recipe, self.data):
            progress.say(line)

    def _model(self) -> ScoreModel:
        """The model on its device: spread over the processes, or laid out as is fastest there."""
        card, spec, device = self.data.card, self.recipe.training, self.accelerator.device
        size = card.height, card.width
        model = build_model(self.recipe, channels=card.channels, image_size=size)
        if self.start is not None:
            self.filled = self.start.fill(model)
            if self.run.exists:
                check_unchanged(self.run, self.filled)
        network = model.network
        if self.sharded:
            blocks = (ResidualBlock, AttentionBlock)
            units = [part for part in network.modules() if isinstance(part, blocks)]
            shard(network, units, device)
        model.to(device)
        if not self.sharded:  # shards cannot have channels last
            lay_out(network, device, spec.channels_last)
        return model

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
                if run.exists:
                    run.go_on(self.recipe, self.state.step, processes=self.company.size)
                else:
                    run.start(
                        self.recipe,
                        self.data.card,
                        processes=self.company.size,
                        init_from=self.filled,
                    )
            remove_unfinished(run.checkpoints)
            keep_averages(self.state, run.checkpoints, run.averages)
            run.cut_metrics(self.state.step)
            run.samples.mkdir(exist_ok=True)
        self.trackers.begin()
        if self.main:
            real = real_images(self.recipe, self.data, spec.samples)
            self._save_grid(real, "data", "data")
        if spec.compile:
            self.model.network.compile()

    def go(self, progress: Progress) -> None:
        """Take steps until all are done or a signal comes."""
        spec, state, note = self.recipe.training, self.state, ""
        self.company.meet()  # what the first process wrote may have taken a while
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
        with stop_on_signal() as stop, progress.task(label, spec.steps, done=state.step) as bar:
            # A kill may have come between a checkpoint and its grid.
            if self._owes_grid() and not self._sample(stop):
                self.stopped = True
                return
            questions = Questions(self.accelerator, self.clock, state.step)
            deadline = Deadline(self.company.size > 1, progress.say)
            self.clock.resume()
            for record in records:
                self.monitor.add(record)
                step = state.step
                wanted = questions.any_stop(step, stop.signal is not None)
                deadline.look(questions.seconds_a_step)
                saving = step % spec.checkpoint_every == 0 or step == spec.steps or wanted
                if saving or step % spec.log_every == 0:
                    self.check.look()
                    note = self._log()
                bar.advance(1, note)
                self.clock.pause()
                if saving:
                    # A signal is answered at once: who goes on looks at the data again.
                    self.check.look() if wanted else self.check.wait()
                    begun = monotonic()
                    self._save()
                    deadline.look(questions.seconds_a_step, monotonic() - begun)
                    wanted |= self.company.meet(vote=stop.signal is not None, stop=stop)
                if not wanted and self._owes_grid() and not self._sample(stop):
                    self._save()  # before anything that others take part in
                    self._log()
                    wanted = True
                self.clock.resume()
                if wanted:
                    self.stopped = True
                    break
        self.company.meet()
        self.trackers.end()

    def _owes_grid(self) -> bool:
        """Whether a grid of the present step is wanted and not there."""
        every, step = self.recipe.training.sample_every, self.state.step
        if every is None or step == 0 or step % every:
            return False
        file = self.run.samples / f"step-{step:08d}.png"
        return self.company.from_main(lambda: not file.exists())

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
        self.trackers.log(row)
        return f"loss {row.loss:.4f}  {row.images_per_second:,.0f} img/s"

    def _save(self) -> None:
        wrong = not all(bool(torch.isfinite(local(p)).all()) for p in self.model.parameters())
        if self.company.meet(vote=wrong) if self.sharded else wrong:
            raise RunFailedError(
                f"step {self.state.step}: the weights are not finite: lower "
                f"training.learning_rate; {self.kept()}"
            )
        if self.main or self.sharded:
            save_checkpoint(
                self.run.checkpoints,
                self.state,
                seconds=self.clock.seconds,
                keep=self.recipe.training.keep_checkpoints,
                write=self.main,
            )
        if self.main:
            keep_averages(self.state, self.run.checkpoints, self.run.averages)

    def kept(self) -> str:
        """What is left of a run that failed."""
        saved = list_checkpoints(self.run.checkpoints)
        return (
            f"the last checkpoint is kept in {saved[-1]}" if saved else "no checkpoint was written"
        )

    def _sample(self, stop: StopRequest) -> bool:
        """Draw samples of the averaged weights, from the same seeds every time.

        All processes take part. False: a signal came first, and the grid is still owed.
        """
        card, model, recipe = self.data.card, self.model, self.recipe

        def drawn_from(numbers: range) -> ScoreFunction:
            return build_drawn(recipe.sampling, model, class_numbers(recipe, card, numbers))

        model.eval()
        with self.state.ema.applied(model):
            images = draw_together(
                recipe.training.samples,
                self.data.images.shape[1:],
                self.micro,
                sampler=self.sampler,
                drawn_from=drawn_from,
                to_data=lambda x: from_model(
                    x, card, model.value_range, dequantized=recipe.data.dequantize
                ),
                company=self.company,
                stop=stop,
                in_step=self.sharded,
            )
        if images is not None and self.main:
            self._save_grid(images, f"step-{self.state.step:08d}", "samples")
        return images is not None

    def _save_grid(self, images: Shaped[Tensor, "n c h w"], name: str, what: str) -> None:
        columns = grid_columns(self.recipe, self.data.card)
        shown = grid(in_pictures(images, self.data.card), columns)
        save_png(shown, self.run.samples / f"{name}.png")
        self.trackers.show(what, shown, self.state.step)
