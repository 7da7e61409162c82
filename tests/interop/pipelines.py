"""Small pipelines of diffusers with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra: softtrunc[hub]")


def unet(seed: int = 0, **changes: Any) -> Any:
    """A U-Net of two levels whose output is of order 1."""
    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers.UNet2DModel(**(options | changes)).eval()


def pipeline(network: Any = None, **schedule: Any) -> Any:
    """A DDPM pipeline over a schedule of 1,000 steps."""
    scheduler = diffusers.DDPMScheduler(**schedule)
    made = diffusers.DDPMPipeline(network or unet(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


SCHEDULES = {
    "epsilon": {"beta_schedule": "linear", "prediction_type": "epsilon"},
    "velocity": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
    },
    "sample": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    "betas": {"trained_betas": [0.001 * (i + 1) for i in range(40)], "num_train_timesteps": 40},
}
