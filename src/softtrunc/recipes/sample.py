"""Draw images from a run into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from softtrunc.data import stretch_levels, to_uint8
from softtrunc.recipes.build import build_sampler
from softtrunc.recipes.errors import UserError, user_errors
from softtrunc.recipes.open_run import OpenRun, open_run
from softtrunc.recipes.progress import Progress, Silent
from softtrunc.report.grid import save_png, to_pillow
from softtrunc.training import Weights

__all__ = ["Drawn", "draw", "draw_to"]


class Drawn:
    """Images drawn so far, uint8 levels (N, C, H, W), and what drawing took."""

    def __init__(self, images: UInt8[Tensor, "n c h w"], nfe: int) -> None:
        self.images = images
        self.nfe = nfe


def draw(
    opened: OpenRun, count: int, *, seed: int = 0, batch_size: int = 256, progress: Progress
) -> Drawn:
    """Draw `count` images; image i depends on `seed + i` alone.

    The largest number of network evaluations of any batch is kept as `nfe`.
    """
    sampler = build_sampler(opened.recipe.sampling)
    card = opened.card
    parts, nfe = [], 0
    with progress.task(f"sample {opened.run.path.name}", count) as bar:
        for first in range(0, count, batch_size):
            n = min(batch_size, count - first)
            seeds = range(seed + first, seed + first + n)
            samples = sampler.sample(
                opened.model,
                (n, card.channels, card.height, card.width),
                seeds=seeds,
                device=opened.device,
            )
            nfe = max(nfe, samples.nfe)
            levels = to_uint8(
                samples.x,
                levels=card.levels,
                value_range=opened.model.value_range,
                dequantized=opened.recipe.data.dequantize,
            )
            parts.append(levels.cpu())
            bar.advance(n)
    return Drawn(torch.cat(parts), nfe)


def draw_to(
    path: Path,
    count: int,
    out: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    weights: Weights = "ema",
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Path:
    """Draw images of a run into an `.npz` file or a folder of PNGs.

    Grey levels fewer than 256 are stretched to 0 ... 255. The `.npz` holds `images`, uint8
    (N, H, W, C), and is written beside its place and renamed.

    Returns:
        The file or folder.

    Raises:
        UserError: if the run, a key or the place is not usable.
    """
    opened = open_run(path, weights=weights, overrides=overrides)
    out = out or opened.run.samples / "drawn"
    archive = out.suffix == ".npz"
    if not archive and (out.is_file() or out.suffix.lower() in (".png", ".npy", ".zip", ".jpg")):
        raise UserError(f"--out {out}: write a folder, or a file that ends in .npz")
    if not archive and out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty: choose another folder")
    with user_errors(f"--out {out}"):
        (out.parent if archive else out).mkdir(parents=True, exist_ok=True)
    drawn = draw(opened, count, seed=seed, batch_size=batch_size, progress=progress or Silent())
    images = stretch_levels(drawn.images, opened.card.levels)
    if archive:
        partial = out.with_name(f".{out.name}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, images=images.permute(0, 2, 3, 1).numpy())
        partial.replace(out)
        return out
    for i, image in enumerate(images):
        save_png(to_pillow(image), out / f"{seed + i:06d}.png")
    return out
