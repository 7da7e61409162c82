"""Checkpoints of other projects in, models out to other libraries."""

from typing import TYPE_CHECKING

from softtrunc.interop.conditioning import ConditioningChoice, choose_conditioning
from softtrunc.interop.diffusers_pipeline import from_diffusers
from softtrunc.interop.noise_levels import NoiseLevels, noise_levels
from softtrunc.interop.public_config import (
    ModelDescription,
    describe_public_config,
    read_public_config,
)
from softtrunc.interop.public_layout import PublicTensor, public_layout
from softtrunc.interop.score_sde import (
    AdamMoments,
    ScoreSDECheckpoint,
    load_score_sde_checkpoint,
)

if TYPE_CHECKING:
    from softtrunc.interop.diffusers_unet import DiffusersOutput, DiffusersUNet

__all__ = [
    "AdamMoments",
    "ConditioningChoice",
    "DiffusersOutput",
    "DiffusersUNet",
    "ModelDescription",
    "NoiseLevels",
    "PublicTensor",
    "ScoreSDECheckpoint",
    "choose_conditioning",
    "describe_public_config",
    "from_diffusers",
    "load_score_sde_checkpoint",
    "noise_levels",
    "public_layout",
    "read_public_config",
]

_OF_DIFFUSERS = ("DiffusersOutput", "DiffusersUNet")


def __getattr__(name: str) -> object:
    """What is made of diffusers' classes is fetched when it is asked for."""
    if name not in _OF_DIFFUSERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from softtrunc.interop import diffusers_unet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs the package diffusers: pip install 'softtrunc[hub]'"
        ) from error
    return getattr(diffusers_unet, name)
