"""Frechet distance between Gaussians (Frechet 1957; Dowson and Landau 1982)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root; rounding's negative eigenvalues of singular matrices are 0."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.T))
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root


def frechet_distance(
    mean_a: Float[Tensor, " d"],
    covariance_a: Float[Tensor, "d d"],
    mean_b: Float[Tensor, " d"],
    covariance_b: Float[Tensor, "d d"],
) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))`, in float64 on the CPU.

    This is the squared 2-Wasserstein distance of two Gaussians, what FID computes from features
    (Heusel et al. 2017, arXiv 1706.08500). The trace of the square root is the sum of the
    singular values of `A^(1/2) B^(1/2)`: no complex numbers, no offset added to the diagonal, and
    no digits lost where the covariances are singular, as with fewer samples than features.

    Raises:
        ValueError: if shapes do not match or a value is not finite.
    """
    # Made float64 on the CPU: the device may not have it.
    parts = [x.detach().cpu().double() for x in (mean_a, covariance_a, mean_b, covariance_b)]
    m_a, a, m_b, b = parts
    d = len(m_a)
    if m_b.shape != (d,) or a.shape != (d, d) or b.shape != (d, d):
        raise ValueError(
            f"frechet_distance: means {tuple(m_a.shape)} and {tuple(m_b.shape)}, covariances "
            f"{tuple(a.shape)} and {tuple(b.shape)}: need (d,) and (d, d) from one extractor"
        )
    if not all(bool(x.isfinite().all()) for x in parts):
        raise ValueError("frechet_distance: a mean or covariance is not finite: check the samples")
    cross = torch.linalg.svdvals(_root(a) @ _root(b)).sum()
    distance = (m_a - m_b).square().sum() + a.trace() + b.trace() - 2.0 * cross
    # Nearly equal Gaussians may come out below zero by rounding.
    return max(float(distance), 0.0)
