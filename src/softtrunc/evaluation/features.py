"""What a feature extractor says of images: samples and references, shared among processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Bool
from torch import Tensor

from softtrunc.data import ImageDataset, stretch_levels
from softtrunc.feedback.errors import UserError, nearest, user_errors
from softtrunc.feedback.processes import Company
from softtrunc.feedback.progress import Progress
from softtrunc.metrics import (
    DigitsFeatures,
    Fashion16Features,
    FeatureExtractor,
    FeatureStatistics,
    Provenance,
    TorchScriptFeatures,
    cache_folder,
    inception_file,
)
from softtrunc.metrics.features import INCEPTION_SHA256

if TYPE_CHECKING:
    from softtrunc.metrics.synced import Gathered

Resize = Literal["legacy", "clean"]
"""By the network itself, or antialiased before."""

DIGITS = DigitsFeatures.name
"""The digits' own classifier, as a recipe names it."""

_FASHION16 = Fashion16Features.name
_INCEPTION = "inception"
PACKAGED = (DIGITS, _FASHION16, _INCEPTION)
"""Extractors that are known by name; anything else is the path of a TorchScript file."""


def open_extractor(
    name: str | None, resize: Resize, images: ImageDataset | None
) -> FeatureExtractor:
    """The feature extractor that an evaluation names.

    Args:
        name: "digits-mlp", "fashion16-cnn", "inception" or the path of a TorchScript file; None:
            "inception".
        resize: how images come to its size.
        images: the training images, on which the digits' own classifier is trained; None: they
            are not at hand.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    name = name or _INCEPTION
    if name == DIGITS:
        if images is None or images.labels is None or images.card.name != "digits":
            raise UserError(f"evaluation.features={DIGITS} judges the digits only: give a path")
        return DigitsFeatures(images.images, images.labels)
    if name == _FASHION16:
        if images is None or (images.card.height, images.card.width) != (16, 16):
            raise UserError(f"evaluation.features={name} judges 16x16 images only: give a path")
        return Fashion16Features()
    if name != _INCEPTION and not Path(name).is_file():
        hint = nearest(name, PACKAGED)
        raise UserError(f"evaluation.features={name}: no such file; {hint}")
    with user_errors("evaluation.features"):
        path = inception_file() if name == _INCEPTION else Path(name)
        return TorchScriptFeatures(path, resize=resize)


def extractor_identity(name: str | None) -> dict[str, object]:
    """What a figure's protocol says of this extractor, as far as that is known unopened.

    Raises:
        OSError: if there is no such file.
    """
    if name in (DIGITS, _FASHION16):
        return {"extractor": name}
    if name in (None, _INCEPTION):
        return {"extractor_hash": INCEPTION_SHA256}
    with Path(name).open("rb") as stream:
        return {"extractor_hash": hashlib.file_digest(stream, "sha256").hexdigest()}


def share_of(count: int, accelerator: Accelerator) -> range:
    """The numbers that this process takes of 0 ... count - 1: consecutive, in process order."""
    index, processes = accelerator.process_index, accelerator.num_processes
    return range(count * index // processes, count * (index + 1) // processes)


class Reference(NamedTuple):
    """Statistics of all reference images, and features of some; None: not asked for."""

    statistics: FeatureStatistics | None
    features: Tensor | None


class FeatureReader:
    """Shows images to an extractor.

    Args:
        extractor: of features and class probabilities.
        accelerator: the device. `company`: the processes among which images are shared.
        batch_size: images at a time in each.
        seed: of the reference images whose features are kept.
        progress: where bars and lines go.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        accelerator: Accelerator,
        company: Company,
        *,
        batch_size: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self._extractor = extractor
        self._accelerator = accelerator
        self._company = company
        self._batch_size = batch_size
        self._seed = seed
        self._progress = progress
        self._references: dict[tuple[object, ...], Reference] = {}

    def read(
        self,
        label: str,
        count: int,
        batches: Callable[[range], Iterator[Tensor]],
        levels: int,
        *,
        features: bool,
        probabilities: bool = False,
        kept: Tensor | None = None,
    ) -> Gathered:
        """What the extractor says of images 0 ... count - 1, each process reading its share.

        Args:
            label: of the bar.
            count: how many images there are.
            batches: gives those with certain numbers, batch by batch.
            levels: of their grey levels.
            features, probabilities: whether these are wanted beside the statistics.
            kept: bool (count,): of which images the features are kept; None: of all.
        """
        from softtrunc.metrics.synced import FeatureGatherer  # torchmetrics takes a while

        gatherer = FeatureGatherer(self._extractor, features=features, probabilities=probabilities)
        device = self._accelerator.device
        if device.type == "cuda":  # where nccl exchanges; mps knows no float64
            gatherer = gatherer.to(device)
        mine = share_of(count, self._accelerator)
        place = mine.start
        with self._progress.task(label, len(mine)) as bar:
            for images in batches(mine):
                pixels = stretch_levels(images, levels) if self._extractor.full_range else images
                chosen = None if kept is None else kept[place : place + len(images)]
                gatherer.update(pixels.to(device), chosen)
                place += len(images)
                bar.advance(len(images))
        self._company.meet()
        found: Gathered = gatherer.compute()
        return found

    def chosen(self, count: int, kept: int) -> Bool[Tensor, " n"]:
        """Which of `count` reference images are among `kept` drawn at random; all if they are."""
        generator = torch.Generator().manual_seed(self._seed)
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count, generator=generator)[:kept]] = True
        return mask

    def reference(self, data: ImageDataset, kept: int | None, *, statistics: bool) -> Reference:
        """Statistics of all reference images, and features of `kept` of them, drawn at random.

        Statistics of an earlier evaluation are used if they are of exactly this and whole.
        """
        key = (data.card.fingerprint, data.card.split, kept, statistics)
        if key not in self._references:
            self._references[key] = self._read_reference(data, kept, statistics=statistics)
        return self._references[key]

    def _read_reference(
        self, data: ImageDataset, kept: int | None, *, statistics: bool
    ) -> Reference:
        known = self._cached(data) if statistics else None
        numbers = torch.arange(len(data))
        mask = None if kept is None else self.chosen(len(data), kept)
        if known is not None or not statistics:
            if mask is None:
                return Reference(known, None)
            numbers, mask = numbers[mask], None  # the others are of no use

        def batches(wanted: range) -> Iterator[Tensor]:
            for part in numbers[wanted.start : wanted.stop].split(self._batch_size):
                yield data.batch(part)

        label = f"features of {data.card.name} {data.card.split}"
        wanted = kept is not None
        found = self.read(
            label, len(numbers), batches, data.card.levels, features=wanted, kept=mask
        )
        if statistics and known is None:
            known = found.statistics
            self._keep(data, known)
        return Reference(known, found.features)

    def _provenance(self, data: ImageDataset) -> Provenance:
        return Provenance(
            data=data.card.fingerprint,
            split=data.card.split,
            extractor=self._extractor.name,
            extractor_hash=self._extractor.hash,
            resize=self._extractor.resize,
        )

    def _cache_file(self, data: ImageDataset) -> Path | None:
        """One file for each data set, number of images, extractor and way of resizing.

        None where another process reads it, and for the digits' own classifier: that is trained
        anew in seconds, and so are its statistics.
        """
        if not (
            self._accelerator.is_main_process and isinstance(self._extractor, TorchScriptFeatures)
        ):
            return None
        of = self._provenance(data)
        resize = of.resize.replace(" ", "-")
        parts = (of.data[:16], of.split, str(len(data)), of.extractor_hash[:16], resize)
        return cache_folder() / "statistics" / ("_".join(parts) + ".safetensors")

    def _cached(self, data: ImageDataset) -> FeatureStatistics | None:
        """All processes decide alike: the main one looks, and tells."""
        found: list[FeatureStatistics | None] = [None]
        path = self._cache_file(data)
        if path is not None and path.is_file():
            try:
                loaded = FeatureStatistics.load(path, self._provenance(data))
                if loaded.count != len(data):
                    raise ValueError(f"{path}: of {loaded.count} images, not {len(data)}")
                found = [loaded]
            except ValueError as error:
                self._progress.say(f"reference statistics are computed again: {error}")
        self._company.meet()
        if self._company.size > 1:
            broadcast_object_list(found)
        return found[0]

    def _keep(self, data: ImageDataset, statistics: FeatureStatistics) -> None:
        path = self._cache_file(data)
        if path is not None:
            statistics.provenance = self._provenance(data)
            try:
                statistics.save(path)
            except OSError as error:
                self._progress.say(f"reference statistics are not kept: {error}")
