"""From an image to the size that is wanted: cropped, then resized without aliasing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_PIXELS_AT_ONCE = 1 << 20
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Fit:
    """How images are brought to one size.

    - `size`: (height, width) of the result.
    - `crop`: side of the central square that is kept; None: the largest central part with the
      aspect of `size`.
    - `filter`: Pillow's "bicubic" (a = -1/2), "bilinear" (triangle) or "box" (mean of areas), each
      as wide as the reduction asks for, so that nothing aliases; None: images must have the size.
    - `strict`: the arithmetic of the published protocols: in float32 with one rounding at the end,
      and smaller images are refused. Otherwise Pillow's own 8-bit passes, and smaller images are
      enlarged.
    """

    size: tuple[int, int]
    crop: int | None = None
    filter: Literal["bicubic", "bilinear", "box"] | None = "bicubic"
    strict: bool = False

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
        """Pixels (height, width, C) of an image in mode "L" or "RGB".

        Raises:
            ValueError: with `strict`, if the image is smaller than what is wanted of it.
        """
        height, width = self.size
        if self.filter is None and image.size != (width, height):
            raise ValueError(
                f"is {image.width}x{image.height} (width x height); the protocol takes "
                f"{width}x{height} as it is"
            )
        cropped = self._cropped(image)
        if cropped.size == (width, height):
            return pixels_of(cropped)
        resampling = _FILTERS[self.filter or "bicubic"]
        if not self.strict:
            return pixels_of(cropped.resize((width, height), resampling))
        if cropped.width < width or cropped.height < height:
            raise ValueError(
                f"is {image.width}x{image.height} (width x height), smaller than the protocol's "
                f"{width}x{height}"
            )
        # Band by band in float: Pillow rounds to 8 bits twice otherwise, once per direction.
        bands = [
            np.asarray(band.convert("F").resize((width, height), resampling))
            for band in cropped.split()
        ]
        exact: np.ndarray = np.rint(np.stack(bands, axis=-1)).clip(0.0, 255.0)
        return exact.astype(np.uint8)

    def enlarges(self, size: tuple[int, int]) -> bool:
        """Whether an image of this (width, height) has fewer pixels than are made of it."""
        height, width = self.size
        return self.crop is None and (size[0] < width or size[1] < height)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """Cut before resizing and at whole pixels, so that the filter sees nothing of the rest."""
        height, width = self.size
        if image.size == (width, height) and self.crop is None:
            return image
        if self.crop is not None:
            if min(image.size) < self.crop:
                raise ValueError(
                    f"is {image.width}x{image.height} (width x height), smaller than the "
                    f"protocol's crop of {self.crop}x{self.crop}"
                )
            crop_width = crop_height = self.crop
        else:
            scale = min(image.width / width, image.height / height)
            crop_width = max(1, min(image.width, round(width * scale)))
            crop_height = max(1, min(image.height, round(height * scale)))
        if (crop_width, crop_height) == image.size:
            return image  # a copy of a large one would double its memory
        left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
        return image.crop((left, top, left + crop_width, top + crop_height))


def pixels_of(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Pixels (height, width, C) of an image in mode "L" or "RGB"."""
    width, height, depth = *image.size, len(image.getbands())
    rows = max(1, _PIXELS_AT_ONCE // width)
    if height <= rows:
        pixels: np.ndarray = np.asarray(image)
        return pixels.reshape(height, width, depth)
    # Of a large image NumPy would hold all twice while it asks Pillow for the bytes.
    pixels = np.empty((height, width, depth), np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(strip).reshape(-1, width, depth)
    return pixels


def pair(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) from a side or a pair.

    Raises:
        ValueError: if a side is smaller than 1.
    """
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1:
        raise ValueError(f"image_size={image_size}: sides must be at least 1, e.g. 64 or (48, 64)")
    return size


def fit_to(image_size: int | tuple[int, int] | None) -> Fit | None:
    """The plain way to a size: centre crop to its aspect, antialiased bicubic, 8 bits.

    Raises:
        ValueError: if a side is smaller than 1.
    """
    size = pair(image_size)
    return None if size is None else Fit(size)


def describe_fit(fit: Fit | None) -> str:
    """What is done to images, for a data card."""
    if fit is None or fit.filter is None:
        return "none"
    crop = "centre crop" if fit.crop is None else f"centre crop {fit.crop}x{fit.crop}"
    size = f"{fit.size[0]}x{fit.size[1]}"
    if not fit.strict:
        return f"{crop}, Pillow {fit.filter} (antialiased) to {size} (height x width)"
    return f"{crop}, antialiased {fit.filter} to {size} in float32, rounded to 8 bits"
