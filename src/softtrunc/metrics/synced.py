"""What an extractor says of a set of images, as a torchmetrics state shared among processes.

Kept out of `softtrunc.metrics` itself, for torchmetrics takes a while to import.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softtrunc.metrics.features import FeatureExtractor
from softtrunc.metrics.statistics import FeatureStatistics, Moments


class Gathered(NamedTuple):
    """What an extractor says of one set of images, over all processes.

    - `statistics`: count, mean and covariance of the features.
    - `features` (k, d): of the images that were kept, in the order of the processes; None: not
      asked for. `probabilities` (n, c): likewise, of all images.
    """

    statistics: FeatureStatistics
    features: Float[Tensor, "k d"] | None
    probabilities: Float[Tensor, "n c"] | None


class FeatureGatherer(Metric):
    """Moments of the features of one set of images; on request features and class probabilities.

    Each process takes in its own images; `compute` gives all of them the whole. States are float64,
    so move the metric to where processes exchange tensors (CUDA for nccl) but not to mps, which
    knows none. The result does not depend on how images were shared beyond the last digits, however
    large the features are against their spread.

    Args:
        extractor: what gives features and probabilities.
        features: keep the features themselves.
        probabilities: keep the class probabilities.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = True  # states of batches do not add up
    count: Tensor
    mean: Tensor
    scatter: Tensor
    kept: list[Tensor]
    classes: list[Tensor]

    def __init__(
        self, extractor: FeatureExtractor, *, features: bool = False, probabilities: bool = False
    ) -> None:
        super().__init__()
        self._extractor = extractor
        self._features, self._probabilities = features, probabilities
        d = extractor.dim
        # Synced, each of these has one row for every process.
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(d, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("scatter", torch.zeros(d, d, dtype=torch.float64), dist_reduce_fx=None)
        # A state that a process never appended to would leave the others waiting for it.
        self.add_state("kept", [], dist_reduce_fx="cat")
        self.add_state("classes", [], dist_reduce_fx="cat")

    def update(
        self, images: UInt8[Tensor, "n c h w"], keep: Bool[Tensor, " n"] | None = None
    ) -> None:
        """Take in a batch of images, as the extractor wants them.

        Args:
            images: of any number, on the device where the extractor is to work.
            keep: which of them keep their features; None: all.

        Raises:
            ValueError: if a feature is not finite.
        """
        x = self._extractor(images)
        here = self.mean.device
        held = Moments(int(self.count), self.mean, self.scatter).merged(Moments.of(x.to(here)))
        self.count, self.mean, self.scatter = torch.tensor(held.n, device=here), *held[1:]
        if self._features:
            chosen = x if keep is None else x[keep.to(x.device)]
            self.kept.append(chosen.to(here, torch.float32))
        if self._probabilities:
            self.classes.append(self._extractor.probabilities(images).to(here))

    def compute(self) -> Gathered:
        """What all processes took in.

        Raises:
            ValueError: without any image.
        """
        d = self._extractor.dim
        statistics = FeatureStatistics(d)
        means, scatters = self.mean.reshape(-1, d), self.scatter.reshape(-1, d, d)
        for moments in zip(self.count.reshape(-1).tolist(), means, scatters, strict=True):
            statistics.add(Moments(*moments))
        if statistics.count == 0:
            raise ValueError("FeatureGatherer: no images")
        return Gathered(
            statistics,
            dim_zero_cat(self.kept) if self._features else None,
            dim_zero_cat(self.classes) if self._probabilities else None,
        )
