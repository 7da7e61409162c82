"""Data: uint8 images with a card that says what they are, and their way to a model's range."""

from softtrunc.data.dataset import DataCard, ImageDataset
from softtrunc.data.digits import load_digits_split
from softtrunc.data.folder import load_folder
from softtrunc.data.open import open_dataset
from softtrunc.data.pixels import stretch_levels, to_model_range, to_uint8

__all__ = [
    "DataCard",
    "ImageDataset",
    "load_digits_split",
    "load_folder",
    "open_dataset",
    "stretch_levels",
    "to_model_range",
    "to_uint8",
]
