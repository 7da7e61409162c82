"""Figures of any set of images against reference images, shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from softtrunc.data import DataCard, ImageDataset
from softtrunc.evaluation.by_class import Labels, intra_distances
from softtrunc.evaluation.features import FeatureReader, Reference
from softtrunc.evaluation.known import KnownStatistics
from softtrunc.feedback.errors import UserError, nearest, user_errors
from softtrunc.metrics import (
    FeatureStatistics,
    figure_name,
    frechet_distance,
    inception_score,
    kernel_inception_distance,
    precision_recall,
)
from softtrunc.records import Figure, FigureData

SampleFigure = Literal["fid", "is", "kid", "prdc", "intra"]
"""Frechet distance, inception score, kernel distance, precision and recall, distance by class."""

_SPLITS = 10
_KERNEL_SUBSETS = 100
_KERNEL_SUBSET_SIZE = 1000
_NEIGHBOURS = 3
# Every distance between two sets of this size is computed.
_MANIFOLD_MOST = 10_000


def check_sample_figures(figures: Iterable[str]) -> frozenset[SampleFigure]:
    """Names of figures, checked.

    Raises:
        UserError: if one is unknown.
    """
    known = get_args(SampleFigure)
    for name in figures:
        if name not in known:
            raise UserError(f"figure {name!r}: {nearest(name, known)}")
    return frozenset(name for name in known if name in figures)


def against(key: str, split: str) -> str:
    """The key of a distance to images of a split."""
    return key if split == "train" else f"{key}_test"


@dataclass(frozen=True)
class Samples:
    """Images to be judged.

    - `label`: for the progress bar. `count`: how many, at least one per process.
    - `levels`, `channels`: of their grey levels.
    - `read`: gives the images with certain numbers, batch by batch.
    - `protocol`: what another must know of how they came about.
    - `nfe`: network evaluations per image, asked for when all are read; None: not known.
    - `labels`: their classes; None: not known.
    """

    label: str
    count: int
    levels: int
    channels: int
    read: Callable[[range], Iterator[Tensor]]
    protocol: Mapping[str, object]
    nfe: Callable[[], int | None]
    labels: Labels | None = None


@dataclass(frozen=True)
class _Judged:
    """What the extractor says of the samples, and what all of their figures share."""

    count: int
    statistics: FeatureStatistics
    features: Tensor | None
    probabilities: Tensor | None
    protocol: dict[str, object]
    seconds: float
    nfe: int | None

    def figure(
        self,
        key: str,
        name: str,
        value: float,
        protocol: Mapping[str, object],
        data: FigureData | None = None,
        *,
        better: Literal["lower", "higher"] = "lower",
        by_class: Mapping[str, float] | None = None,
    ) -> Figure:
        """A figure of these samples; `data`: what they are compared with."""
        nfe = None if self.nfe is None else float(self.nfe)
        return Figure(
            key=key,
            name=name,
            value=value,
            standard_error=None,
            unit="",
            better=better,
            seconds=self.seconds,
            protocol={**self.protocol, **protocol},
            data=data,
            nfe=None if nfe is None else {"mean": nfe, "max": nfe},
            by_class=by_class,
        )


class Judge(FeatureReader):
    """Measures sets of images over one extractor.

    Args:
        extractor: of features and class probabilities.
        accelerator: the device. `company`: the processes among which images are shared.
        batch_size: images at a time in each.
        seed: of the subsets of the kernel distance and of the reference images that are kept.
        progress: where bars and lines go.
    """

    def frechet_name(self, samples: int, split: str, card: DataCard) -> str:
        """What the Frechet distance of so many samples to these images is called."""
        return figure_name("FID", self._extractor, samples) + _of_references(
            card.count, split, card
        )

    def extractor_protocol(self, channels: int) -> dict[str, object]:
        """What a protocol says of the extractor; images have so many channels."""
        return {
            "extractor": self._extractor.name,
            "extractor_hash": self._extractor.hash,
            "resize": self._extractor.describe(channels),
        }

    def measure(
        self,
        samples: Samples,
        references: Mapping[str, ImageDataset],
        figures: frozenset[SampleFigure],
        known: KnownStatistics | None = None,
    ) -> Iterator[Figure]:
        """Judge samples; figures come one by one, and on the main process alone.

        Args:
            samples: the images.
            references: what they are compared with, by split: distances to every one of them,
                precision and recall against the first.
            figures: which ones; "intra" needs labels of the samples and of the references.
            known: what the Frechet distance is to instead of the references.

        Raises:
            UserError: if there are too few images for a figure, they have no labels or others for
                one, or `known` is of another number of features.
        """
        self._check_counts(samples, references, figures)
        if "intra" in figures:
            for data in references.values():
                _check_labels(samples, data)
        if known is not None:
            with user_errors():
                known.check(self._extractor.dim)
        main = self._accelerator.is_main_process
        some, every = bool(figures & {"kid", "prdc"}), "intra" in figures
        ours = self._judged(samples, features=some or every, probabilities="is" in figures)
        if main and ours.probabilities is not None:
            yield self._score(ours, ours.probabilities)
        if known is not None:
            if main and "fid" in figures:
                yield self._against(ours, known)
            figures -= {"fid"}
        for split, data in references.items():
            kept = len(data) if every else samples.count if some else None
            theirs = self.reference(data, kept, statistics="fid" in figures)
            if not main:
                continue
            few = theirs
            if every and theirs.features is not None:  # the others compare as many as samples
                chosen = self.chosen(len(data), samples.count)
                few = theirs._replace(features=theirs.features[chosen])
            yield from self._compare(ours, few, split, data.card, figures)
            figures -= {"prdc"}
            if samples.labels is not None and every:
                yield self._within(ours, samples.labels, theirs, split, data)

    def _check_counts(
        self,
        samples: Samples,
        references: Mapping[str, ImageDataset],
        figures: frozenset[SampleFigure],
    ) -> None:
        """Refuse before hours are spent what cannot be measured afterwards."""
        processes, names = self._accelerator.num_processes, ", ".join(sorted(figures))
        least = {"fid": 2, "kid": 2, "is": _SPLITS, "prdc": _NEIGHBOURS + 1, "intra": 2}
        needed = max(processes, *(least[figure] for figure in figures))
        if samples.count < needed:
            raise UserError(f"{samples.count} samples: {names} need {needed} at least")
        needed = max(processes, 2, *(least[figure] for figure in figures - {"is"}))
        for split, reference in references.items():
            if len(reference) < needed:
                raise UserError(
                    f"{len(reference)} {split} images are too few to compare with: {names} need "
                    f"{needed} at least"
                )

    def _against(self, ours: _Judged, known: KnownStatistics) -> Figure:
        """The Frechet distance to statistics from a file."""
        value = frechet_distance(
            ours.statistics.mean, ours.statistics.covariance, known.mean, known.covariance
        )
        protocol: dict[str, object] = {
            "reference": known.name,
            "n_reference": "unknown",
            "reference_fingerprint": known.sha256,
            "reference_provenance": "unknown: the file tells neither its images nor its extractor",
        }
        name = f"{figure_name('FID', self._extractor, ours.count)} to {known.name}"
        return ours.figure("frechet_distance_to_file", name, value, protocol)

    def _judged(self, samples: Samples, *, features: bool, probabilities: bool) -> _Judged:
        began = time.perf_counter()
        found = self.read(
            samples.label,
            samples.count,
            samples.read,
            samples.levels,
            features=features,
            probabilities=probabilities,
        )
        nfe = samples.nfe()
        protocol = {
            "samples": samples.count,
            **self.extractor_protocol(samples.channels),
            **samples.protocol,
        }
        return _Judged(
            samples.count,
            found.statistics,
            found.features,
            found.probabilities,
            protocol,
            time.perf_counter() - began,
            nfe,
        )

    def _score(self, ours: _Judged, probabilities: Tensor) -> Figure:
        score = inception_score(probabilities, _SPLITS)
        return ours.figure(
            "inception_score",
            figure_name("IS", self._extractor, ours.count),
            score.mean,
            {"splits": _SPLITS, "std_over_splits": score.std},
            better="higher",
        )

    def _within(
        self, ours: _Judged, labels: Labels, theirs: Reference, split: str, data: ImageDataset
    ) -> Figure:
        """The mean of the Frechet distances within the classes."""
        if ours.features is None or theirs.features is None:
            raise ValueError("distances within classes need features")
        to = Labels.of(data)
        found = intra_distances(ours.features, labels, theirs.features, to)
        reference, source = reference_protocol(split, data.card)
        name = figure_name("intra-FID", self._extractor, min(labels.counts()))
        return ours.figure(
            against("intra_frechet_distance", split),
            name + _of_references(data.card.count, split, data.card),
            sum(found.values()) / len(found),
            {**reference, "samples_per_class": min(labels.counts())},
            source,
            by_class=found,
        )

    def _compare(
        self,
        ours: _Judged,
        theirs: Reference,
        split: str,
        card: DataCard,
        figures: frozenset[SampleFigure],
    ) -> Iterator[Figure]:
        """Everything that is measured against one set of images."""

        def to(used: int) -> str:
            return _of_references(used, split, card)

        reference, data = reference_protocol(split, card)
        if theirs.statistics is not None:
            value = frechet_distance(
                ours.statistics.mean,
                ours.statistics.covariance,
                theirs.statistics.mean,
                theirs.statistics.covariance,
            )
            name = self.frechet_name(ours.count, split, card)
            yield ours.figure(against("frechet_distance", split), name, value, reference, data)
        if ours.features is None or theirs.features is None:
            return
        if "kid" in figures:
            size = min(_KERNEL_SUBSET_SIZE, len(ours.features), len(theirs.features))
            kernel = kernel_inception_distance(
                theirs.features,
                ours.features,
                subsets=_KERNEL_SUBSETS,
                subset_size=size,
                generator=torch.Generator().manual_seed(self._seed),
            )
            protocol = {
                **reference,
                "n_reference": len(theirs.features),
                "subsets": _KERNEL_SUBSETS,
                "subset_size": size,
                "std_over_subsets": kernel.std,
                "seed": self._seed,
            }
            name = figure_name("KID", self._extractor, ours.count) + to(len(theirs.features))
            key = against("kernel_distance", split)
            yield ours.figure(key, name, kernel.mean, protocol, data)
        if "prdc" in figures:
            # Between sets of one size.
            size = min(len(ours.features), len(theirs.features), _MANIFOLD_MOST)
            found = precision_recall(theirs.features[:size], ours.features[:size], k=_NEIGHBOURS)
            protocol = {
                **reference,
                "samples": size,
                "n_reference": size,
                "neighbours": _NEIGHBOURS,
                "seed": self._seed,
            }
            for key, value in (("precision", found.precision), ("recall", found.recall)):
                few = to(size).removeprefix(" to held-out")
                name = f"{key}({self._extractor.name}){few}"
                yield ours.figure(key, name, value, protocol, data, better="higher")


def _of_references(used: int, split: str, card: DataCard) -> str:
    """What a name says of the references: how many, unless they are the whole data set."""
    few = used < card.count or card.name.endswith("-partial")
    words = "" if split == "train" else " to held-out"
    return f"{words} to {used:,} references" if few else words


def reference_protocol(split: str, card: DataCard) -> tuple[dict[str, object], FigureData]:
    """What a protocol says of the references, and the figure's data."""
    said: dict[str, object] = {
        "reference": f"{card.name} {split}",
        "n_reference": card.count,
        "reference_fingerprint": card.fingerprint,
    }
    return said, FigureData(card.name, split, card.count, card.fingerprint, card.levels)


def _check_labels(samples: Samples, data: ImageDataset) -> None:
    """Refuse what has no distance within its classes."""
    theirs = Labels.of(data)
    theirs.check(f"{data.card.split} images")
    if samples.labels is None:
        raise UserError(
            "--intra-fid: the class of the samples is not known: it needs a run with labels "
            "(data.labels=true) that draws every class in turn (--class all), or --samples with a "
            "folder for each class"
        )
    if samples.labels.names != theirs.names:
        raise UserError(
            f"--intra-fid: the samples' classes ({', '.join(samples.labels.names[:5])}, ...) are "
            f"not those of {data.card.name} ({', '.join(theirs.names[:5])}, ...)"
        )
    samples.labels.check("samples")
