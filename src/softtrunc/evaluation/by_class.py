"""Distances within each class, of samples whose class is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from softtrunc.data import ImageDataset
from softtrunc.feedback.errors import UserError
from softtrunc.metrics import FeatureStatistics

_LEAST = 2  # a covariance needs two


def in_turns(data: ImageDataset, count: int) -> Int64[Tensor, " n"]:
    """The numbers of `count` images whose classes take turns as those of samples do.

    Images of a class repeat where it has too few; a class without images leaves its turns out.
    """
    labels = Labels.of(data)
    places = [torch.nonzero(labels.numbers == c)[:, 0] for c in range(len(labels.names))]
    turns = (divmod(i, len(places)) for i in range(count))
    return torch.stack([places[c][turn % len(places[c])] for turn, c in turns if len(places[c])])


@dataclass(frozen=True)
class Labels:
    """The class of each sample.

    - `numbers`: int64 (N,), in the order of the samples.
    - `names`: what the classes 0, 1, ... are called.
    """

    numbers: Int64[Tensor, " n"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, data: ImageDataset, count: int | None = None) -> Labels:
        """Those of the first `count` images, or of all.

        Raises:
            UserError: if there are none.
        """
        if data.labels is None or not data.card.classes:
            raise UserError(
                f"{data.card.name} ({data.card.split}): has no labels: distances within classes "
                "need images in a folder of each class"
            )
        return cls(data.classes_of(torch.arange(len(data)))[:count], data.card.classes)

    def counts(self) -> list[int]:
        """How many samples each class has."""
        return torch.bincount(self.numbers, minlength=len(self.names)).tolist()

    def check(self, what: str) -> None:
        """Refuse classes with too few samples for a distance.

        Args:
            what: the samples are called in the message.

        Raises:
            UserError: naming the first class that has too few.
        """
        for name, count in zip(self.names, self.counts(), strict=True):
            if count < _LEAST:
                raise UserError(
                    f"class {name!r} has {count} {what}: a distance within it needs {_LEAST} at "
                    "least"
                )


def intra_distances(
    ours: Float[Tensor, "n d"],
    our_labels: Labels,
    theirs: Float[Tensor, "m d"],
    their_labels: Labels,
) -> dict[str, float]:
    """The Frechet distance within each class, by name, between two sets of the same classes.

    Their mean is the intra-FID of Miyato and Koyama 2018 (arXiv 1802.05637).
    """
    pairs = zip(_statistics(ours, our_labels), _statistics(theirs, their_labels), strict=True)
    distances = [one.distance(other) for one, other in pairs]
    return dict(zip(our_labels.names, distances, strict=True))


def _statistics(features: Float[Tensor, "n d"], labels: Labels) -> Sequence[FeatureStatistics]:
    found = []
    for number in range(len(labels.names)):
        statistics = FeatureStatistics(features.shape[1])
        statistics.update(features[labels.numbers == number])
        found.append(statistics)
    return found
