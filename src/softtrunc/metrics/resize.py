"""The "clean" way of bringing images to an extractor's size (Parmar et al. 2022, 2104.11222)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

__all__ = ["clean_resize"]


def clean_resize(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Antialiased bicubic, each channel in float32 by Pillow, clipped to [0, 255], not rounded.

    Resizing that skips antialiasing, or rounds, moves FID by more than models differ.

    Args:
        images: uint8 of any size.
        size: wanted height and width.

    Returns:
        float32 on the device of `images`.
    """
    n, c = images.shape[:2]
    planes = images.cpu().numpy().astype(np.float32).reshape(n * c, *images.shape[2:])
    out = np.empty((n * c, size, size), dtype=np.float32)
    for target, plane in zip(out, planes, strict=True):
        resized = Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)
        np.clip(np.asarray(resized), 0.0, 255.0, out=target)
    return torch.from_numpy(out.reshape(n, c, size, size)).to(images.device)
