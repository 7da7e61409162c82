"""Figures of any set of images against reference images, shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from softtrunc.data import ImageDataset, stretch_levels
from softtrunc.feedback.errors import UserError, nearest
from softtrunc.feedback.progress import Progress
from softtrunc.metrics import (
    FeatureExtractor,
    FeatureStatistics,
    KernelDistance,
    Provenance,
    TorchScriptFeatures,
    cache_folder,
    figure_name,
    frechet_distance,
    inception_score,
    kernel_inception_distance,
    precision_recall,
)
from softtrunc.records import Figure

__all__ = ["Judge", "SampleFigure", "Samples", "check_sample_figures", "share_of"]

SampleFigure = Literal["fid", "is", "kid", "prdc"]
"""Frechet distance, inception score, kernel distance, precision and recall."""

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


def share_of(count: int, accelerator: Accelerator) -> range:
    """The numbers that this process takes of 0 ... count - 1: consecutive, in process order."""
    index, processes = accelerator.process_index, accelerator.num_processes
    return range(count * index // processes, count * (index + 1) // processes)


@dataclass(frozen=True)
class Samples:
    """Images to be judged.

    - `label`: for the progress bar. `count`: how many, at least one per process.
    - `levels`, `channels`: of their grey levels.
    - `read`: gives the images with certain numbers, batch by batch.
    - `protocol`: what another must know of how they came about.
    - `nfe`: network evaluations per image, asked for when all are read; None: not known.
    """

    label: str
    count: int
    levels: int
    channels: int
    read: Callable[[range], Iterator[Tensor]]
    protocol: Mapping[str, Any]
    nfe: Callable[[], int | None]


class Judge:
    """Measures sets of images over one extractor.

    Args:
        extractor: of features and class probabilities.
        accelerator: the processes among which images are shared, and the device.
        batch_size: images at a time in each.
        seed: of the subsets of the kernel distance and of the reference images that are kept.
        progress: where bars and lines go.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        accelerator: Accelerator,
        *,
        batch_size: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self._extractor = extractor
        self._accelerator = accelerator
        self._batch_size = batch_size
        self._seed = seed
        self._progress = progress

    def measure(
        self,
        samples: Samples,
        references: Mapping[str, ImageDataset],
        figures: frozenset[SampleFigure],
    ) -> Iterator[Figure]:
        """Judge samples; figures come one by one, and on the main process alone.

        Args:
            samples: the images.
            references: what they are compared with: distances to every one of them, precision
                and recall against the first.
            figures: which ones.

        Raises:
            UserError: if there are too few images for a figure.
        """
        self._check_counts(samples, references, figures)
        began = time.perf_counter()
        keep = bool(figures & {"kid", "prdc"})
        ours = self._gather(
            samples.label,
            samples.count,
            samples.read,
            samples.levels,
            features=keep,
            probabilities="is" in figures,
        )
        nfe = samples.nfe()
        seconds = time.perf_counter() - began
        common: dict[str, Any] = {
            "standard_error": None,
            "unit": "",
            "seconds": seconds,
            "nfe": None if nfe is None else {"mean": float(nfe), "max": float(nfe)},
        }
        protocol = {
            "samples": samples.count,
            "extractor": self._extractor.name,
            "extractor_hash": self._extractor.hash,
            "resize": self._extractor.describe(samples.channels),
            **samples.protocol,
        }
        if "is" in figures and ours.probabilities is not None and self._main:
            score = inception_score(ours.probabilities, _SPLITS)
            yield Figure(
                key="inception_score",
                name=figure_name("IS", self._extractor, samples.count),
                value=score.mean,
                better="higher",
                protocol={**protocol, "splits": _SPLITS, "std_over_splits": score.std},
                **common,
            )
        for place, (split, reference) in enumerate(references.items()):
            theirs, features = self._reference(
                reference,
                samples.count if keep else None,
                statistics="fid" in figures,
            )
            if not self._main:
                continue
            suffix, words = ("", "") if split == "train" else ("_test", " to held-out")
            against = {
                **protocol,
                "reference": f"{reference.card.name} {split}",
                "n_reference": len(reference),
                "reference_fingerprint": reference.card.fingerprint,
            }
            if theirs is not None:
                yield Figure(
                    key=f"frechet_distance{suffix}",
                    name=figure_name("FID", self._extractor, samples.count) + words,
                    value=frechet_distance(
                        ours.statistics.mean,
                        ours.statistics.covariance,
                        theirs.mean,
                        theirs.covariance,
                    ),
                    better="lower",
                    protocol=against,
                    **common,
                )
            if "kid" in figures and ours.features is not None and features is not None:
                size = min(_KERNEL_SUBSET_SIZE, len(ours.features), len(features))
                kernel = self._kernel(features, ours.features, size)
                yield Figure(
                    key=f"kernel_distance{suffix}",
                    name=figure_name("KID", self._extractor, samples.count) + words,
                    value=kernel.mean,
                    better="lower",
                    protocol={
                        **against,
                        "n_reference": len(features),
                        "subsets": _KERNEL_SUBSETS,
                        "subset_size": size,
                        "std_over_subsets": kernel.std,
                        "seed": self._seed,
                    },
                    **common,
                )
            if place == 0 and "prdc" in figures and features is not None:
                yield from self._manifold(ours.features, features, against, common)

    @property
    def _main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    def _check_counts(
        self,
        samples: Samples,
        references: Mapping[str, ImageDataset],
        figures: frozenset[SampleFigure],
    ) -> None:
        """Refuse before hours are spent what cannot be measured afterwards."""
        least = {"fid": 2, "kid": 2, "is": _SPLITS, "prdc": _NEIGHBOURS + 1}
        needed = max(self._accelerator.num_processes, *(least[figure] for figure in figures))
        if samples.count < needed:
            raise UserError(f"{samples.count} samples: {', '.join(figures)} need {needed} at least")
        for split, reference in references.items():
            if len(reference) < max(needed - _SPLITS, 2, self._accelerator.num_processes):
                raise UserError(f"{len(reference)} {split} images are too few to compare with")

    def _gather(
        self,
        label: str,
        count: int,
        read: Callable[[range], Iterator[Tensor]],
        levels: int,
        *,
        features: bool,
        probabilities: bool = False,
        kept: Tensor | None = None,
    ) -> Any:
        """What the extractor says of images 0 ... count - 1, each process reading its share."""
        from softtrunc.metrics.synced import FeatureGatherer  # torchmetrics takes a while

        gatherer = FeatureGatherer(self._extractor, features=features, probabilities=probabilities)
        device = self._accelerator.device
        if device.type == "cuda":  # where nccl exchanges; mps knows no float64
            gatherer = gatherer.to(device)
        mine = share_of(count, self._accelerator)
        place = mine.start
        with self._progress.task(label, len(mine)) as bar:
            for images in read(mine):
                pixels = stretch_levels(images, levels) if self._extractor.full_range else images
                chosen = None if kept is None else kept[place : place + len(images)]
                gatherer.update(pixels.to(device), chosen)
                place += len(images)
                bar.advance(len(images))
        return gatherer.compute()

    def _reference(
        self, data: ImageDataset, kept: int | None, *, statistics: bool
    ) -> tuple[FeatureStatistics | None, Tensor | None]:
        """Statistics of all reference images, and features of `kept` of them, drawn at random."""
        known = self._cached(data) if statistics else None
        numbers = torch.arange(len(data))
        mask = None
        if kept is not None:
            generator = torch.Generator().manual_seed(self._seed)
            mask = torch.zeros(len(data), dtype=torch.bool)
            mask[torch.randperm(len(data), generator=generator)[:kept]] = True
        if known is not None or not statistics:
            if mask is None:
                return known, None
            numbers, mask = numbers[mask], None  # the others are of no use

        def read(wanted: range) -> Iterator[Tensor]:
            for part in numbers[wanted.start : wanted.stop].split(self._batch_size):
                yield data.batch(part)

        found = self._gather(
            f"features of {data.card.name} {data.card.split}",
            len(numbers),
            read,
            data.card.levels,
            features=kept is not None,
            kept=mask,
        )
        if statistics and known is None:
            known = found.statistics
            self._keep(data, found.statistics)
        return known, found.features

    def _provenance(self, data: ImageDataset) -> Provenance:
        return Provenance(
            data=data.card.fingerprint,
            split=data.card.split,
            extractor=self._extractor.name,
            extractor_hash=self._extractor.hash,
            resize=self._extractor.resize,
        )

    def _cached(self, data: ImageDataset) -> FeatureStatistics | None:
        """Statistics of an earlier evaluation, if they are of exactly this and whole.

        All processes decide alike: the main one looks, and tells.
        """
        from accelerate.utils import broadcast_object_list

        found: list[FeatureStatistics | None] = [None]
        path = _cache_file(self._provenance(data), len(data))
        if self._main and isinstance(self._extractor, TorchScriptFeatures) and path.is_file():
            try:
                loaded = FeatureStatistics.load(path, self._provenance(data))
                if loaded.count != len(data):
                    raise ValueError(f"{path}: of {loaded.count} images, not {len(data)}")
                found = [loaded]
            except ValueError as error:
                self._progress.say(f"reference statistics are computed again: {error}")
        if self._accelerator.num_processes > 1:
            broadcast_object_list(found)
        return found[0]

    def _keep(self, data: ImageDataset, statistics: FeatureStatistics) -> None:
        # The digits' own classifier is trained anew in seconds, and so are its statistics.
        if self._main and isinstance(self._extractor, TorchScriptFeatures):
            path = _cache_file(self._provenance(data), len(data))
            statistics.provenance = self._provenance(data)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                statistics.save(path)
            except OSError as error:
                self._progress.say(f"reference statistics are not kept: {error}")

    def _kernel(self, real: Tensor, generated: Tensor, size: int) -> KernelDistance:
        return kernel_inception_distance(
            real,
            generated,
            subsets=_KERNEL_SUBSETS,
            subset_size=size,
            generator=torch.Generator().manual_seed(self._seed),
        )

    def _manifold(
        self,
        ours: Tensor | None,
        theirs: Tensor,
        protocol: Mapping[str, Any],
        common: Mapping[str, Any],
    ) -> Iterator[Figure]:
        """Precision and recall between sets of one size."""
        assert ours is not None  # gathered with those of the reference
        size = min(len(ours), len(theirs), _MANIFOLD_MOST)
        found = precision_recall(theirs[:size], ours[:size], k=_NEIGHBOURS)
        for key, value in (("precision", found.precision), ("recall", found.recall)):
            yield Figure(
                key=key,
                name=f"{key}({self._extractor.name})",
                value=value,
                better="higher",
                protocol={
                    **protocol,
                    "samples": size,
                    "n_reference": size,
                    "neighbours": _NEIGHBOURS,
                    "seed": self._seed,
                },
                **common,
            )


def _cache_file(provenance: Provenance, count: int) -> Any:
    """One file for each data set, number of images, extractor and way of resizing."""
    parts: Sequence[str] = (
        provenance.data[:16],
        provenance.split,
        str(count),
        provenance.extractor_hash[:16],
        provenance.resize.replace(" ", "-"),
    )
    return cache_folder() / "statistics" / ("_".join(parts) + ".safetensors")
