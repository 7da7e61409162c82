"""Averages that are stored now and then, and any other average made of them.

A snapshot is a folder `step-00010000` with the averages of a checkpoint and its `state.json`. A
bounded number of them stays, spread evenly over the training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from softtrunc.feedback.files import whole_folder
from softtrunc.pretrained import load_exactly
from softtrunc.training.checkpoint import (
    AVERAGES_FILE,
    WEIGHTS_FILES,
    CheckpointError,
    CheckpointInfo,
    Weights,
    find_checkpoint,
    list_checkpoints,
    remove_unfinished,
    step_of,
    verify,
)
from softtrunc.training.power_average import LENGTHS, Profile, coefficients, exponent_of
from softtrunc.training.state import TrainState
from softtrunc.training.tensor_files import plainly, read_averages, read_tensors

MOST_SNAPSHOTS = 16
"""So many are kept of a run: averages of length 0.07 to 0.15 are then exact to 1 % of a profile."""

_STATE = "state.json"

AnyWeights = Weights | float
"""Averaged or raw weights, or an average of this length, see `load_average`."""


def weights_name(weights: AnyWeights) -> str:
    """What files call them: "ema", "raw", or "ema-0.05" of an average of length 0.05."""
    return weights if isinstance(weights, str) else f"ema-{weights:g}"


def keep_averages(state: TrainState, checkpoints: Path, folder: Path) -> None:
    """Lay aside the averages of the present step's checkpoint, and thin out what lies there.

    Snapshots beyond that step are forgotten: they will be computed and written again.

    Args:
        state: of the training; without averages nothing happens.
        checkpoints: the run's, of which later ones will take the place.
        folder: of its snapshots.
    """
    if state.posthoc is None:
        return
    remove_unfinished(folder)
    for path in list_checkpoints(folder):
        if step_of(path) > state.step:
            shutil.rmtree(path)
    if state.step:
        _keep(find_checkpoint(checkpoints, state.step), folder)


def _keep(checkpoint: Path, folder: Path) -> None:
    final = folder / checkpoint.name
    if not final.exists():
        with whole_folder(final) as partial:
            for name in (AVERAGES_FILE, _STATE):
                _link(checkpoint / name, partial / name)
    found = {step_of(path): path for path in list_checkpoints(folder)}
    for step in found.keys() - thinned(sorted(found), MOST_SNAPSHOTS):
        shutil.rmtree(found[step])


def _link(source: Path, target: Path) -> None:
    """One file under two names, where the disk can have that: it takes its room once."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def thinned(steps: Sequence[int], most: int) -> set[int]:
    """What stays of ascending steps: first and last, and of the others those far from others."""
    kept = list(steps)
    while len(kept) > max(most, 2):
        gaps = [after - before for before, after in zip(kept, kept[2:], strict=False)]
        del kept[1 + gaps.index(min(gaps))]
    return set(kept)


def load_average(checkpoint: Path, folder: Path, model: nn.Module, length: float) -> CheckpointInfo:
    """Load the average that ends at a checkpoint and has this length.

    Args:
        checkpoint: of a run that was trained with `posthoc_ema`.
        folder: of the run's snapshots; those up to the checkpoint are used.
        model: what the average is loaded into.
        length: standard deviation of the profile over the steps so far, in (0, 0.2886].

    Raises:
        CheckpointError: if a file is missing, damaged or does not fit; the model is then untouched.
        ValueError: if the length is out of range.
    """
    raw = WEIGHTS_FILES["raw"]
    info = verify(checkpoint, (raw,))
    wanted = Profile(exponent_of(length), info.step)
    if AVERAGES_FILE not in info.files:
        raise CheckpointError(
            f"{checkpoint}: keeps no averages to make one of length {length:g} from: train with "
            "training.posthoc_ema=true"
        )
    earlier = [path for path in list_checkpoints(folder) if step_of(path) < info.step]
    stored = [(path, each) for path in (*earlier, checkpoint) for each in LENGTHS]
    profiles = [Profile(exponent_of(each), step_of(path)) for path, each in stored]
    weights = dict(zip(stored, coefficients(profiles, wanted).tolist(), strict=True))
    average: dict[str, Tensor] = {}
    for path in (*earlier, checkpoint):
        verify(path, (AVERAGES_FILE,))
        for each, part in read_averages(path, model).items():
            for name, value in part.items():
                share = weights[path, each] * value.double()
                average[name] = average[name] + share if name in average else share
    last = plainly(read_tensors(checkpoint / raw))
    found = {name: average.get(name, value).to(value.dtype) for name, value in last.items()}
    load_exactly(model, found, str(checkpoint))
    return info
