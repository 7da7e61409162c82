"""Inception score (Salimans et al. 2016, arXiv 1606.03498)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(probabilities: Float[Tensor, "n k"], splits: int = 10) -> InceptionScore:
    """`exp(E KL(p(label | image) || p(label)))` per split, from 1 to the number of classes.

    Args:
        probabilities: of the classes for each image, in the order the images were drawn; rows
            sum to 1.
        splits: number of consecutive parts, equal up to one image.

    Raises:
        ValueError: if rows are not probabilities, or there are fewer images than splits.
    """
    if not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"inception_score: splits={splits}: need 1 to {len(probabilities)}, the images"
        )
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64
    p = probabilities.to(wide)
    if not bool((p >= 0.0).all() & ((p.sum(1) - 1.0).abs() < 1e-3).all()):
        raise ValueError(
            "inception_score: rows are not probabilities that sum to 1: give the softmax, not "
            "logits or features"
        )
    scores = []
    for part in p.tensor_split(splits):
        marginal = part.mean(0, keepdim=True)
        # xlogy: a class with probability zero adds nothing.
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)
        scores.append(divergence.sum(1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))
