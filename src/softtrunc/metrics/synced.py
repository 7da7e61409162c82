"""The same figures as torchmetrics states: gathered batch by batch, added up over processes.

Kept out of `softtrunc.metrics` itself, for torchmetrics takes a while to import.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softtrunc.metrics.features import FeatureExtractor
from softtrunc.metrics.frechet import frechet_distance
from softtrunc.metrics.kernel import KernelDistance, kernel_inception_distance

__all__ = ["FrechetMetric", "KernelMetric"]


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
