"""The same figures as torchmetrics states: gathered batch by batch, added up over processes.

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
from softtrunc.metrics.frechet import frechet_distance
from softtrunc.metrics.kernel import KernelDistance, kernel_inception_distance
from softtrunc.metrics.statistics import FeatureStatistics

__all__ = ["FeatureGatherer", "FrechetMetric", "Gathered", "KernelMetric"]


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

    Each process takes in its own images; `compute` gives all of them the whole. States are float64
    sums: the result does not depend on how images were shared beyond the last digits.

    Args:
        extractor: what gives features and probabilities.
        features: keep the features themselves.
        probabilities: keep the class probabilities.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor
    kept: list[Tensor]
    classes: list[Tensor]

    def __init__(
        self, extractor: FeatureExtractor, *, features: bool = False, probabilities: bool = False
    ) -> None:
        super().__init__()
        self._extractor = extractor
        self._features, self._probabilities = features, probabilities
        d = extractor.dim
        for name, shape in {"count": (), "total": (d,), "outer": (d, d)}.items():
            zero = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")
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
        if not bool(x.isfinite().all()):
            raise ValueError(
                "features that are not finite: check the images given to the extractor"
            )
        wide = x.to(self.total.device, torch.float64)
        self.count = self.count + len(x)
        self.total = self.total + wide.sum(0)
        self.outer = self.outer + wide.T @ wide
        if self._features:
            chosen = x if keep is None else x[keep.to(x.device)]
            self.kept.append(chosen.to(self.total.device, torch.float32))
        if self._probabilities:
            self.classes.append(self._extractor.probabilities(images).to(self.total.device))

    def compute(self) -> Gathered:
        """What all processes took in.

        Raises:
            ValueError: without any image.
        """
        count = int(self.count)
        if count == 0:
            raise ValueError("FeatureGatherer: no images")
        mean = self.total / count
        scatter = self.outer - count * torch.outer(mean, mean)
        return Gathered(
            FeatureStatistics.of_moments(count, mean, 0.5 * (scatter + scatter.T)),
            dim_zero_cat(self.kept) if self._features else None,
            dim_zero_cat(self.classes) if self._probabilities else None,
        )


class FrechetMetric(Metric):
    """Frechet distance between the features of real and of generated images.

    States are float64 sums, so move the metric to where processes exchange tensors (CUDA for
    nccl) but not to mps, which knows no float64; features are moved to the states.

    Args:
        extractor: what gives the features.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self._extractor = extractor
        d = extractor.dim
        for side in ("real", "generated"):
            zero = {"count": (), "sum": (d,), "outer": (d, d)}
            for name, shape in zero.items():
                state = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", state, dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "n c h w"], *, real: bool) -> None:
        """Take in a batch of real or of generated images, as the extractor wants them."""
        side = "real" if real else "generated"
        total = getattr(self, f"{side}_sum")
        x = self._extractor(images).to(total.device, torch.float64)
        setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(x))
        setattr(self, f"{side}_sum", total + x.sum(0))
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + x.T @ x)

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        count = getattr(self, f"{side}_count")
        if float(count) < 2:
            raise ValueError(f"FrechetMetric: {int(count)} {side} images: need at least 2")
        mean = getattr(self, f"{side}_sum") / count
        outer = getattr(self, f"{side}_outer")
        return mean, (outer - count * torch.outer(mean, mean)) / (count - 1.0)

    def compute(self) -> Float[Tensor, ""]:
        """The distance over all processes, float64.

        Raises:
            ValueError: with fewer than two images on a side.
        """
        distance = frechet_distance(*self._moments("real"), *self._moments("generated"))
        return torch.tensor(distance, dtype=torch.float64)


class KernelMetric(Metric):
    """Kernel inception distance between the features of real and of generated images.

    Keeps all features.

    Args:
        extractor: what gives the features.
        subsets, subset_size: as in `kernel_inception_distance`.
        seed: of the subsets.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._extractor = extractor
        self._subsets, self._subset_size, self._seed = subsets, subset_size, seed
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, images: UInt8[Tensor, "n c h w"], *, real: bool) -> None:
        """Take in a batch of real or of generated images, as the extractor wants them."""
        (self.real if real else self.generated).append(self._extractor(images))

    def compute(self) -> KernelDistance:
        """The distance over all processes.

        Raises:
            ValueError: as `kernel_inception_distance`.
        """
        return kernel_inception_distance(
            dim_zero_cat(self.real),
            dim_zero_cat(self.generated),
            subsets=self._subsets,
            subset_size=self._subset_size,
            generator=torch.Generator().manual_seed(self._seed),
        )
