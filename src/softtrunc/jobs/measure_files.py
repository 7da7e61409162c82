"""Images that somebody else made against a data set: `evaluate --samples`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from softtrunc.data import ImageDataset, open_dataset
from softtrunc.evaluation.by_class import Labels
from softtrunc.evaluation.distances import Judge, Samples, check_sample_figures
from softtrunc.evaluation.features import Resize, open_extractor
from softtrunc.evaluation.known import (
    KnownStatistics,
    holds_images,
    holds_statistics,
    read_statistics,
)
from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import write_text
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.records import Figure
from softtrunc.runs.devices import find_devices
from softtrunc.runs.folder import now, package_versions

_TIMEOUT = 600.0  # of the processes' exchanges: no recipe says it


class JudgedFiles(NamedTuple):
    """How many images were judged, and their figures."""

    n: int
    figures: tuple[Figure, ...]


def measure_files(
    samples: str,
    data: str | None,
    *,
    stats: Path | None = None,
    figures: Sequence[str] = ("fid",),
    split: str = "train",
    limit: int | None = None,
    features: str | None = None,
    resize: str = "legacy",
    batch_size: int = 256,
    seed: int = 0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> JudgedFiles:
    """Judge images in a folder, an archive or an array, whoever made them.

    Args:
        samples: where they are.
        data: what they are compared with, likewise, or a prepared data set; or an .npz with `mu`
            and `sigma`, which may hold images too. None: `stats` alone.
        stats: an .npz with `mu` and `sigma`, to which the Frechet distance is.
        figures: of "fid", "is", "kid", "prdc", "intra" (within each class; both need labels).
        split: of `data`; where data come without splits, "train" is all of them.
        limit: only the first so many samples.
        features: as `evaluation.features`.
        resize: "legacy" or "clean".
        batch_size: images at a time.
        seed: of random subsets.
        out: the JSON file to write; None: beside the samples, `NAME-evaluation.json`.
        progress: where bars and lines go.

    Raises:
        UserError: if images or extractor are not usable, or do not fit together, or another process
            measures into the same file.
    """
    progress = progress or Silent()
    wanted, mode = check_sample_figures(figures), _resize(resize)
    with user_errors("--samples"):
        ours = open_dataset(samples, "all")
    known, images = find_references(stats, data)
    theirs = None
    if images is not None and not (known is not None and wanted <= {"fid", "is"}):
        with user_errors("--data"):
            theirs = open_dataset(images, split, held_out=0.0)
        _check_alike(ours, theirs)
    elif wanted & {"kid", "prdc"}:
        raise UserError(f"--data {data}: holds statistics and no images: kid and prdc need images")
    accelerator, together = find_devices(_TIMEOUT)
    if not together.main:
        progress = Silent()
    source = Path(samples)
    place = out or source.with_name(f"{source.name}-evaluation.json")

    def read(numbers: range) -> Iterator[Tensor]:
        for part in torch.arange(numbers.start, numbers.stop).split(batch_size):
            yield ours.batch(part)

    judged = Samples(
        label=f"features of {ours.card.name}",
        count=min(len(ours), limit or len(ours)),
        levels=ours.card.levels,
        channels=ours.card.channels,
        read=read,
        protocol={"sampler": "not ours", "samples_fingerprint": ours.card.fingerprint},
        nfe=lambda: None,
        labels=None if ours.labels is None else Labels.of(ours, limit),
    )
    found: list[Figure] = []
    option = "" if out is None else "--out "
    alone = only_one(place, "measuring into it", option=option)
    with alone if together.main else nullcontext():
        extractor = together.main_first(lambda: open_extractor(features, mode, theirs or ours))
        judge = Judge(
            extractor, accelerator, together, batch_size=batch_size, seed=seed, progress=progress
        )
        references = {} if theirs is None else {split: theirs}
        for figure in judge.measure(judged, references, wanted, known):
            found.append(figure)
            content = {
                "samples": samples,
                "n": judged.count,
                "created": now(),
                "versions": package_versions(),
                "skipped": [list(skipped) for skipped in ours.skipped],
                "figures": [asdict(figure) for figure in found],
            }
            with user_errors(f"--out {place}"):
                write_text(place, json.dumps(content, indent=1, allow_nan=False) + "\n")
        progress.say(f"figures in {place}")
        together.meet()
    return JudgedFiles(judged.count, tuple(found))


def find_references(
    stats: Path | None, data: str | None
) -> tuple[KnownStatistics | None, str | None]:
    """Statistics that --stats or --data give, and where images are; None: there are none.

    Raises:
        UserError: if a file of statistics cannot be used.
    """
    beside = data is not None and Path(data).suffix.lower() == ".npz"
    with user_errors("--data"):
        beside = beside and holds_statistics(Path(str(data)))
        images = None if beside and not holds_images(Path(str(data))) else data
        known = read_statistics(Path(str(data))) if beside and stats is None else None
    if stats is not None:
        with user_errors("--stats"):
            known = read_statistics(stats)
    return known, images


def _resize(name: str) -> Resize:
    known: tuple[Resize, ...] = ("legacy", "clean")
    for mode in known:
        if mode == name:
            return mode
    raise UserError(f"--mode {name}: write legacy or clean")


def _check_alike(ours: ImageDataset, theirs: ImageDataset) -> None:
    """Refuse images of another shape: resizing one side alone decides the distance."""
    a, b = ((d.card.channels, d.card.height, d.card.width) for d in (ours, theirs))
    if a[1:] != b[1:]:
        what = "bring both to one size first, the reference by the protocol of its data set"
    elif a != b:
        what = "make both grey or both colour first (data prepare --channels 1, or 3)"
    else:
        return
    one, other = (f"{channels} x {height} x {width}" for channels, height, width in (a, b))
    raise UserError(f"--samples are {one}, --data are {other}: {what}")
