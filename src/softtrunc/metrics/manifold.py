"""Precision and recall of samples (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Distances are computed so many rows at a time.
_ROWS = 1024


class PrecisionRecall(NamedTuple):
    """Share of samples among the real, and share of real images among the samples."""

    precision: float
    recall: float


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The matrix-product form loses the digits of small distances.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Distance of each point to its k-th nearest neighbour, itself not counted."""
    return torch.cat([_distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(_ROWS)])


def _covered(
    points: Float[Tensor, "m d"], centres: Float[Tensor, "n d"], radii: Float[Tensor, " n"]
) -> Bool[Tensor, " m"]:
    """Which points lie in the union of the balls."""
    return torch.cat([(_distances(p, centres) <= radii).any(1) for p in points.split(_ROWS)])


def precision_recall(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """How many samples lie on the real images' manifold, and how much of it they cover.

    A set's manifold is the union of the balls around its points that reach to the k-th nearest
    neighbour. Both sets should have the same size; the values depend on it.

    Args:
        real: features of the reference images.
        generated: features of the samples.
        k: number of neighbours.

    Raises:
        ValueError: if a set has no more than k points, or k < 1.
    """
    if k < 1 or min(len(real), len(generated)) <= k:
        raise ValueError(
            f"precision_recall: k={k} with {len(real)} and {len(generated)} images: need k >= 1 "
            "and more than k images on each side"
        )
    x, y = real.float(), generated.float().to(real.device)
    precision = _covered(y, x, _radii(x, k)).float().mean()
    recall = _covered(x, y, _radii(y, k)).float().mean()
    return PrecisionRecall(float(precision), float(recall))
