"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FeatureStatistics", "frechet_distance"]


def frechet_distance(
    mean_a: Float[Tensor, " d"],
    covariance_a: Float[Tensor, "d d"],
    mean_b: Float[Tensor, " d"],
    covariance_b: Float[Tensor, "d d"],
) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))`, in float64.

    The trace of the square root comes from the eigenvalues of the symmetric `A^(1/2) B A^(1/2)`,
    which are real and need no tricks where the covariances are singular.
    """
    a, b = covariance_a.double().cpu(), covariance_b.double().cpu()
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0.0).sqrt().sum()
    difference = (mean_a.double().cpu() - mean_b.double().cpu()).square().sum()
    return float(difference + a.trace() + b.trace() - 2.0 * cross)


class FeatureStatistics:
    """Count, mean and covariance of features, batch by batch, in float64 on the CPU.

    Merging batches by their deviations (Chan et al. 1983) loses no digits however large the
    features are against their spread.

    Args:
        dim: number of features d.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self._scatter: Float[Tensor, "d d"] = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Take in a batch of features."""
        batch = features.detach().double().cpu()
        n = len(batch)
        if n == 0:
            return
        mean = batch.mean(0)
        centred = batch - mean
        difference = mean - self.mean
        total = self.count + n
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(difference, difference) * (self.count * n / total)
        self.mean = self.mean + difference * (n / total)
        self.count = total

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance.

        Raises:
            ValueError: with fewer than two examples.
        """
        if self.count < 2:
            raise ValueError(f"covariance of {self.count} images: need at least 2")
        return self._scatter / (self.count - 1)
