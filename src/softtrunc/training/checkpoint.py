"""Checkpoints: written whole or not at all, read whole or not at all.

A checkpoint is a folder `step-00010000` with `model.safetensors`, `ema.safetensors` (the model
with averaged parameters), `optimizer.safetensors`, `averages.safetensors` where averages are kept
of which others are made, and `state.json`, which names the step and the SHA-256 of each file. It
is written under another name and renamed when complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from softtrunc.feedback.files import whole_folder
from softtrunc.feedback.json import read_json
from softtrunc.pretrained import (
    check_finite,
    check_shapes,
    fitting_state,
    load_exactly,
    plain_names,
    plain_state,
    read_shapes,
)
from softtrunc.training.sharding import is_sharded, joined, laid_out, local, spread, whole
from softtrunc.training.state import TrainState

# Whose files and errors these are.
from softtrunc.training.tensor_files import AVERAGES_FILE as AVERAGES_FILE
from softtrunc.training.tensor_files import CheckpointError as CheckpointError
from softtrunc.training.tensor_files import (
    as_checkpoint_error,
    plainly,
    read_averages,
    read_tensors,
)

Weights = Literal["ema", "raw"]
"""Averaged weights, or the last ones."""
WEIGHTS_FILES: dict[Weights, str] = {"ema": "ema.safetensors", "raw": "model.safetensors"}
"""Where a checkpoint has averaged and raw weights."""

_NAME = re.compile(r"step-(\d{8,})")
_FORMAT = 1
_OPTIMIZER_FILE = "optimizer.safetensors"
# Of Adam: means of squares, of which it takes the root, and the number of updates.
_NOT_NEGATIVE = ("exp_avg_sq", "step")
_FILES = (*WEIGHTS_FILES.values(), _OPTIMIZER_FILE)


class CheckpointInfo(NamedTuple):
    """What `state.json` says: finished steps, average updates, training seconds, file hashes.

    `moments` counts the optimiser's tensors, 0 in a run that was imported; None: not recorded.
    """

    step: int
    ema_updates: int
    seconds: float
    files: dict[str, str]
    moments: int | None = None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_of(path: Path) -> int:
    """The finished steps that a checkpoint's name tells."""
    return int(path.name.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of a step in `folder`; None: the newest one.

    Raises:
        CheckpointError: if there is none, naming the steps that there are.
    """
    found = {step_of(path): path for path in list_checkpoints(folder)}
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint here: train first, or name another run")
    wanted = max(found) if step is None else step
    if wanted not in found:
        raise CheckpointError(
            f"{folder}: no checkpoint of step {step}: write one of {', '.join(map(str, found))}"
        )
    return found[wanted]


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    if folder.is_dir():
        for path in folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def _plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names under which a checkpoint has them."""
    plain = plain_names(model.state_dict())
    return {plain[name]: parameter for name, parameter in model.named_parameters()}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """Adam's moments under the names of their parameters."""
    names = {id(p): name for name, p in _plain_parameters(state.model).items()}
    return {
        f"{names[id(parameter)]}:{key}": whole(value)
        for parameter, slots in state.optimizer.state.items()
        for key, value in slots.items()
    }


def _load_optimizer_tensors(state: TrainState, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Give each trained parameter the moments that it had: none in a run that was imported.

    Raises:
        CheckpointError: if a parameter lacks some of them, or they are unknown, of another shape,
            not finite, or negative where none of Adam's is; nothing has changed then.
    """
    every = _plain_parameters(state.model)
    parameters = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
    found: dict[str, dict[str, Tensor]] = {}
    for entry, value in tensors.items():
        name, _, key = entry.rpartition(":")
        shape = None if name not in parameters else parameters[name].shape
        fits = shape is not None and value.shape == (torch.Size() if key == "step" else shape)
        if not fits or not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{where}: {entry} belongs to no parameter, has another shape or is not finite: "
                "delete this checkpoint and use an earlier one"
            )
        if key in _NOT_NEGATIVE and bool((value < 0).any()):
            raise CheckpointError(
                f"{where}: {entry} holds negative values: delete this checkpoint and use an "
                "earlier one"
            )
        found.setdefault(name, {})[key] = (
            value if key == "step" else laid_out(value, parameters[name])
        )
    # A parameter that never had a gradient has no moments: how many tensors there are is recorded.
    if len({frozenset(slots) for slots in found.values()}) > 1:
        raise CheckpointError(
            f"{where}: the optimiser's moments of some parameters are missing: delete this "
            "checkpoint and use an earlier one"
        )
    held = (p for group in state.optimizer.param_groups for p in group["params"])
    number = {id(parameter): i for i, parameter in enumerate(held)}
    slots = {number[id(parameters[name])]: each for name, each in found.items()}
    # Where a step counter has to be, on the host or beside its parameter, the optimiser knows.
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": slots})


def save_checkpoint(
    folder: Path,
    state: TrainState,
    *,
    seconds: float = 0.0,
    keep: int | None = None,
    write: bool = True,
) -> Path:
    """Write `state` as `folder/step-<step>`; call it on one process.

    The files hold whole tensors. Where the network is spread over processes all must call it, and
    one of them with `write`.

    Args:
        folder: the run's `checkpoints` folder, made if missing.
        state: what to save.
        seconds: training time so far, to go on from after a resume.
        keep: delete all but this many of the newest afterwards; None keeps all.
        write: whether this is the process that writes.

    Returns:
        The folder of the checkpoint.
    """
    final = folder / f"step-{state.step:08d}"
    contents = _contents(state)
    if not write:
        return final
    if final.exists():  # a step's state is a function of the run: it is already there
        return final
    with whole_folder(final) as partial:
        for name, tensors in contents.items():
            _write(tensors, partial / name)
        _write_info(partial, state, seconds, contents)
    if keep is not None:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return final


def _write(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors in the usual layout.

    What lies otherwise, channels last say, is copied on the host: a device may have no room.
    """
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file)


def _contents(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Whole tensors by file."""
    model = state.model.state_dict()
    plain = plain_names(model)
    average = {plain[name]: joined(part, model[name]) for name, part in state.ema.shadow.items()}
    if is_sharded(state.model):
        raw = {plain[name]: whole(value) for name, value in model.items()}
    else:
        raw = plain_state(state.model)
    contents = {
        WEIGHTS_FILES["raw"]: raw,
        WEIGHTS_FILES["ema"]: {**raw, **average},
        _OPTIMIZER_FILE: _optimizer_tensors(state),
    }
    if state.posthoc is not None:
        contents[AVERAGES_FILE] = {
            f"{length}:{plain[name]}": joined(part, model[name])
            for length, shadow in state.posthoc.shadows.items()
            for name, part in shadow.items()
        }
    return contents


def _write_info(
    folder: Path, state: TrainState, seconds: float, contents: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write `state.json`, which vouches for the files beside it."""
    info: dict[str, object] = {
        "format": _FORMAT,
        "step": state.step,
        "ema_updates": state.ema.updates,
        "seconds": seconds,
        "moments": len(contents[_OPTIMIZER_FILE]),
        "files": {name: _sha256(folder / name) for name in contents},
    }
    info["sha256"] = _state_digest(info)
    (folder / "state.json").write_text(json.dumps(info, indent=1) + "\n")


def read_checkpoint_info(path: Path) -> CheckpointInfo:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: if `state.json` is missing or not what this version writes.
    """
    try:
        content = read_json(path / "state.json")
        version = content["format"]
        digest = content.pop("sha256") if version == _FORMAT else None
        info = CheckpointInfo(
            content["step"],
            content["ema_updates"],
            content["seconds"],
            content["files"],
            content.get("moments"),
        )
        consistent = (
            info.step == step_of(path) and info.ema_updates >= 0 and 0.0 <= info.seconds < math.inf
        ) and set(info.files) - {AVERAGES_FILE} == set(_FILES)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged_state(path) from error
    if version != _FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {version}, this version reads {_FORMAT}")
    if digest != _state_digest(content) or not consistent:
        raise _damaged_state(path)
    return info


def _damaged_state(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: state.json is missing, cut short or edited: delete this checkpoint and use an "
        "earlier one"
    )


def _state_digest(content: Mapping[str, object]) -> str:
    """SHA-256 of what `state.json` says, so that an edited step is noticed."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify(path: Path, names: tuple[str, ...] | None = None) -> CheckpointInfo:
    """Compare the files of a checkpoint (all, or those named) with their recorded SHA-256.

    Raises:
        CheckpointError: naming the first file that is missing, cut short or edited.
    """
    info = read_checkpoint_info(path)
    for name in names or tuple(info.files):
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing: delete this checkpoint and use an earlier one")
        if _sha256(file) != info.files.get(name):
            raise CheckpointError(
                f"{file}: cut short or edited (its SHA-256 is not the recorded one): delete this "
                "checkpoint and use an earlier one"
            )
    return info


def check_weights(path: Path, sketch: nn.Module, weights: Weights = "ema") -> None:
    """Compare the shapes in a checkpoint with a model, which may be on "meta": built of nothing.

    What is missing or damaged is told when it is read.

    Raises:
        CheckpointError: if they do not fit.
    """
    file = path / WEIGHTS_FILES[weights]
    with suppress(SafetensorError, OSError), as_checkpoint_error():
        check_shapes(sketch, read_shapes(file), str(file))


def load_weights(path: Path, model: nn.Module, weights: Weights = "ema") -> CheckpointInfo:
    """Load averaged or raw weights into `model`, after checking the file.

    Raises:
        CheckpointError: if the file is damaged or does not fit; the model is then untouched.
    """
    name = WEIGHTS_FILES[weights]
    info = verify(path, (name,))
    with as_checkpoint_error():
        load_exactly(model, read_tensors(path / name), str(path / name))
    return info


def load_checkpoint(path: Path, state: TrainState) -> CheckpointInfo:
    """Load everything into `state`, after checking every file.

    Raises:
        CheckpointError: if a file is damaged or does not fit.
    """
    info = verify(path)
    averaged = plainly(read_tensors(path / WEIGHTS_FILES["ema"]))
    moments = plainly(read_tensors(path / _OPTIMIZER_FILE))
    if info.moments is not None and info.moments != len(moments):
        raise CheckpointError(
            f"{path / _OPTIMIZER_FILE}: holds {len(moments)} tensors, not the {info.moments} that "
            "were saved: delete this checkpoint and use an earlier one"
        )
    with as_checkpoint_error():
        check_finite(averaged, str(path / WEIGHTS_FILES["ema"]))
        check_finite(moments, str(path / _OPTIMIZER_FILE))
        raw = path / WEIGHTS_FILES["raw"]
        given = fitting_state(state.model, read_tensors(raw), str(raw))
    into = state.model.state_dict()
    plain = plain_names(into)
    state.model.load_state_dict({name: spread(t, into[name]) for name, t in given.items()})
    average = {n: local(spread(averaged[plain[n]], into[n])) for n in state.ema.shadow}
    state.ema.load(average, updates=info.ema_updates)
    if state.posthoc is not None:
        _load_averages(state, path, info)
    _load_optimizer_tensors(state, moments, path / _OPTIMIZER_FILE)
    state.step = info.step
    return info


def _load_averages(state: TrainState, path: Path, info: CheckpointInfo) -> None:
    assert state.posthoc is not None  # nobody asks otherwise
    if AVERAGES_FILE not in info.files:
        raise CheckpointError(f"{path}: holds no averages for training.posthoc_ema")
    into = state.model.state_dict()
    plain = plain_names(into)
    saved = read_averages(path, state.model)
    for length, shadow in state.posthoc.shadows.items():
        for name, part in shadow.items():
            part.copy_(local(spread(saved[length][plain[name]], into[name])))
