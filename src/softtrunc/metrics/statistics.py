"""Mean and covariance of features, gathered batch by batch, with the record of what they are of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softtrunc.feedback.files import write_bytes
from softtrunc.feedback.json import parse_json
from softtrunc.metrics.frechet import frechet_distance

_FORMAT = "softtrunc feature statistics 1"


@dataclass(frozen=True)
class Provenance:
    """What statistics are of. Those of different extractors or resizing never meet.

    - `data`: fingerprint of the images. `split`: which part of the data.
    - `extractor`, `extractor_hash`: name and hash of what gave the features.
    - `resize`: how images were brought to the extractor's size ("legacy", "clean", ...).
    """

    data: str
    split: str
    extractor: str
    extractor_hash: str
    resize: str


_ALL = tuple(field.name for field in dataclasses.fields(Provenance))
# What must agree for a distance to mean anything; the data differ, for that is the point.
_MEASURE = ("extractor", "extractor_hash", "resize")


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations from it ("scatter") of features, in float64.

    Sets are merged by their deviations from their means (Chan, Golub and LeVeque 1983), which loses
    no digits however large the features are against their spread.
    """

    n: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Moments:
        """Those of a batch, on its device.

        Raises:
            ValueError: if a feature is not finite.
        """
        if not bool(features.isfinite().all()):
            raise ValueError(
                "features that are not finite: check the images given to the extractor"
            )
        wide = features.detach().double()
        mean = wide.sum(0) / max(len(wide), 1)
        centred = wide - mean
        return cls(len(wide), mean, centred.T @ centred)

    def merged(self, other: Moments) -> Moments:
        """Those of both sets together."""
        total = self.n + other.n
        if total == 0:
            return self
        difference = other.mean - self.mean
        between = torch.outer(difference, difference) * (self.n * other.n / total)
        mean = self.mean + difference * (other.n / total)
        return Moments(total, mean, self.scatter + other.scatter + between)


class FeatureStatistics:
    """Count, mean and covariance of features, batch by batch, in float64 on the CPU.

    Args:
        dim: number of features d.
        provenance: what the statistics are of; None: not recorded, and not saved.
    """

    def __init__(self, dim: int, provenance: Provenance | None = None) -> None:
        self.count, self.dim = 0, dim
        self.provenance = provenance
        self.mean: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self._scatter: Float[Tensor, "d d"] = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, moments: Moments) -> None:
        """Take in features of which these are the moments."""
        held = Moments(self.count, self.mean, self._scatter)
        count, mean, scatter = moments
        self.count, self.mean, self._scatter = held.merged(
            Moments(count, mean.cpu(), scatter.cpu())
        )

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Take in a batch of features.

        Raises:
            ValueError: if they are not d numbers each, or one is not finite.
        """
        if features.shape[1] != self.dim:
            raise ValueError(
                f"features of {features.shape[1]} numbers given to statistics of {self.dim}"
            )
        self.add(Moments.of(features.cpu()))

    def merge(self, other: FeatureStatistics) -> None:
        """Take in what another process gathered of the same images with the same extractor.

        Raises:
            ValueError: if the other statistics are of something else.
        """
        if self.dim != other.dim:
            raise ValueError(f"statistics of {self.dim} and of {other.dim} features do not merge")
        _refuse_others(self.provenance, other.provenance)
        self.add(Moments(other.count, other.mean, other._scatter))

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance.

        Raises:
            ValueError: with fewer than two examples.
        """
        if self.count < 2:
            raise ValueError(f"covariance of {self.count} images: need at least 2")
        return self._scatter / (self.count - 1)

    def distance(self, other: FeatureStatistics) -> float:
        """Frechet distance to other statistics.

        Raises:
            ValueError: if the features are of different extractors or resizing.
        """
        ours, theirs = self.provenance, other.provenance
        if ours is not None and theirs is not None:
            _refuse_others(ours, theirs, _MEASURE)
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            ValueError: without provenance.
        """
        if self.provenance is None:
            raise ValueError(f"{path}: statistics without provenance are not saved: give it")
        record = {"count": self.count, **dataclasses.asdict(self.provenance)}
        tensors = {"mean": self.mean, "scatter": self._scatter.contiguous()}
        content = save(tensors, {"format": _FORMAT, "provenance": json.dumps(record)})
        write_bytes(path, content)

    @classmethod
    def load(cls, path: Path, expected: Provenance | None = None) -> FeatureStatistics:
        """Read what `save` wrote.

        Args:
            path: the file.
            expected: what the statistics must be of.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is broken, or of something else than expected.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"not {_FORMAT}")
                record = parse_json(metadata["provenance"])
                count = int(record.pop("count"))
                provenance = Provenance(**record)
                mean, scatter = stored.get_tensor("mean"), stored.get_tensor("scatter")
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: no feature statistics that can be read: {error}: delete it, and it is "
                "computed again"
            ) from error
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)) or count < 0:
            raise ValueError(f"{path}: mean and scatter do not match: delete it")
        if expected is not None:
            _refuse_others(provenance, expected, where=f"{path}: ")
        statistics = cls(len(mean), provenance)
        statistics.add(Moments(count, mean, scatter))
        return statistics


def _refuse_others(
    ours: Provenance | None,
    theirs: Provenance | None,
    names: Sequence[str] = _ALL,
    where: str = "",
) -> None:
    if ours is None and theirs is None:
        return
    if ours is None or theirs is None:
        raise ValueError("statistics with and without provenance are not mixed")
    differing = [
        f"{name} {getattr(ours, name)!r} against {getattr(theirs, name)!r}"
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if differing:
        what = "; ".join(differing)
        raise ValueError(f"{where}statistics of different things are not mixed: {what}")
