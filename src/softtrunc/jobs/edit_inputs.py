"""What edits start from: a user's images or held-out ones, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from softtrunc.data import to_model_range
from softtrunc.data.images.decode import decode
from softtrunc.data.images.fit import Fit
from softtrunc.feedback.errors import UserError, nearest
from softtrunc.feedback.progress import Progress
from softtrunc.recipes.build import build_data
from softtrunc.runs.open_run import OpenRun


class Inputs(NamedTuple):
    """Images as grey levels (N, C, H, W) of the run's data, and what to call them."""

    images: UInt8[Tensor, "n c h w"]
    names: list[str]


def _decode(path: Path, fit: Fit | None, channels: int) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such image")
    try:
        return decode(path, fit, channels).pixels
    except Exception as error:  # Pillow's decoders raise whatever they like on broken files
        raise UserError(f"{path}: not an image that can be read: {error}") from error


def read_images(
    opened: OpenRun, files: Sequence[Path], count: int, progress: Progress | None = None
) -> Inputs:
    """The images in `files`, or the first `count` held-out ones of the run's data.

    Files are made grey or colour as the data are, and cropped and resized where the recipe does
    so; otherwise they must have the data's size.

    Raises:
        UserError: if a file is no image or of another size, or the data cannot be read.
    """
    card = opened.card
    if not files:
        data = build_data(opened.recipe, "test", progress)
        numbers = torch.arange(min(count, len(data)))
        return Inputs(data.batch(numbers), [f"held-out {i}" for i in numbers.tolist()])
    spec = opened.recipe.data
    resizing = spec.image_size is not None or spec.preset is not None
    fit = Fit((card.height, card.width)) if resizing else None
    images = []
    for path in files:
        pixels = _decode(path, fit, card.channels)
        if pixels.shape[:2] != (card.height, card.width):
            raise UserError(
                f"{path}: is {pixels.shape[1]}x{pixels.shape[0]} pixels, the run's images are "
                f"{card.width}x{card.height}: resize it"
            )
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    # 0 ... 255 as 0 ... levels - 1: undoes `stretch_levels`.
    levels = (torch.stack(images).float() * ((card.levels - 1) / 255.0)).round().to(torch.uint8)
    return Inputs(levels, [path.name for path in files])


def to_model(opened: OpenRun, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Grey levels as the model's data, on its device: the centre of a level's cell."""
    noise = torch.full(images.shape, 0.5) if opened.recipe.data.dequantize else None
    x = to_model_range(
        images, levels=opened.card.levels, value_range=opened.model.value_range, noise=noise
    )
    return x.to(opened.device)


def build_mask(opened: OpenRun, mask: str) -> Bool[Tensor, "h w"]:
    """What is known: False where `mask` says that something is to be filled in.

    Args:
        opened: the run.
        mask: "left", "right", "top", "bottom" or "center" (half as high and wide); or an image
            file of the data's size, white (128 and more) where to fill in.

    Raises:
        UserError: if it is neither, of another size, or leaves nothing to fill in.
    """
    height, width = opened.card.height, opened.card.width
    known = torch.ones(height, width, dtype=torch.bool)
    parts = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
        "top": np.s_[: height // 2, :],
        "bottom": np.s_[height // 2 :, :],
        "center": np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4],
    }
    if mask in parts:
        known[parts[mask]] = False
        return known
    path = Path(mask)
    if not path.is_file():
        raise UserError(f"--mask {mask}: no such file; {nearest(mask, parts)}")
    pixels = _decode(path, None, 1)[:, :, 0]
    if pixels.shape != (height, width):
        raise UserError(
            f"--mask {mask}: is {pixels.shape[1]}x{pixels.shape[0]} pixels, the images are "
            f"{width}x{height}: both must be the same"
        )
    known = torch.from_numpy(pixels < 128)
    if bool(known.all()):
        raise UserError(f"--mask {mask}: nothing is white: paint what is to be filled in white")
    return known
