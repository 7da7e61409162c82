"""One encoded image file to uint8 pixels of the wanted size and channels, or a reason why not."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from softtrunc.data.images.fit import Fit, pixels_of

T = TypeVar("T")

# Larger files and larger images are taken for decompression bombs. The second bound lies below
# the one at which Pillow itself begins to warn.
MAX_FILE_BYTES = 256 << 20
_MAX_PIXELS = 80_000_000
_MANY_PIXELS = 8_000_000

# Opening these starts another program, or needs a handler that Pillow does not bring.
_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}

# Where the headers of JPEG 2000 and AVIF are looked for.
_HEAD = 64 << 10

# Raw modes with 5 or 6 bits a channel; any other ";16" means 16 bits a channel.
_PACKED_16 = {"BGR;16", "RGB;16"}

ENLARGED = "enlarged: smaller than the size asked for"

# Photographs of telephones; Pillow needs a package for them.
_HEIF_NAMES = {".heic", ".heif", ".hif"}
NEEDS_HEIF = "HEIC: `pip install 'softtrunc[heif]'` to read it, or convert it to JPEG or PNG"

_LOSSY_FORMATS = {"JPEG", "MPO", "HEIF"}
_GREY_MODES = {"1", "L", "LA", "La"}
# Others, such as LAB, mean nothing without a profile.
_KNOWN_MODES = _GREY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}

# What most files are; Pillow tries formats in the order given.
_COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")


class Decoded(NamedTuple):
    """An image and what its file held.

    - `pixels`: (H, W, C). `size`: (width, height) and `mode` as stored, in Pillow's words.
    - `lossy`: whether its format throws information away (JPEG).
    - `converted`: what was done to its pixels beside cropping and resizing; "" for nothing.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    size: tuple[int, int]
    mode: str
    lossy: bool = False
    converted: str = ""


def too_large(size: int) -> str:
    """Why a file of so many bytes is left out."""
    return f"{size:,} bytes are too many for an image file: at most {MAX_FILE_BYTES:,}"


def is_grey(mode: str) -> bool:
    """Whether a mode, in Pillow's words, is without colour."""
    return mode in _GREY_MODES


@functools.cache
def _reads_heif() -> bool:
    """Whether HEIC can be read, which is then made known to Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_heif_name(name: str) -> bool:
    """Whether a file's name ends like that of a HEIC image, and is not hidden."""
    path = Path(name)
    return path.suffix.lower() in _HEIF_NAMES and not path.name.startswith(".")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    _reads_heif()
    rest = sorted(set(Image.OPEN) - _REFUSED_FORMATS - set(_COMMON_FORMATS))
    return (*(kind for kind in _COMMON_FORMATS if kind in Image.OPEN), *rest)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like that of an image we open, and is not hidden."""
    path = Path(name)
    if is_heif_name(name):
        return _reads_heif()
    kind = Image.registered_extensions().get(path.suffix.lower())
    return not path.name.startswith(".") and kind in Image.OPEN and kind not in _REFUSED_FORMATS


def is_image_start(start: bytes) -> bool:
    """Whether a file that begins like this is one of the usual images, whatever it is called."""
    Image.preinit()
    # Of PPM the start is two letters, which texts have too.
    known = (
        Image.OPEN[kind][1] for kind in _COMMON_FORMATS if kind in Image.OPEN and kind != "PPM"
    )
    return any(accept is not None and accept(start) is True for accept in known)


def _depth(image: Image.Image, source: Path | bytes) -> int:
    """Bits a channel in the file, as far as Pillow does not tell by the mode."""
    tiles = getattr(image, "tile", [])
    args = [t.args if isinstance(t.args, tuple) else (t.args,) for t in tiles]
    if any(";16" in str(a[0]) and a[0] not in _PACKED_16 for a in args if a):
        return 16
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format == "PPM":  # the highest value follows the mode
        return max((int(a[1]).bit_length() for a in args if len(a) > 1), default=8)
    if image.format in ("JPEG2000", "AVIF"):
        if isinstance(source, Path):
            with source.open("rb") as stream:
                head = stream.read(_HEAD)
        else:
            head = source[:_HEAD]
        codestream, av1 = head.find(b"\xff\x4f\xff\x51"), head.find(b"av1C")
        if image.format == "JPEG2000" and 0 <= codestream < len(head) - 42:
            return (head[codestream + 42] & 0x7F) + 1  # of the first component
        if image.format == "AVIF" and 0 <= av1 < len(head) - 6 and head[av1 + 6] & 0x40:
            return 10  # or 12
    return 8


def _refuse_deep(image: Image.Image, source: Path | bytes) -> None:
    """Refuse more than 8 bits a channel: Pillow would drop or clip half of them in silence."""
    if _depth(image, source) > 8 or image.mode.startswith(("I", "F")):
        raise ValueError(
            f"mode {image.mode} with more than 8 bits a channel: convert it to 8 bits first"
        )


def _to_8_bit(image: Image.Image, channels: int | None) -> tuple[Image.Image, str]:
    """8-bit grey ("L") or "RGB", and how it came to that."""
    mode, converted = image.mode, ""
    if mode not in _KNOWN_MODES:
        raise ValueError(f"mode {mode} has no plain conversion to RGB: convert it first")
    if "transparency" in image.info or image.has_transparency_data:
        rgba = image.convert("RGBA")
        # What nothing shines through is the same on any ground.
        if rgba.getchannel("A").getextrema() != (255, 255):
            converted = "transparency laid on white"
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    elif mode in ("P", "PA"):
        converted = "palette looked up"
    elif mode == "CMYK":
        converted = "CMYK to RGB without colour profiles"
    grey = is_grey(mode)
    target = "L" if channels == 1 or (channels is None and grey) else "RGB"
    if grey and target == "RGB":
        converted = converted or "grey replicated to RGB"
    elif not grey and target == "L":
        converted = converted or "colour to grey (ITU-R 601 luma)"
    return (image if image.mode == target else image.convert(target)), converted


def decode(source: Path | bytes | np.ndarray, fit: Fit | None, channels: int | None) -> Decoded:
    """Read an image, as `decode_for` does, for all that it holds."""
    return decode_for(lambda image: image, source, fit, channels)


def decode_for(
    use: Callable[[Decoded], T],
    source: Path | bytes | np.ndarray,
    fit: Fit | None,
    channels: int | None,
) -> T:
    """Read the first frame of an image file, upright (EXIF orientation applied), and use it.

    Args:
        use: called with the image; no other large one is in memory meanwhile.
        source: a file, its content, or pixels uint8 (H, W, 1 or 3).
        fit: what size to bring it to; None: as it is.
        channels: 1 (ITU-R 601 luma), 3 (CMYK and others converted, grey replicated); None: 1
            for grey images, else 3.

    Raises:
        ValueError: for images with more than 8 bits a channel or too many pixels.
        Exception: whatever Pillow's decoders raise on broken files.
    """
    if isinstance(source, np.ndarray):
        return use(_from_pixels(source, fit, channels))
    # The formats are named, so content disguised by its file name reaches no refused decoder.
    stream = source if isinstance(source, Path) else io.BytesIO(source)
    with Image.open(stream, formats=_formats()) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(
                f"{image.width}x{image.height} pixels are more than {_MAX_PIXELS:,}: refused as a "
                "decompression bomb"
            )
        _refuse_deep(image, source)

        def work() -> T:
            return use(_decoded(image, fit, channels))

        if image.width * image.height <= _MANY_PIXELS:
            return work()
        return _for_large().submit(work).result()


@functools.cache
def _for_large() -> ThreadPoolExecutor:
    """Large images one at a time: each core's own would fill the memory.

    In one thread, for the allocator keeps what a thread has freed for that thread.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="softtrunc-large")


if hasattr(os, "register_at_fork"):  # threads are not inherited
    os.register_at_fork(after_in_child=_for_large.cache_clear)


def _decoded(image: Image.Image, fit: Fit | None, channels: int | None) -> Decoded:
    original, mode, lossy = image.size, image.mode, image.format in _LOSSY_FORMATS
    animated = getattr(image, "is_animated", False)
    image.load()
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image
    plain, converted = _to_8_bit(upright, channels)
    pixels = pixels_of(plain) if fit is None else fit(plain)
    more = {
        "turned upright (EXIF)": turned,
        "first frame of several": animated,
        ENLARGED: fit is not None and fit.enlarges(plain.size),
    }
    converted = "; ".join(filter(None, [converted, *(what for what in more if more[what])]))
    return Decoded(pixels, original, mode, lossy, converted)


def _from_pixels(
    pixels: UInt8[np.ndarray, "h w c"], fit: Fit | None, channels: int | None
) -> Decoded:
    height, width, depth = pixels.shape
    mode = "L" if depth == 1 else "RGB"
    as_they_are = fit is None or (fit.size == (height, width) and fit.crop is None)
    if as_they_are and channels in (None, depth):
        return Decoded(pixels, (width, height), mode)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if depth == 1 else pixels))
    plain, converted = _to_8_bit(image, channels)
    if fit is not None and fit.enlarges(plain.size):
        converted = "; ".join(filter(None, [converted, ENLARGED]))
    pixels = pixels_of(plain) if fit is None else fit(plain)
    return Decoded(pixels, (width, height), mode, converted=converted)


def conform(
    images: UInt8[np.ndarray, "n c h w"], fit: Fit | None, channels: int | None
) -> UInt8[np.ndarray, "n c2 h2 w2"]:
    """Bring 8-bit images to a size and number of channels, as `decode` does with files."""
    same_size = fit is None or fit.size == images.shape[2:]
    if same_size and channels in (None, images.shape[1]):
        return images
    size = images.shape[2:] if fit is None else fit.size
    out = np.empty((len(images), channels or images.shape[1], *size), dtype=np.uint8)
    for target, source in zip(out, images, strict=True):
        target[:] = decode(source.transpose(1, 2, 0), fit, channels).pixels.transpose(2, 0, 1)
    return out
