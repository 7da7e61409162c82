"""Folders of image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from softtrunc.data.dataset import ImageDataset

__all__ = ["is_image_file", "load_folder"]

_SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid")}
# One of these shares of the files is held out where a folder has no split of its own.
_HELD_OUT = 10
# Beyond this many pixels a file is taken for a decompression bomb.
_MOST_PIXELS = 1 << 28


def is_image_file(path: Path) -> bool:
    """Whether the name ends like an image that Pillow can open."""
    return path.suffix.lower() in Image.registered_extensions()


def _held_out(relative: str) -> bool:
    """Whether a file belongs to the held-out share: decided by its name, so files may be added."""
    digest = hashlib.sha256(relative.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT == 0


def _list_files(root: Path, split: str) -> list[Path]:
    """The files of a split: the folder of that name if there is one, else a share by name."""
    for name in _SPLIT_NAMES[split]:
        if (root / name).is_dir():
            root, split = root / name, "all"
            break
    files = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".") and is_image_file(Path(name))
    )
    if split == "all":
        return files
    other = "test" if split == "train" else "train"
    if any((root / name).is_dir() for name in _SPLIT_NAMES[other]):
        siblings = tuple(root / name for name in _SPLIT_NAMES[other])
        return [f for f in files if not any(f.is_relative_to(s) for s in siblings)]
    wanted = split == "test"
    return [f for f in files if _held_out(f.relative_to(root).as_posix()) == wanted]


def _convert(image: Image.Image, channels: int | None) -> Image.Image:
    """8-bit grey or RGB; transparency on white; 16-bit refused, for it would lose half its bits."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel: convert it first")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba).convert("L" if image.mode == "LA" else "RGB")
    grey = image.mode in ("1", "L")
    if channels is None:
        return image.convert("L" if grey else "RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Centre crop to the aspect of `size` (height, width), then antialiased bicubic resize."""
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    crop_w, crop_h = width * scale, height * scale
    left, top = (image.width - crop_w) / 2, (image.height - crop_h) / 2
    box = (left, top, left + crop_w, top + crop_h)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _read(path: Path, size: tuple[int, int] | None, channels: int | None) -> np.ndarray | str:
    """Pixels (H, W) or (H, W, 3), or the reason why there are none."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                return f"{image.width}x{image.height} pixels are too many"
            image.load()
            converted = _convert(image, channels)
            return np.asarray(converted if size is None else _fit(converted, size))
    except (
        OSError,
        UnidentifiedImageError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        return " ".join(str(error).split()) or type(error).__name__


def _uniform(root: Path, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array (N, C, H, W); refuses a mixture of shapes."""
    shapes = {a.shape for a in arrays}
    if len({len(s) for s in shapes}) > 1:
        arrays = [a if a.ndim == 3 else np.repeat(a[:, :, None], 3, axis=2) for a in arrays]
        shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        seen = ", ".join(f"{s[1]}x{s[0]}" for s in sorted(shapes)[:4])
        more = ", ..." if len(shapes) > 4 else ""
        raise ValueError(
            f"{root}: images of {len(shapes)} sizes ({seen}{more}): say which one to bring them "
            "to with --set data.image_size=64"
        )
    stacked = np.stack(arrays)
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2).copy()


def load_folder(
    root: Path,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Read every image below a folder, in the order of their names.

    A folder `train` or `test` (also `training`, `testing`, `val`, `valid`) inside is that split.
    Without one, a tenth of the files, chosen by a hash of their names, is the test split. Files
    that cannot be read are left out and listed in `skipped`.

    Args:
        root: the folder.
        split: "train" or "test".
        image_size: side, or (height, width), to crop centrally and resize to (antialiased
            bicubic); None: all images must have one size.
        channels: 1 or 3; None: colour if any image is.

    Raises:
        ValueError: if there is no readable image, or sizes differ and none is asked for.
    """
    if split not in _SPLIT_NAMES:
        raise ValueError(f'{root}: split {split!r} is unknown: write "train" or "test"')
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    files = _list_files(root, split)
    if not files:
        kinds = "PNG, JPEG, WebP, ..."
        raise ValueError(f"{root}: no image file for the {split} split: put {kinds} files there")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda f: _read(f, size, channels), files))
    skipped = tuple(
        (f.relative_to(root).as_posix(), r)
        for f, r in zip(files, results, strict=True)
        if isinstance(r, str)
    )
    arrays = [r for r in results if isinstance(r, np.ndarray)]
    if not arrays:
        name, reason = skipped[0]
        raise ValueError(
            f"{root}: none of {len(files)} image files can be read; the first, {name}: {reason}"
        )
    how = "none" if size is None else f"centre crop, bicubic antialiased to {size[1]}x{size[0]}"
    return ImageDataset.create(
        _uniform(root, arrays),
        name=root.resolve().name,
        split=split,
        source=str(root),
        preprocessing=how,
        skipped=skipped,
    )
