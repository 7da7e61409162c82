"""Networks: one score U-Net, its configuration, its presets and what they cost."""

from softtrunc.networks.build import (
    NetworkConfig,
    build_network,
    config_from_dict,
    config_of,
    network_to_dict,
    output_of,
)
from softtrunc.networks.config import ImageSize, ScoreUNetConfig
from softtrunc.networks.cost import estimate_activation_bytes, flops_per_image, parameter_count
from softtrunc.networks.presets import PRESETS, preset
from softtrunc.networks.score_unet import ScoreUNet
from softtrunc.networks.unet2d import UNet2DConfig

__all__ = [
    "PRESETS",
    "ImageSize",
    "NetworkConfig",
    "ScoreUNet",
    "ScoreUNetConfig",
    "UNet2DConfig",
    "build_network",
    "config_from_dict",
    "config_of",
    "estimate_activation_bytes",
    "flops_per_image",
    "network_to_dict",
    "output_of",
    "parameter_count",
    "preset",
]
