"""Grids of images as PNG, and sequences of them as GIF."""

from __future__ import annotations

import math
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from softtrunc.feedback.files import whole_file

# Small images are enlarged to about this many pixels a side, so that a person can see them.
_VISIBLE_SIDE = 64


def to_pillow(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    """One grey or colour image with values 0 ... 255."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG beside its place and rename it."""
    with whole_file(path) as partial:
        image.save(partial, format="PNG")


def grid(images: UInt8[Tensor, "n c h w"], columns: int | None = None) -> Image.Image:
    """Images with values 0 ... 255 as one, row by row; near-square unless told."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    scale = max(1, _VISIBLE_SIDE // max(height, width))
    gap = 2
    cell_w, cell_h = width * scale + gap, height * scale + gap
    mode = "L" if channels == 1 else "RGB"
    sheet = Image.new(mode, (columns * cell_w + gap, rows * cell_h + gap), "white")
    for i, image in enumerate(images.cpu()):
        tile = to_pillow(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + i % columns * cell_w, gap + i // columns * cell_h))
    return sheet


def save_grid(images: UInt8[Tensor, "n c h w"], path: Path, columns: int | None = None) -> None:
    """Write the grid of images as a PNG.

    Written beside its place and renamed.
    """
    save_png(grid(images, columns), path)


def save_gif(
    frames: UInt8[Tensor, "frames n c h w"], path: Path, columns: int | None = None
) -> None:
    """Write a GIF whose frames are grids; it lasts about four seconds, stays, and begins again.

    Written beside its place and renamed.
    """
    first, *rest = (grid(images, columns) for images in frames)
    # Viewers slow down what is shown for less than 20 ms.
    each = max(20, 4000 // len(frames))
    times = [each] * len(rest) + [2000]
    with whole_file(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
