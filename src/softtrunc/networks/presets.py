"""The networks of the paper by name, and two small ones for small images."""

from __future__ import annotations

from typing import Any

from softtrunc.feedback.errors import nearest
from softtrunc.networks.config import ScoreUNetConfig

_DDPMPP: dict[str, Any] = {}
_NCSNPP: dict[str, Any] = {"embedding": "fourier", "fir": True, "input_pyramid": "residual"}

PRESETS: dict[str, dict[str, Any]] = {
    "ddpmpp": _DDPMPP,
    "ddpmpp-deep": _DDPMPP | {"blocks_per_level": 8},
    "ddpmpp-512": {
        "base_channels": 512,
        "channel_multipliers": (1, 1, 1),
        "blocks_per_level": 8,
        "embedding_size": 128,
        "fir": True,
        "dropout": 0.2,
    },
    "ncsnpp": _NCSNPP,
    "ncsnpp-deep": _NCSNPP | {"blocks_per_level": 8},
    "ncsnpp-256": _NCSNPP
    | {
        "channel_multipliers": (1, 1, 2, 2, 2, 2, 2),
        "blocks_per_level": 2,
        "input_pyramid": "input_skip",
        "output_pyramid": "output_skip",
        "dropout": 0.0,
    },
    # The unbounded models differ in the noise label they are given, not in the network.
    "uddpmpp": _DDPMPP,
    "uncsnpp": _NCSNPP,
    "small": {
        "base_channels": 64,
        "channel_multipliers": (1, 2, 2),
        "blocks_per_level": 2,
        "attention_resolutions": (),
    },
    # For 8x8 digits on a laptop: full resolution is kept narrow and resampled for free, since
    # that is where a small network spends its time.
    "tiny": {
        "base_channels": 16,
        "channel_multipliers": (1, 2),
        "blocks_per_level": 1,
        "attention_resolutions": (),
        "dropout": 0.0,
        "residual_block": "ddpm",
        "resample_with_conv": False,
    },
}
"""Fields of `ScoreUNetConfig` that each preset sets; the rest keep their defaults."""


def preset(
    name: str, *, image_size: int | tuple[int, int], channels: int = 3, **overrides: Any
) -> ScoreUNetConfig:
    """Configuration of a network by name.

    Args:
        name: a key of `PRESETS`.
        image_size: pixels, or (height, width).
        channels: of the image.
        overrides: other fields of `ScoreUNetConfig` to set.

    Raises:
        ValueError: the name or a field is unknown (the nearest is named), or a value not allowed.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown network '{name}'; {nearest(name, PRESETS)}")
    size = {"image_size": image_size, "channels": channels}
    return ScoreUNetConfig.from_dict(PRESETS[name] | size | overrides)
