"""Draw images from a run: batch by batch, or into files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from softtrunc.data import from_model, stretch_levels
from softtrunc.feedback.errors import user_errors
from softtrunc.feedback.files import appears
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.progress import Progress, Silent
from softtrunc.feedback.signals import stop_on_signal
from softtrunc.recipes.build import build_sampler
from softtrunc.runs.folder import package_versions
from softtrunc.runs.open_run import OpenRun, open_run, with_below
from softtrunc.runs.sample_files import Destination, missing
from softtrunc.training import (
    AVERAGES_FILE,
    WEIGHTS_FILES,
    AnyWeights,
    find_checkpoint,
    read_checkpoint_info,
    weights_name,
)

# A network disk shows other machines' files with a delay of up to a minute.
_SLOW_DISK = 120.0


class DrawnBatch(NamedTuple):
    """Consecutive samples from number `first` on, as the data are, and what they took."""

    first: int
    images: Shaped[Tensor, "n c h w"]
    nfe: int


class DrawOutcome(NamedTuple):
    """Where images are, or will be; how many there are; whether a signal came before the last."""

    out: Path
    done: int
    interrupted: bool


def cut(count: int, batch_size: int) -> list[range]:
    """The numbers 0 ... count - 1 in consecutive batches."""
    return [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]


def to_data(opened: OpenRun, x: Float[Tensor, "n c h w"]) -> Shaped[Tensor, "n c h w"]:
    """Samples of a run's model on the CPU as its data are: grey levels, or floats."""
    dequantized = opened.recipe.data.dequantize
    return from_model(x, opened.card, opened.model.value_range, dequantized=dequantized).cpu()


def draw_batches(opened: OpenRun, parts: Iterable[range], *, seed: int = 0) -> Iterator[DrawnBatch]:
    """Draw images batch by batch; image i depends on `seed + i` alone.

    Where several processes share the work, each takes whole batches of `cut(count, batch_size)`: a
    batch is the same whoever draws it. In batches of other sizes a network may round otherwise,
    and a few pixels then differ by a grey level.

    Args:
        opened: the run; its recipe's `sampling` section says how.
        parts: the numbers of the images of each batch, as `cut` makes them.
        seed: of image 0.
    """
    sampler = build_sampler(opened.recipe.sampling, opened.model.sde)
    for part in parts:
        samples = sampler.sample(
            opened.drawn_from(part),
            (len(part), *opened.event),
            seeds=[seed + i for i in part],
            device=opened.device,
        )
        yield DrawnBatch(part.start, to_data(opened, samples.x), samples.nfe)


def draw(
    opened: OpenRun, count: int, *, seed: int = 0, batch_size: int = 256, progress: Progress
) -> DrawnBatch:
    """Draw `count` images into memory; image i depends on `seed + i` alone.

    The largest number of network evaluations of any batch is kept as `nfe`. See `draw_batches` for
    more images than memory holds.
    """
    parts, nfe = [], 0
    with progress.task(f"sample {opened.run.path.name}", count) as bar:
        for batch in draw_batches(opened, cut(count, batch_size), seed=seed):
            nfe = max(nfe, batch.nfe)
            parts.append(batch.images)
            bar.advance(len(batch.images))
    return DrawnBatch(0, torch.cat(parts), nfe)


def _protocol(opened: OpenRun, weights: AnyWeights, seed: int) -> dict[str, Any]:
    """What decides the images."""
    below = {}
    if opened.below is not None:
        below = {"t": opened.t, "below": _weights_record(opened.below, weights)}
    return {
        **_weights_record(opened, weights),
        **below,
        "sampling": opened.recipe.sampling.model_dump(mode="json"),
        "seed": seed,
        **_range_record(opened),
    }


def _range_record(opened: OpenRun) -> dict[str, Any]:
    known = opened.card.value_range
    return {"levels": opened.card.levels} if known is None else {"value_range": list(known)}


def _weights_record(opened: OpenRun, weights: AnyWeights) -> dict[str, Any]:
    with user_errors():
        info = read_checkpoint_info(find_checkpoint(opened.run.checkpoints, opened.step))
    file = AVERAGES_FILE if isinstance(weights, float) else WEIGHTS_FILES[weights]
    return {
        "run": opened.run.path.resolve().name,
        "step": opened.step,
        "weights": weights_name(weights),
        "weights_sha256": info.files[file],
    }


def _missing(place: Destination, parts: Sequence[range]) -> list[range]:
    """What is still to be drawn, part by part."""
    return missing(parts, [piece.span for piece in place.pieces()])


def _left(place: Destination, parts: Sequence[range]) -> int:
    """How many images are still to be drawn."""
    return sum(map(len, _missing(place, parts)))


def draw_to(
    path: Path,
    count: int,
    out: Path | None = None,
    *,
    below: tuple[Path, float] | None = None,
    overrides: Sequence[str] = (),
    weights: AnyWeights = "ema",
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> DrawOutcome:
    """Draw images of a run into an `.npz`, a `.zip` of PNGs or a folder of PNGs.

    Grey levels fewer than 256 are stretched to 0 ... 255. Floats go into a `.npy` or a
    `.safetensors`, in the data's own units. At no time is more than a batch in
    memory. Under several processes all must call it, and `out` must be on a disk that they share;
    whoever is free draws the next batch. Whatever ends the work, the same call goes on with it:
    finished batches lie beside `out` until all are there. SIGINT and SIGTERM end it after the
    present batch. The result is the same bytes however often it was ended and whatever the number
    of processes.

    Args:
        path: the run folder.
        count: how many images.
        out: where to; None: `samples/drawn` in the run folder, `samples/chimera` with `below`; of
            floats with `.npy` behind it.
        below: another run folder, and the time up to which its score is followed instead.
        overrides: `a.b=c` changes of the recipe's sampling section.
        weights: averaged or raw, or the length of an average to make.
        seed: image i is drawn from `seed + i`.
        batch_size: images at a time, in each process.
        progress: where bars go.

    Raises:
        UserError: if the run, a key or the place is not usable, other images were begun there, or
            another process draws into it.
    """
    opened = open_run(path, weights=weights, overrides=overrides)
    if below is not None:
        other = open_run(below[0], weights=weights, overrides=overrides)
        opened = with_below(opened, other, below[1])
    together = opened.company
    if progress is None or not together.main:
        progress = Silent()
    floats = not opened.card.on_grid
    name = ("drawn" if below is None else "chimera") + (".npy" if floats else "")
    place = Destination(out or opened.run.samples / name, first_number=seed, floats=floats)
    protocol = _protocol(opened, weights, seed)
    # What it refuses is refused before anything is made.
    build_sampler(opened.recipe.sampling, opened.model.sde)
    opened.drawn_from(range(1))
    parts = cut(count, batch_size)

    def begin() -> list[tuple[int, int]] | None:
        """What is left to draw; None: these images are finished."""
        if place.is_finished(protocol, count):
            return None
        place.begin(protocol)
        return [(part.start, part.stop) for part in _missing(place, parts)]

    with only_one(place.out, "drawing it") if together.main else nullcontext():
        todo = together.from_main(begin)
        if todo is None:
            return DrawOutcome(place.out, count, interrupted=False)
        left = _draw_pieces(
            opened, place, parts, [range(*ends) for ends in todo], seed=seed, progress=progress
        )
        if together.main and not left:
            place.finish(count, protocol, package_versions())
        together.meet()
    return DrawOutcome(place.out, count - left, interrupted=left > 0)


def _draw_pieces(
    opened: OpenRun,
    place: Destination,
    parts: Sequence[range],
    todo: Sequence[range],
    *,
    seed: int,
    progress: Progress,
) -> int:
    """Draw this process's share of `todo`, a piece each; how many images nobody has drawn."""
    together, count = opened.company, parts[-1].stop
    shown = count - sum(map(len, todo))
    with (
        stop_on_signal() as stop,
        progress.task(f"sample {opened.run.path.name}", count, done=shown) as bar,
    ):
        for batch in draw_batches(opened, together.deal(todo), seed=seed):
            card, images = opened.card, batch.images
            place.add(
                batch.first,
                stretch_levels(images, card.levels) if card.on_grid else images,
                batch.nfe,
            )
            done = shown + len(batch.images)
            if together.main and together.size > 1:  # the bar is of all processes together
                done = count - _left(place, parts)
            bar.advance(done - shown)
            shown = done
            if stop.signal is not None:
                break
        stopped = together.meet(vote=stop.signal is not None, stop=stop)
        left = together.from_main(lambda: _settled(place, parts, patient=not stopped))
        if not left:
            bar.advance(count - shown)
    return left


def _settled(place: Destination, parts: Sequence[range], *, patient: bool) -> int:
    """How many images are missing, once the disk shows what other machines have written."""
    if patient:
        appears(lambda: not _left(place, parts))
    return _left(place, parts)
