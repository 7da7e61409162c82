"""One encoded image file to uint8 pixels of the wanted size and channels, or a reason why not."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

__all__ = ["MAX_FILE_BYTES", "Decoded", "decode", "describe_fit", "fit", "is_image_name", "pair"]

# Larger files and larger images are taken for decompression bombs. The second bound lies below
# the one at which Pillow itself begins to warn.
MAX_FILE_BYTES = 256 << 20
_MAX_PIXELS = 80_000_000

# Opening these starts another program, or needs a handler that Pillow does not bring.
_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}

# Raw modes with 5 or 6 bits a channel; any other ";16" means 16 bits a channel.
_PACKED_16 = {"BGR;16", "RGB;16"}


class Decoded(NamedTuple):
    """Pixels (H, W, C) of an image, and what its file held: size (width, height) and mode."""

    pixels: UInt8[np.ndarray, "h w c"]
    size: tuple[int, int]
    mode: str


# What most files are; Pillow tries formats in the order given.
_COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    rest = sorted(set(Image.OPEN) - _REFUSED_FORMATS - set(_COMMON_FORMATS))
    return (*(kind for kind in _COMMON_FORMATS if kind in Image.OPEN), *rest)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like that of an image we open, and is not hidden."""
    path = Path(name)
    kind = Image.registered_extensions().get(path.suffix.lower())
    return not path.name.startswith(".") and kind in Image.OPEN and kind not in _REFUSED_FORMATS


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


def describe_fit(size: tuple[int, int] | None) -> str:
    """What `fit` does, for a data card."""
    if size is None:
        return "none"
    return f"centre crop, Pillow bicubic (antialiased) to {size[0]}x{size[1]} (height x width)"


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Centre crop to the aspect of `size` (height, width), then antialiased bicubic resize.

    Pillow's bicubic filter grows with the reduction, so it does not alias, and rounds to 8 bits.
    """
    height, width = size
    if image.size == (width, height):
        return image
    # Cropped first and to whole pixels, so that the filter sees nothing of what is cut off.
    scale = min(image.width / width, image.height / height)
    crop_width = max(1, min(image.width, round(width * scale)))
    crop_height = max(1, min(image.height, round(height * scale)))
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    cropped = image.crop((left, top, left + crop_width, top + crop_height))
    return cropped.resize((width, height), Image.Resampling.BICUBIC)


def _refuse_deep(image: Image.Image) -> None:
    """Refuse more than 8 bits a channel: Pillow would drop or clip half of them in silence."""
    tiles = getattr(image, "tile", [])
    raw_modes = [t.args if isinstance(t.args, str) else (t.args or [""])[0] for t in tiles]
    deep = any(";16" in str(raw) and raw not in _PACKED_16 for raw in raw_modes)
    if deep or image.mode.startswith(("I", "F")):
        raise ValueError(
            f"mode {image.mode} with more than 8 bits a channel: convert it to 8 bits first"
        )


def _to_8_bit(image: Image.Image, channels: int | None) -> Image.Image:
    """8-bit grey ("L") or "RGB": palettes looked up, transparency laid on white."""
    grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    target = ("L" if grey else "RGB") if channels is None else ("L" if channels == 1 else "RGB")
    return image if image.mode == target else image.convert(target)


def decode(source: Path | bytes, size: tuple[int, int] | None, channels: int | None) -> Decoded:
    """Read the first frame of an image file, upright (EXIF orientation applied).

    Args:
        source: a file, or its content.
        size: (height, width) to crop and resize to; None: as it is.
        channels: 1 (ITU-R 601 luma), 3 (CMYK and others converted, grey replicated); None: 1
            for grey images, else 3.

    Raises:
        ValueError: for images with more than 8 bits a channel or too many pixels.
        Exception: whatever Pillow's decoders raise on broken files.
    """
    # The formats are named, so content disguised by its file name reaches no refused decoder.
    stream = source if isinstance(source, Path) else io.BytesIO(source)
    with Image.open(stream, formats=_formats()) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(
                f"{image.width}x{image.height} pixels are more than {_MAX_PIXELS:,}: refused as a "
                "decompression bomb"
            )
        original, mode = image.size, image.mode
        _refuse_deep(image)
        image.load()
        plain = _to_8_bit(ImageOps.exif_transpose(image), channels)
        pixels = np.asarray(plain if size is None else fit(plain, size))
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), original, mode)
