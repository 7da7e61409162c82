"""The data sets of the paper's recipes: what they are called, their size, and what to give."""

from __future__ import annotations

from typing import NamedTuple

from softtrunc.recipes.schema import DataName

__all__ = ["DATA_SETS", "DataSet"]


class DataSet(NamedTuple):
    """A data set under the protocol of the published figures.

    - `title`: its name in print. `train`, `test`: numbers of images; 0: nothing is held out.
    - `give`: what `--data` takes.
    """

    title: str
    train: int
    test: int
    give: str


_PREPARED = "what `softtrunc data prepare PATH --preset {} --out DIR` wrote"


def _by_protocol(name: str) -> str:
    return _PREPARED.format(name)


DATA_SETS: dict[DataName, DataSet] = {
    "cifar10": DataSet(
        "CIFAR-10", 50_000, 10_000, "the downloaded archive or folder, or a folder of images"
    ),
    "imagenet32": DataSet(
        "ImageNet 32x32",
        1_281_149,
        49_999,
        f'the older "small" release: {_by_protocol("imagenet32")}',
    ),
    "celeba64": DataSet("CelebA 64x64", 162_770, 19_962, _by_protocol("celeba64")),
    "stl10": DataSet("STL-10 48x48", 105_000, 8_000, _by_protocol("stl10")),
    "celebahq256": DataSet("CelebA-HQ 256x256", 30_000, 0, _by_protocol("celebahq256")),
    "ffhq256": DataSet("FFHQ 256x256", 70_000, 0, _by_protocol("ffhq256")),
    "bedroom256": DataSet("LSUN Bedroom 256x256", 3_033_042, 300, _by_protocol("bedroom256")),
    "fashion-mnist": DataSet(
        "Fashion-MNIST",
        60_000,
        10_000,
        "the folder of its IDX files, e.g. /usr/share/datasets/fashion-mnist",
    ),
}
"""By the name that a recipe's `data.preset` takes."""
