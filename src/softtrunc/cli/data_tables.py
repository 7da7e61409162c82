"""Tables about data for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from softtrunc.cli.table import plain_table

# Rarer ones are summed up.
_ROWS = 8


def _counted(pairs: Sequence[tuple[str, int]]) -> str:
    """The most frequent of several things, with how often each occurs."""
    shown = [f"{what} ({count:,})" for what, count in pairs[:_ROWS]]
    rest = sum(count for _, count in pairs[_ROWS:])
    return ", ".join(shown + ([f"{len(pairs) - _ROWS:,} others ({rest:,})"] if rest else []))


def _facts(rows: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def float_table(found: Any) -> Table:
    """What `inspect` found in an array of floats, one line a fact."""
    low, high = found.value_range
    channels = zip(found.mean, found.std, strict=True)
    more = found.shape[0] - len(found.mean)
    rows = {
        "source": f"{found.source} ({found.kind}, {found.dtype}: no images)",
        "examples": f"{found.count:,}: {found.train:,} train, {found.test:,} test",
        "shape": " x ".join(map(str, found.shape)) + " (channels, height, width)",
        "values": f"{found.lowest:.6g} ... {found.highest:.6g}",
        "channels": ", ".join(f"{mean:.3g} ± {std:.3g}" for mean, std in channels)
        + (f", {more} more" if more > 0 else ""),
        "not finite": f"{found.broken:,}",
        "classes": f"{found.classes}" if found.classes else "no labels",
        "range": f"write e.g. --set data.value_range=[{low:g},{high:g}] to train on them",
    }
    return _facts(rows)


def inspection_table(found: Any) -> Table:
    """What `inspect` found, one line a fact."""
    rest = found.count - found.train - found.test
    splits = f"{found.train:,} train, {found.test:,} test" + (f", {rest:,} neither" if rest else "")
    rows = {
        "source": f"{found.source} ({found.kind})",
        "images": f"{found.count:,}: {splits}",
        "sizes": _counted([(f"{s.width}x{s.height}", s.count) for s in found.sizes]),
        "modes": _counted([(m.mode, m.count) for m in found.modes]),
        "converted": _counted(list(found.converted.items())) or "nothing",
        "values": f"{found.lowest} ... {found.highest}, {found.levels} different ones",
        "duplicates": f"{found.duplicates:,}",
        "unreadable": f"{len(found.unreadable):,}",
    }
    if (sigma := found.sigma_max) is not None:
        whole = sigma.images >= found.count
        of = "all images" if whole else f"a sample of {sigma.images:,} images (a lower bound)"
        rows["sigma_max (VE)"] = (
            f"{sigma.value:.1f}: the largest distance among {of} at {sigma.width}x{sigma.height} "
            "(--size for the size to be trained at)"
        )
    return _facts(rows)


def card_table(cards: Mapping[str, Any]) -> Table:
    """Cards of prepared splits."""
    table = plain_table(
        ("data", "split", "images", "shape", "preprocessing", "SHA-256"), ("images",)
    )
    for split, card in cards.items():
        table.add_row(
            card.name,
            split,
            f"{card.count:,}",
            f"{card.channels} x {card.height} x {card.width}",
            card.preprocessing,
            card.fingerprint[:16],
        )
    return table


def preset_table() -> Table:
    """The known protocols."""
    from softtrunc.jobs.prepare import presets

    columns = ("preset", "train", "test", "preprocessing", "data set")
    table = plain_table(columns, numbers=["train", "test"])
    for preset, fit in presets():
        test = "none" if preset.test is None else f"{preset.test:,}"
        table.add_row(preset.name, f"{preset.train:,}", test, fit, preset.title)
    return table
