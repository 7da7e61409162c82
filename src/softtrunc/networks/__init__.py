"""Networks: one score U-Net, its configuration, its presets and what they cost."""

from softtrunc.networks.config import ImageSize, ScoreUNetConfig
from softtrunc.networks.cost import estimate_activation_bytes, flops_per_image, parameter_count
from softtrunc.networks.presets import PRESETS, preset
from softtrunc.networks.score_unet import ScoreUNet

__all__ = [
    "PRESETS",
    "ImageSize",
    "ScoreUNet",
    "ScoreUNetConfig",
    "estimate_activation_bytes",
    "flops_per_image",
    "parameter_count",
    "preset",
]
