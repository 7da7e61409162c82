"""A score model as files: `config.json` and `model.safetensors`, in a folder or on the Hub.

`ScoreModel.save_pretrained`, `from_pretrained` and `push_to_hub` are the way in; they have the
names and arguments of huggingface_hub's mixin. They are functions here, and the mixin is no base
class, because it takes longer to import than the whole rest of the package.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from softtrunc.feedback.errors import all_of
from softtrunc.feedback.files import whole_file, write_text
from softtrunc.feedback.json import read_json
from softtrunc.hub import CONFIG_FILE, Download, find
from softtrunc.networks import build_network, config_from_dict, network_to_dict

# What a state is called on disk is asked of this module, by whoever writes one.
from softtrunc.networks.plain_state import plain_names as plain_names
from softtrunc.networks.plain_state import plain_state as plain_state
from softtrunc.networks.plain_state import saved_names, state_for, unwrapped
from softtrunc.sde import SDE, SDES, Conditioning, Prediction

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

_FORMAT = 1
_KEYS = ("format", "network", "sde", "conditioning", "prediction", "value_range")
_SIGMA_DATA = "sigma_data"  # of the prediction "edm" alone
_TRAIN_TIMESTEPS = "train_timesteps"  # of adapters for other libraries, which ask for steps
_OPTIONAL = (_SIGMA_DATA, _TRAIN_TIMESTEPS)


class PretrainedParts(NamedTuple):
    """What a `ScoreModel` is made of; the words are those of its constructor."""

    network: nn.Module
    sde: SDE
    conditioning: Conditioning
    prediction: Prediction
    value_range: tuple[float, float]
    sigma_data: float = 0.5


def fitting_state(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """A saved state under a module's own names: every tensor stands in it, in its shape.

    What wraps the module, or wrapped the one that was saved, makes no difference; of tensors that
    the module ties, one stands for all.

    Raises:
        ValueError: if a tensor is missing, unknown, wrongly shaped, of another kind of numbers or
            not finite: the first are named, and all in its notes.
    """
    check_shapes(module, {name: tuple(t.shape) for name, t in tensors.items()}, where)
    check_finite(tensors, where)
    found, own = state_for(module, tensors, where), module.state_dict()
    wrong = [
        f"{name} has type {tensor.dtype} instead of {own[name].dtype}"
        for name, tensor in found.items()
        if _kind(tensor) != _kind(own[name])
    ]
    if wrong:
        raise all_of(where, wrong)
    return found


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """What must be the same: that a number is floating-point or complex; its precision may not."""
    return tensor.is_floating_point(), tensor.is_complex()


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load such a state as `fitting_state` finds, or leave the module untouched.

    Raises:
        ValueError: as `fitting_state`.
    """
    module.load_state_dict(fitting_state(module, tensors, where))


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises:
        ValueError: naming them.
    """
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    if wrong := [f"{n} holds {c:,} values that are not finite" for n, c in counts.items() if c]:
        raise all_of(where, wrong)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, of which only the header is read.

    Raises:
        SafetensorError: if it is none.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def check_shapes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare shapes with those of a module, which need take no memory: it may be on "meta".

    Names are compared, and told, without the parts that wrappers add.

    Raises:
        ValueError: if a tensor is missing, unknown or wrongly shaped.
    """
    state, saved = module.state_dict(), saved_names(module)
    own = {plain: tuple(state[name].shape) for name, plain in plain_names(state).items()}
    found = {plain: shapes[name] for name, plain in plain_names(shapes).items()}
    there = {saved[name] for name in found if name in saved}
    problems = [f"missing {n}" for n in own if saved[n] not in there and saved[n] == n]
    problems += [f"unknown {n}" for n in found if n not in own]
    problems += [
        f"{n} has shape {found[n]} instead of {own[n]}"
        for n in own
        if n in found and own[n] != found[n]
    ]
    if problems:
        raise all_of(f"{where}: does not fit the network", problems)


def write_pretrained(parts: PretrainedParts, folder: Path, card: str | None) -> None:
    """Write configuration, weights and card, each beside its place and renamed.

    Raises:
        ValueError: if the SDE has no form on disk.
    """
    itself = unwrapped(parts.network)
    config: dict[str, Any] = {
        "library": "softtrunc",
        "format": _FORMAT,
        "network": network_to_dict(itself),
        "sde": parts.sde.to_dict(),
        "conditioning": parts.conditioning,
        "prediction": parts.prediction,
        "value_range": list(parts.value_range),
    }
    if parts.prediction == "edm":
        config[_SIGMA_DATA] = parts.sigma_data
    try:
        text = json.dumps(config, indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"{type(parts.sde).__name__} cannot be saved: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in plain_state(itself).items()}
    write_text(folder / CARD_FILE, card or _default_card(parts))
    write_text(folder / CONFIG_FILE, text)
    with whole_file(folder / WEIGHTS_FILE) as partial:
        save_file(state, partial, metadata={"format": "pt"})
        # safetensors lets nobody else read its files, whatever the umask says.
        shutil.copymode(folder / CONFIG_FILE, partial)


def read_pretrained(
    source: str | Path,
    *,
    network: nn.Module | None = None,
    sde: type[SDE] | None = None,
    **download: Unpack[Download],
) -> PretrainedParts:
    """Read a model from a folder or the Hub; `ScoreModel.from_pretrained` says what and how."""
    if unknown := download.keys() - Download.__annotations__:
        known = ", ".join(Download.__annotations__)
        raise TypeError(f"from_pretrained: unknown {', '.join(unknown)} (known: {known})")
    config_file = find(str(source), CONFIG_FILE, download)
    weights_file = find(str(source), WEIGHTS_FILE, download)
    config = _read_config(config_file)
    diffusion = _build_sde(config["sde"], sde, config_file)
    try:
        if network is None:
            with torch.device("meta"):  # before it takes the memory that the configuration asks for
                sketch = _build_network(config["network"], config_file)
            check_shapes(sketch, read_shapes(weights_file), str(weights_file))
            network = _build_network(config["network"], config_file)
        tensors = load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file}: not a readable safetensors file ({error})") from error
    load_exactly(network, tensors, str(weights_file))
    low, high = map(float, config["value_range"])
    return PretrainedParts(
        network,
        diffusion,
        config["conditioning"],
        config["prediction"],
        (low, high),
        float(config.get(_SIGMA_DATA, 0.5)),
    )


def write_train_timesteps(folder: Path, steps: int) -> None:
    """Say in the configuration of a saved model how many steps an adapter tells of."""
    path = folder / CONFIG_FILE
    config = {**read_json(path), _TRAIN_TIMESTEPS: steps}
    write_text(path, json.dumps(config, indent=1) + "\n")


def read_train_timesteps(source: str | Path, default: int, **download: Unpack[Download]) -> int:
    """What `write_train_timesteps` said, else the default.

    Raises:
        ValueError: if it is no number of steps.
    """
    path = find(str(source), CONFIG_FILE, download)
    steps = _read_config(path).get(_TRAIN_TIMESTEPS, default)
    if not isinstance(steps, int):
        raise ValueError(f"{path}: {_TRAIN_TIMESTEPS} = {steps!r}: write a whole number")
    return steps


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library") != "softtrunc":
        theirs = isinstance(config, dict) and "_class_name" in config
        hint = " but of diffusers: read its pipeline with softtrunc.interop.from_diffusers"
        raise ValueError(
            f"{path}: not the configuration of a softtrunc model{hint if theirs else ''}"
        )
    problems = [f"missing {key}" for key in _KEYS if key not in config]
    problems += [f"unknown {key}" for key in config if key not in (*_KEYS, *_OPTIONAL, "library")]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    if config["format"] != _FORMAT:
        raise ValueError(f"{path}: format {config['format']}, this version reads {_FORMAT}")
    for key in ("network", "sde"):
        if not isinstance(config[key], dict) or not isinstance(config[key].get("type"), str):
            raise ValueError(f"{path}: {key} must be a mapping with a type")
    for key in ("conditioning", "prediction"):
        if not isinstance(config[key], str):
            raise ValueError(f"{path}: {key} = {config[key]!r}: write a word")
    pair = config["value_range"]
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        raise ValueError(f"{path}: value_range = {pair!r}: write [low, high]")
    if not _is_number(config.get(_SIGMA_DATA, 0.5)):
        raise ValueError(f"{path}: sigma_data = {config[_SIGMA_DATA]!r}: write a number")
    return config


def _is_number(value: object) -> bool:
    """Whether a float can hold it; NaN and infinity are none."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _build_sde(values: Mapping[str, Any], given: type[SDE] | None, path: Path) -> SDE:
    """The SDE of `SDE.to_dict`, never of a class that is imported because a file names it."""
    kind = str(values["type"])
    name = kind.rpartition(":")[2]
    own = {cls.__name__: cls for cls in SDES.values()}
    # Of a class that is given the module may be another one by now.
    cls = own.get(kind) if given is None else given if given.__qualname__ == name else None
    if cls is None:
        known = f"this version knows {', '.join(own)}" if given is None else f"not {given.__name__}"
        raise ValueError(f"{path}: sde.type = {kind!r}: {known}; give the class as sde={name}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "type"}
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"{path}: sde: {error}") from error


def _build_network(values: Mapping[str, Any], path: Path) -> nn.Module:
    try:
        return build_network(config_from_dict(values))
    except KeyError as error:
        raise ValueError(
            f"{path}: the network is a {values['type']}, which softtrunc cannot build: give it as "
            "network=..."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _default_card(parts: PretrainedParts) -> str:
    """A card for a model of which nothing is known but itself."""
    count = sum(parameter.numel() for parameter in parts.network.parameters())
    kind = type(unwrapped(parts.network)).__name__
    low, high = parts.value_range
    return f"""---
library_name: softtrunc
tags:
- score-based-diffusion
- soft-truncation
---

# A score model

`{kind}` with {count:,} parameters over `{parts.sde!r}`; data in \
[{low:g}, {high:g}].

```python
from softtrunc import ScoreModel

model = ScoreModel.from_pretrained("this folder or repository")
```
"""
