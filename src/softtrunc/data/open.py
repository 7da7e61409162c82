"""One door to every data set: a name or a path."""

from __future__ import annotations

from pathlib import Path

from softtrunc.data.dataset import ImageDataset
from softtrunc.data.digits import load_digits_split
from softtrunc.data.folder import load_folder

__all__ = ["open_dataset"]


def open_dataset(
    source: str,
    split: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Open one split of a data set.

    Args:
        source: "digits", or the path of a folder of images.
        split: "train" or "test".
        image_size: side, or (height, width), to bring images to; None: as they are.
        channels: 1 or 3; None: as they are.

    Raises:
        ValueError: if there are no such data, or they are not of the shape asked for.
    """
    if source == "digits":
        data = load_digits_split(split)
    elif Path(source).is_dir():
        return load_folder(Path(source), split, image_size=image_size, channels=channels)
    elif Path(source).exists():
        raise ValueError(f"{source}: not a folder: give a folder of images")
    else:
        raise ValueError(f"{source}: no such data: write digits, or the path of a folder of images")
    card = data.card
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size not in (None, (card.height, card.width)) or channels not in (None, card.channels):
        raise ValueError(
            f"{source}: images are {card.channels} x {card.height} x {card.width}: leave out "
            "data.image_size and data.channels, or set them to this"
        )
    return data
