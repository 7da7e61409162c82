"""Known data sets: how many images, of which size, and how they get there.

Counts and preprocessing are those under which figures were published; anything else gets another
name.
"""

from __future__ import annotations

from dataclasses import dataclass

from softtrunc.data.classes import CIFAR10, FASHION, counted
from softtrunc.data.images.fit import Fit
from softtrunc.feedback.errors import nearest


@dataclass(frozen=True)
class Preset:
    """The protocol of one data set.

    - `name`: of the prepared data. `title`: of the data set.
    - `train`, `test`: how many images; `test=None`: nothing is held out, all images train.
    - `fit`: what happens to each image. `channels`: 1 or 3.
    - `lossless`: whether the pixels are stored without loss; files with loss get another name.
    - `classes`: what the labels 0, 1, ... are called.
    - `hint`: what to look at where the counts differ.
    """

    name: str
    title: str
    train: int
    test: int | None
    fit: Fit
    channels: int = 3
    lossless: bool = True
    hint: str = ""
    classes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many images by split."""
        counts = {"train": self.train}
        return counts if self.test is None else {**counts, "test": self.test}


def _as_is(side: int) -> Fit:
    return Fit((side, side), filter=None, strict=True)


def _older_imagenet(side: int) -> Preset:
    return Preset(
        f"imagenet{side}",
        f"downsampled ImageNet, older release (van den Oord et al. 2016), {side}x{side}",
        1_281_149,
        49_999,
        _as_is(side),
        hint=f"1,281,167 and 50,000 are the newer release: --preset imagenet{side}-npz",
    )


def _newer_imagenet(side: int) -> Preset:
    return Preset(
        f"imagenet{side}-npz",
        f"downsampled ImageNet, newer release (Chrabaszcz et al. 2017), {side}x{side}",
        1_281_167,
        50_000,
        _as_is(side),
        hint=f"1,281,149 and 49,999 are the older release: --preset imagenet{side}",
    )


def _lsun(category: str, train: int) -> Preset:
    return Preset(
        f"lsun-{category}256",
        f"LSUN {category}, 256x256",
        train,
        300,
        Fit((256, 256), filter="bicubic", strict=True),
        lossless=False,
        hint=f"give the folder that holds both {category}_train_lmdb and {category}_val_lmdb",
    )


def _faces(name: str, title: str, count: int, hint: str) -> Preset:
    # The public code reads 1024x1024 originals reduced by averaging squares of pixels.
    fit = Fit((256, 256), filter="box", strict=True)
    return Preset(name, f"{title}, 256x256", count, None, fit, lossless=False, hint=hint)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("mnist", "MNIST", 60_000, 10_000, _as_is(28), channels=1, classes=counted(10)),
        Preset(
            "fashion-mnist",
            "Fashion-MNIST",
            60_000,
            10_000,
            _as_is(28),
            channels=1,
            classes=FASHION,
        ),
        Preset("cifar10", "CIFAR-10", 50_000, 10_000, _as_is(32), classes=CIFAR10),
        Preset("cifar100", "CIFAR-100", 50_000, 10_000, _as_is(32), classes=counted(100)),
        _older_imagenet(32),
        _older_imagenet(64),
        _newer_imagenet(32),
        _newer_imagenet(64),
        Preset(
            "celeba64",
            "CelebA, aligned, 64x64",
            162_770,
            19_962,
            Fit((64, 64), crop=140, filter="bilinear", strict=True),
            lossless=False,
            hint="the official split needs list_eval_partition.txt beside the images",
        ),
        Preset(
            "stl10",
            "STL-10, train and unlabelled, 48x48",
            105_000,
            8_000,
            Fit((48, 48), filter="bilinear", strict=True),
            hint="train is train_X.bin and unlabeled_X.bin together",
        ),
        _lsun("bedroom", 3_033_042),
        _lsun("church", 126_227),
        _faces(
            "celebahq256",
            "CelebA-HQ",
            30_000,
            "give the folder with the images alone (CelebA-HQ-img of CelebAMask-HQ)",
        ),
        _faces(
            "ffhq256",
            "FFHQ",
            70_000,
            "give the folder with the images alone (images1024x1024, not thumbnails128x128)",
        ),
    )
}
"""Every data set whose protocol is known, by the name that recipes give it."""


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: if there is none, naming the closest.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ValueError(f"preset {name!r} is unknown: {nearest(name, PRESETS)}")
