"""What images are brought to, under a known protocol or not, and what they may then be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softtrunc.data.dataset import DataCard, ImageDataset, Skipped
from softtrunc.data.images.collect import Advance, Collected
from softtrunc.data.images.fit import Fit, describe_fit, fit_to, pair
from softtrunc.data.presets import Preset, find_preset
from softtrunc.data.source import ArrayImages, NoSplitError, Part, Source, joined
from softtrunc.data.splits import EVERY


class CountError(ValueError):
    """There are not as many images as the protocol of the data set has."""


@dataclass(frozen=True)
class How:
    """What images are brought to.

    - `fit`, `channels`: size and 1 or 3; None: as they are.
    - `preset`: the protocol that these come from, if any.
    - `any_count`: whether numbers of images other than the protocol's are taken.
    """

    fit: Fit | None = None
    channels: int | None = None
    preset: Preset | None = None
    any_count: bool = False

    @classmethod
    def asked(
        cls,
        source: object,
        image_size: int | tuple[int, int] | None,
        channels: int | None,
        preset: str | None,
        any_count: bool = False,
    ) -> How:
        """By the arguments of `open_dataset` and `prepare`.

        Raises:
            ValueError: if they are out of range or contradict each other.
        """
        if channels not in (None, 1, 3):
            raise ValueError(f"{source}: channels={channels}: write 1 (grey), 3 (RGB) or nothing")
        if preset is None:
            return cls(fit_to(image_size), channels)
        known = find_preset(preset)
        if pair(image_size) not in (None, known.fit.size) or channels not in (None, known.channels):
            depth, (height, width) = known.channels, known.fit.size
            raise ValueError(
                f"{source}: preset {preset} makes images of {depth} x {height} x {width}: leave "
                "out image_size and channels, or the preset"
            )
        return cls(known.fit, known.channels, known, any_count)

    def check_count(
        self, source: Source, split: str, found: int, skipped: Sequence[Skipped] = ()
    ) -> None:
        """Refuse another number of images than the protocol has.

        Raises:
            CountError: unless any number is taken.
        """
        if self.preset is None or self.any_count or split == EVERY:
            return
        wanted = self.preset.counts.get(split)
        if found != wanted:
            hint = self.preset.hint
            if skipped:
                hint = f"unreadable: {skipped[0].name}: {skipped[0].reason}"
            has = f"{found:,} {split} images, {self.preset.title} has "
            has += "none" if wanted is None else f"{wanted:,}"
            raise CountError(
                f"{source.location}: {has}{f' ({hint})' if hint else ''}: add --allow-count to "
                "take them under another name"
            )

    def refuse_change(self, source: Source, card: DataCard) -> None:
        """Refuse to bring finished data to anything else.

        Raises:
            ValueError: if they are not what is asked for.
        """
        size = None if self.fit is None else self.fit.size
        if size not in (None, (card.height, card.width)) or self.channels not in (
            None,
            card.channels,
        ):
            raise ValueError(
                f"{source.location}: images are {card.channels} x {card.height} x {card.width}: "
                "leave out data.image_size and data.channels, or set them to this"
            )
        if self.preset is not None and card.name.removesuffix("-jpeg") != self.preset.name:
            raise ValueError(
                f"{source.location}: prepared as {card.name}, not by preset {self.preset.name}: "
                f"prepare it with --preset {self.preset.name}"
            )

    def finish(
        self,
        source: Source,
        split: str,
        part: Part,
        found: Collected,
        progress: Advance | None = None,
    ) -> ImageDataset:
        """The split, under the name that it may have: a data set's only if they are that data set.

        Raises:
            CountError: if the number of images is not the protocol's.
        """
        count, name = len(found.images), source.name
        self.check_count(source, split, count, found.skipped)
        if self.preset is not None:
            name = self.preset.name
            if found.lossy and self.preset.lossless:
                name += "-jpeg"
            if count != self.preset.counts.get(split):
                name += "-partial"
        return ImageDataset.create(
            found.images,
            name=name,
            split=split,
            source=source.location,
            levels=source.levels,
            preprocessing=describe_fit(self.fit),
            labels=None if part.labels is None else part.labels[found.rows],
            classes=part.files.classes or (() if self.preset is None else self.preset.classes),
            skipped=[*part.files.skipped, *found.skipped],
            converted=found.converted,
            progress=progress,
        )


def open_part(source: Source, split: str, how: How) -> Part:
    """Open a split, under the protocol's rules if there is one, and check its number of images.

    Raises:
        FileNotFoundError: if there is no such split.
        CountError: if the number of images is not the protocol's.
        ValueError: if the source cannot be read, or is finished and not what is asked for.
    """
    preset = how.preset
    if preset is not None and preset.test is None and source.kind != "prepared":
        if split != "train":
            raise NoSplitError(f"{source.location}: {preset.title} has no {split} split")
        part = joined(source)
    elif split == EVERY:
        part = joined(source)
    else:
        part = source.part(split)
    if part.data is not None:
        how.refuse_change(source, part.data.card)
    elif not (isinstance(part.files, ArrayImages) and part.files.floats):
        how.check_count(source, split, len(part.names))
    return part
