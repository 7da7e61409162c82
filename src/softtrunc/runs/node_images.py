"""Images that several processes of one machine decode once."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from softtrunc.data import DataCard, ImageDataset, Skipped
from softtrunc.feedback.json import read_json
from softtrunc.feedback.processes import Company
from softtrunc.feedback.progress import Progress
from softtrunc.recipes.build import build_data
from softtrunc.recipes.schema import Recipe


def open_images(
    recipe: Recipe, split: str, company: Company, progress: Progress | None = None
) -> ImageDataset:
    """The images of one split, as `build_data` opens them; all processes must call it.

    What is not memory-mapped already one process of each machine decodes into a temporary file,
    which the others map.

    Raises:
        UserError: if the recipe names no data, or they cannot be read.
    """
    decoded: list[ImageDataset] = []

    def decode() -> str:
        decoded.append(build_data(recipe, split, progress))
        alone = company.size == 1 or isinstance(decoded[0].images, np.memmap)
        return "" if alone else _lend(decoded[0])

    place, mine = company.once_a_node(decode)
    if mine:
        data = decoded[0]
    else:
        data = _borrow(Path(place)) if place else build_data(recipe, split, progress)
    company.meet()
    if mine and place:
        shutil.rmtree(place, ignore_errors=True)  # who has mapped the file keeps it
    return data


def _lend(data: ImageDataset) -> str:
    """Write images for the other processes of this machine; "" if there is no room."""
    rest = {
        "card": dataclasses.asdict(data.card),
        "skipped": [list(skipped) for skipped in data.skipped],
        "converted": dict(data.converted),
        "unread": data.unread,
        "splits": data.splits,
    }
    try:
        folder = Path(tempfile.mkdtemp(prefix="softtrunc-"))
        try:
            np.save(folder / "images.npy", data.images)
            if data.labels is not None:
                np.save(folder / "labels.npy", data.labels)
            (folder / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return ""
    except OSError:
        return ""
    return str(folder)


def _borrow(folder: Path) -> ImageDataset:
    rest = read_json(folder / "rest.json")
    labels = folder / "labels.npy"
    return ImageDataset(
        np.load(folder / "images.npy", mmap_mode="r"),
        DataCard.from_dict(rest["card"]),
        np.load(labels) if labels.exists() else None,
        tuple(Skipped(*skipped) for skipped in rest["skipped"]),
        rest["converted"],
        rest["unread"],
        tuple(rest["splits"]),
    )
