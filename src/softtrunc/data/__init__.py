"""Data: images or floats with a card that says what they are, and their way to a model's range."""

from softtrunc.data.dataset import DataCard, ImageDataset, Skipped
from softtrunc.data.floats import FloatInspection
from softtrunc.data.formats.digits import load_digits_split
from softtrunc.data.formats.idx import read_idx
from softtrunc.data.images.fit import describe_fit
from softtrunc.data.images.pixels import stretch_levels, to_model_range, to_uint8
from softtrunc.data.inspection import Inspection, SigmaMax, estimate_sigma_max, inspect
from softtrunc.data.open import open_dataset
from softtrunc.data.preparing.prepare import prepare
from softtrunc.data.preparing.prepared import open_prepared
from softtrunc.data.presets import PRESETS, Preset, find_preset
from softtrunc.data.protocol import CountError
from softtrunc.data.ranges import from_model, in_pictures, to_model

__all__ = [
    "PRESETS",
    "CountError",
    "DataCard",
    "FloatInspection",
    "ImageDataset",
    "Inspection",
    "Preset",
    "SigmaMax",
    "Skipped",
    "describe_fit",
    "estimate_sigma_max",
    "find_preset",
    "from_model",
    "in_pictures",
    "inspect",
    "load_digits_split",
    "open_dataset",
    "open_prepared",
    "prepare",
    "read_idx",
    "stretch_levels",
    "to_model",
    "to_model_range",
    "to_uint8",
]
