"""The safetensors files of a checkpoint, read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from softtrunc.pretrained import check_finite, plain_names
from softtrunc.training.power_average import LENGTHS

AVERAGES_FILE = "averages.safetensors"
"""The averages of `training.posthoc_ema`, tensors named "LENGTH:PARAMETER"."""


class CheckpointError(ValueError):
    """A checkpoint is missing, cut short, edited, or does not fit."""


@contextmanager
def as_checkpoint_error() -> Iterator[None]:
    """What is wrong with a file is an error of its checkpoint."""
    try:
        yield
    except ValueError as error:
        told = CheckpointError(str(error))
        told.__notes__ = getattr(error, "__notes__", [])
        raise told from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def plainly(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By plain names, which checkpoints of wrapped models did not always have."""
    return {name: tensors[old] for old, name in plain_names(tensors).items()}


def read_averages(checkpoint: Path, model: nn.Module) -> dict[float, dict[str, Tensor]]:
    """The averages in a checkpoint or snapshot, by length: each of all trained parameters.

    Args:
        checkpoint: the folder.
        model: whose parameters they are of, under their plain names.

    Raises:
        CheckpointError: if one is missing, unknown, of another shape or type, or not finite.
    """
    file = checkpoint / AVERAGES_FILE
    found = read_tensors(file)
    plain = plain_names(model.state_dict())
    parts = {plain[name]: part for name, part in model.named_parameters() if part.requires_grad}
    wanted = {f"{length}:{name}": parts[name] for length in LENGTHS for name in parts}
    wrong = sorted(found.keys() ^ wanted.keys()) or [
        entry
        for entry, part in wanted.items()
        if found[entry].shape != part.shape or found[entry].dtype != part.dtype
    ]
    if wrong:
        raise CheckpointError(
            f"{file}: {wrong[0][:100]} is missing, of no parameter, or of another shape or type: "
            "delete this checkpoint and use an earlier one"
        )
    with as_checkpoint_error():
        check_finite(found, str(file))
    return {length: {name: found[f"{length}:{name}"] for name in parts} for length in LENGTHS}
