"""Edits of images with a trained run: codes, ways between images, missing parts, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from softtrunc.data import stretch_levels
from softtrunc.data.pictures import save_grid
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import whole_file
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.jobs.edit_inputs import build_mask, read_images, to_model
from softtrunc.jobs.trajectory import check_suffix, save_frames, watching
from softtrunc.noise import Noise
from softtrunc.recipes.build import build_sampler
from softtrunc.runs.draw import to_data
from softtrunc.runs.open_run import OpenRun, open_run
from softtrunc.samplers import (
    DPMSolver,
    FixedStepSampler,
    Heun,
    ProbabilityFlow,
    Sampler,
    Samples,
    colorize,
    decode,
    encode,
    inpaint,
    slerp,
)
from softtrunc.score import ScoreFunction
from softtrunc.training import Weights


class RoundTrip(NamedTuple):
    """One image's way to its latent and back.

    `rms` and `worst` are of the difference in units of the 256 levels of a shown image; `exact`
    says whether every pixel came back to its level. `radius` is the latent's norm divided by
    prior_std sqrt(D): about 1 for images that the model finds likely.
    """

    name: str
    rms: float
    worst: float
    exact: bool
    radius: float


@dataclass(frozen=True)
class Editor:
    """A run opened for edits.

    Every edit takes `files`, images (none: the first `count` held-out ones), and writes `out`; it
    raises `UserError` if an image, the file or what the run is asked for is not usable.

    Args:
        opened: the run.
        progress: where bars go.
    """

    opened: OpenRun
    progress: Progress

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        weights: Weights = "ema",
        overrides: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Editor:
        """Open a run, as `open_run` does."""
        opened = open_run(path, weights=weights, overrides=overrides)
        if opened.accelerator.num_processes > 1:
            raise UserError("edits run in one process: leave out `accelerate launch`")
        if not opened.card.on_grid:
            raise UserError(f"{path}: edits are of images, and this run's data are floats")
        return cls(opened, progress or Silent())

    def encode(self, files: Sequence[Path], count: int, out: Path) -> tuple[list[RoundTrip], int]:
        """Carry images to their latents and back along the probability flow.

        Args:
            files: see the class.
            count: see the class.
            out: an `.npz` for `images` uint8 (N, H, W, C), `latents` float32 (N, C, H, W) and
                `names`; or a `.png` with the images above what came back.

        Returns:
            What became of each image, and the network evaluations of both ways.
        """
        check_suffix(out, "--out", ".npz", ".png")
        opened, model = self.opened, self.opened.model
        inputs = read_images(opened, files, count, self.progress)
        x = to_model(opened, inputs.images)
        latent = self._encode(x)
        with watching(self.progress, "decode") as watch:
            back = decode(self._model(len(x)), latent.x, flow=self._flow(), callback=watch)
        low, high = model.value_range
        error = (255.0 / (high - low)) * (back.x - x).flatten(1)
        exact = (to_data(opened, back.x) == inputs.images).flatten(1).all(1)
        scale = model.sde.prior_std * x[0].numel() ** 0.5
        columns = (
            error.square().mean(1).sqrt().tolist(),
            error.abs().amax(1).tolist(),
            exact.tolist(),
            (latent.x.flatten(1).norm(dim=1) / scale).tolist(),
        )
        trips = [RoundTrip(*row) for row in zip(inputs.names, *columns, strict=True)]
        seen = stretch_levels(inputs.images, opened.card.levels)
        with user_errors(f"--out {out}"):
            if out.suffix.lower() == ".png":
                save_grid(torch.cat([seen, self._shown(back.x)]), out, columns=len(seen))
            else:
                with whole_file(out) as partial, partial.open("wb") as file:
                    np.savez(
                        file,
                        images=seen.permute(0, 2, 3, 1).numpy(),
                        latents=latent.x.cpu().numpy(),
                        names=np.array(inputs.names),
                    )
        return trips, latent.nfe + back.nfe

    def interpolate(
        self, files: Sequence[Path], seeds: Sequence[int], frames: int, out: Path
    ) -> Samples:
        """Show the way between images, or between the samples of two or more seeds.

        Latents are joined by arcs of great circles. Between images it runs along the probability
        flow, so that the ends are the images themselves; between seeds through the recipe's
        sampler if it is deterministic, else along the flow too.

        Args:
            files: two or more images; or none, and
            seeds: two or more seeds.
            frames: pictures from one end to the next, both included, >= 2.
            out: a `.gif`, or a `.png` with one row.
        """
        check_suffix(out, "--out", ".gif", ".png")
        if bool(files) == bool(seeds) or len(files) == 1 or len(seeds) == 1:
            raise UserError(
                "interpolate: name two or more images, or two or more seeds: --seed 3 --seed 7"
            )
        opened = self.opened
        sampler: Sampler = self._flow()
        if files:
            ends = self._encode(to_model(opened, read_images(opened, files, 0).images)).x
        else:
            shape = (len(seeds), *opened.event)
            unit = Noise(len(seeds), seeds, None).draw(shape, opened.device, torch.float32)
            ends = opened.model.sde.prior_std * unit
            chosen = build_sampler(opened.recipe.sampling, opened.model.sde)
            sampler = chosen if _deterministic(chosen) else sampler
        latents = _arc(ends, frames)
        with watching(self.progress, "sample") as watch:
            drawn = sampler.sample(
                self._model(len(latents)),
                latents.shape,
                x_init=latents,
                device=opened.device,
                callback=watch,
            )
        save_frames(self._shown(drawn.x)[:, None], out, "--out")
        return drawn

    def inpaint(
        self,
        files: Sequence[Path],
        count: int,
        mask: str,
        out: Path,
        *,
        variants: int = 4,
        seed: int = 0,
    ) -> Samples:
        """Fill in part of images, `variants` times each.

        Args:
            files: see the class.
            count: see the class.
            mask: see `build_mask`.
            out: a `.png`, a row for each image: itself, what was known of it, the variants.
            variants: how often each image is filled in.
            seed: of the first variant of the first image.
        """
        sampler = self._conditional_sampler(out)
        known = build_mask(self.opened, mask)
        images = read_images(self.opened, files, count, self.progress).images
        given = to_model(self.opened, images).repeat_interleave(variants, 0)
        with watching(self.progress, "inpaint") as watch:
            drawn = inpaint(
                sampler,
                self._model(len(given)),
                given,
                known,
                seeds=range(seed, seed + len(given)),
                callback=watch,
            )
        seen = stretch_levels(images, self.opened.card.levels)
        self._save_rows(out, seen, torch.where(known, seen, torch.full_like(seen, 128)), drawn.x)
        return drawn

    def colorize(
        self, files: Sequence[Path], count: int, out: Path, *, variants: int = 4, seed: int = 0
    ) -> Samples:
        """Find colours for grey images, `variants` times each; the channels' mean is kept.

        Args:
            files: see the class; their colours are not looked at.
            count: see the class.
            out: a `.png`, a row for each image: itself, its grey value, the variants.
            variants: how often each image is coloured.
            seed: of the first variant of the first image.
        """
        sampler, card = self._conditional_sampler(out), self.opened.card
        if card.channels == 1:
            raise UserError(
                f"{self.opened.run.path}: its images are grey: colorize needs a run trained in "
                "colour"
            )
        images = read_images(self.opened, files, count, self.progress).images
        gray = to_model(self.opened, images).mean(1, keepdim=True)
        given = gray.repeat_interleave(variants, 0)
        with watching(self.progress, "colorize") as watch:
            drawn = colorize(
                sampler,
                self._model(len(given)),
                given,
                channels=card.channels,
                seeds=range(seed, seed + len(given)),
                callback=watch,
            )
        seen = stretch_levels(images, card.levels)
        self._save_rows(out, seen, self._shown(gray.expand_as(images)), drawn.x)
        return drawn

    def _encode(self, x: Tensor) -> Samples:
        with watching(self.progress, "encode") as watch:
            return encode(self._model(len(x)), x, flow=self._flow(), callback=watch)

    def _model(self, count: int) -> ScoreFunction:
        """What edits so many images: of the class that `sampling` says, else of any."""
        return self.opened.drawn_from(range(count), unless_told="none")

    def _flow(self) -> ProbabilityFlow:
        """The recipe's own flow solver where it has one, else the default one."""
        sampler = build_sampler(self.opened.recipe.sampling, self.opened.model.sde)
        return sampler if isinstance(sampler, ProbabilityFlow) else ProbabilityFlow()

    def _conditional_sampler(self, out: Path) -> FixedStepSampler:
        """The recipe's sampler, which must hold values in place; `out` must be a PNG."""
        check_suffix(out, "--out", ".png")
        sampler = build_sampler(self.opened.recipe.sampling, self.opened.model.sde)
        if not isinstance(sampler, FixedStepSampler):
            raise UserError(
                "sampling.sampler=ode cannot hold values in place: write --sampler pc, or "
                "dpm_solver, heun, ancestral, euler_maruyama"
            )
        return sampler

    def _shown(self, x: Tensor) -> UInt8[Tensor, "n c h w"]:
        return stretch_levels(to_data(self.opened, x), self.opened.card.levels)

    def _save_rows(self, out: Path, first: Tensor, second: Tensor, drawn: Tensor) -> None:
        each = self._shown(drawn).reshape(len(first), -1, *first.shape[1:])
        rows = torch.cat([first[:, None], second[:, None], each], 1)
        with user_errors(f"--out {out}"):
            save_grid(rows.flatten(0, 1), out, columns=rows.shape[1])


def _deterministic(sampler: Sampler) -> bool:
    """Whether the same start always ends in the same place."""
    if isinstance(sampler, Heun):
        return sampler.churn == 0.0
    return isinstance(sampler, ProbabilityFlow) or (
        isinstance(sampler, DPMSolver) and not sampler.stochastic
    )


def _arc(ends: Tensor, frames: int) -> Tensor:
    """From each latent to the next in `frames` pictures, where two ways meet one picture."""
    points = [ends[:1]]
    for first, second in zip(ends[:-1, None], ends[1:, None], strict=True):
        points += [slerp(first, second, i / (frames - 1)) for i in range(1, frames)]
    return torch.cat(points)
