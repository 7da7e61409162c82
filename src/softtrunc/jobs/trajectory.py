"""How images come about, as a GIF or a strip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from softtrunc.data import in_pictures
from softtrunc.data.pictures import save_gif, save_grid
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.progress import Progress, Silent, counting
from softtrunc.recipes.build import build_sampler
from softtrunc.runs.draw import to_data
from softtrunc.runs.open_run import OpenRun, open_run
from softtrunc.samplers import Step, Trajectory
from softtrunc.training import AnyWeights

_STRIP_COLUMNS = 12
_GIF_FRAMES = 60
_MOST_IMAGES = 64


@contextmanager
def watching(
    progress: Progress, label: str, then: Callable[[Step], None] | None = None
) -> Iterator[Callable[[Step], None]]:
    """A sampler's callback that draws a bar of its way, and calls `then` after each step."""
    with counting(progress, f"{label} (%)") as count:

        def watch(step: Step) -> None:
            count(int(100 * step.fraction), 100)
            if then is not None:
                then(step)

        yield watch


def check_suffix(path: Path, option: str, *suffixes: str) -> None:
    """Refuse the name of another kind of file, or of a folder.

    Raises:
        UserError: saying which option.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: write a file that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder: write a file")


def save_frames(frames: UInt8[Tensor, "frames n c h w"], path: Path, option: str) -> None:
    """A `.gif` of grids, or a `.png` with a row for each image and a column for each frame.

    Raises:
        UserError: if the file cannot be written.
    """
    with user_errors(f"{option} {path}"):
        if path.suffix.lower() == ".gif":
            save_gif(frames, path)
        else:
            save_grid(frames.transpose(0, 1).flatten(0, 1), path, columns=len(frames))


def _visible(opened: OpenRun, x: Float[Tensor, "n c h w"], t: float) -> UInt8[Tensor, "n c h w"]:
    """A noisy state scaled to the spread of data, as grey levels 0 ... 255."""
    if t > 0.0:
        alpha, sigma = opened.model.sde.marginal(torch.tensor(t, dtype=torch.float64))
        low, high = opened.model.value_range
        middle, half = (low + high) / 2, (high - low) / 2
        spread = torch.hypot(torch.ones_like(sigma), sigma / (alpha * half))
        x = middle + (x / float(alpha) - middle) / float(spread)
    return in_pictures(to_data(opened, x), opened.card)


def draw_trajectory(
    path: Path,
    out: Path,
    count: int = 8,
    *,
    overrides: Sequence[str] = (),
    weights: AnyWeights = "ema",
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Record the way of a run's images 0 ... count - 1 from noise to data.

    They are the images that `draw_to` draws from the same seed. Noisy states are scaled to the
    spread of data, x_t / sqrt(alpha^2 + sigma^2) where data have spread 1.

    Args:
        path: the run folder.
        out: a `.gif` of up to 60 frames, or a `.png` of up to 12 columns.
        count: how many images, 1 to 64.
        overrides: `a.b=c` changes of the recipe's sampling section.
        weights: averaged or raw, or the length of an average to make.
        seed: image i is drawn from `seed + i`.
        progress: where a bar goes.

    Raises:
        UserError: if the run, a key or the file is not usable.
    """
    check_suffix(out, "--trajectory", ".gif", ".png")
    if not 1 <= count <= _MOST_IMAGES:
        raise UserError(f"-n {count}: a trajectory shows 1 to {_MOST_IMAGES} images")
    opened = open_run(path, weights=weights, overrides=overrides)
    spec = opened.recipe.sampling
    recorder = Trajectory(_GIF_FRAMES if out.suffix.lower() == ".gif" else _STRIP_COLUMNS)
    with watching(progress or Silent(), f"sample {opened.run.path.name}", recorder) as watch:
        build_sampler(spec, opened.model.sde).sample(
            opened.drawn_from(range(count)),
            (count, *opened.event),
            seeds=range(seed, seed + count),
            device=opened.device,
            callback=watch,
        )
    if opened.accelerator.is_main_process:
        shown = [_visible(opened, x, t) for x, t in zip(recorder.x, recorder.times, strict=True)]
        save_frames(torch.stack(shown), out, "--trajectory")
