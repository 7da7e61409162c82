"""Checkpoints of other projects in, models out to other libraries."""

from softtrunc.interop.conditioning import ConditioningChoice, choose_conditioning
from softtrunc.interop.diffusers_pipeline import from_diffusers
from softtrunc.interop.diffusers_unet import DiffusersOutput, DiffusersUNet
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

__all__ = [
    "AdamMoments",
    "ConditioningChoice",
    "DiffusersOutput",
    "DiffusersUNet",
    "ModelDescription",
    "PublicTensor",
    "ScoreSDECheckpoint",
    "choose_conditioning",
    "describe_public_config",
    "from_diffusers",
    "load_score_sde_checkpoint",
    "public_layout",
    "read_public_config",
]
