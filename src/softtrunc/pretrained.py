"""A score model as files: `config.json` and `model.safetensors`, in a folder or on the Hub.

`ScoreModel.save_pretrained`, `from_pretrained` and `push_to_hub` are the way in; they have the
names and arguments of huggingface_hub's mixin. They are functions here, and the mixin is no base
class, because it takes longer to import than the whole rest of the package.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from softtrunc.feedback.files import whole_file, write_text
from softtrunc.networks import ScoreUNet, ScoreUNetConfig
from softtrunc.sde import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "PretrainedParts",
    "default_card",
    "load_exactly",
    "read_pretrained",
    "upload_folder",
    "write_pretrained",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

_FORMAT = 1
_SDES: dict[str, type[SDE]] = {
    cls.__name__: cls for cls in (VPSDE, SubVPSDE, VESDE, ReciprocalVESDE)
}
_KEYS = ("format", "network", "sde", "conditioning", "prediction", "value_range")


class PretrainedParts(NamedTuple):
    """What a `ScoreModel` is made of; the words are those of its constructor."""

    network: nn.Module
    sde: SDE
    conditioning: str
    prediction: str
    value_range: tuple[float, float]


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a state in which every tensor of the module stands, in its shape, and no other.

    Raises:
        ValueError: naming every tensor that is missing, unknown or wrongly shaped; the module is
            then untouched.
    """
    own = module.state_dict()
    problems = [f"missing {n}" for n in own if n not in tensors]
    problems += [f"unknown {n}" for n in tensors if n not in own]
    problems += [
        f"{n} has shape {tuple(tensors[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in tensors and own[n].shape != tensors[n].shape
    ]
    if problems:
        raise ValueError(f"{where}: does not fit the network: {'; '.join(problems)}")
    module.load_state_dict(dict(tensors))


def write_pretrained(parts: PretrainedParts, folder: Path, card: str) -> None:
    """Write configuration, weights and card, each beside its place and renamed.

    Raises:
        ValueError: if the SDE is not one of softtrunc's.
    """
    kind = type(parts.sde).__name__
    if _SDES.get(kind) is not type(parts.sde):
        raise ValueError(f"{kind} cannot be saved: only {', '.join(_SDES)} have a form on disk")
    network: dict[str, Any] = {"type": type(parts.network).__name__}
    if isinstance(parts.network, ScoreUNet):
        network |= parts.network.config.to_dict()
    config = {
        "library": "softtrunc",
        "format": _FORMAT,
        "network": network,
        "sde": {"type": kind, **dataclasses.asdict(parts.sde)},
        "conditioning": parts.conditioning,
        "prediction": parts.prediction,
        "value_range": list(parts.value_range),
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().contiguous() for name, value in parts.network.state_dict().items()
    }
    for name, text in ((CARD_FILE, card), (CONFIG_FILE, json.dumps(config, indent=1) + "\n")):
        write_text(folder / name, text)
    with whole_file(folder / WEIGHTS_FILE) as partial:
        save_file(state, partial, metadata={"format": "pt"})
        # safetensors lets nobody else read its files, whatever the umask says.
        shutil.copymode(folder / CONFIG_FILE, partial)


def read_pretrained(
    source: str | Path,
    *,
    network: nn.Module | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> PretrainedParts:
    """Read a model from a folder, or from a repository of the Hugging Face Hub.

    Args:
        source: a folder that exists, or the id of a repository, `owner/name`.
        network: where to load weights into, for networks that are not a `ScoreUNet`.
        revision, token, cache_dir, force_download, local_files_only: see
            `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: a file is not there, or cannot be had.
        ValueError: the configuration is not one of softtrunc's, or the weights do not fit; every
            tensor in question is named.
    """
    config_file, weights_file = (
        _fetch(
            str(source),
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        for name in (CONFIG_FILE, WEIGHTS_FILE)
    )
    config = _read_config(config_file)
    sde = _build_sde(config["sde"], config_file)
    if network is None:
        network = _build_network(config["network"], config_file)
    try:
        tensors = load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file}: not a readable safetensors file ({error})") from error
    load_exactly(network, tensors, str(weights_file))
    low, high = config["value_range"]
    return PretrainedParts(
        network, sde, config["conditioning"], config["prediction"], (float(low), float(high))
    )


def _fetch(source: str, name: str, *, revision: str | None, **download: Any) -> Path:
    """The file in a folder, or downloaded (or cached) from the Hub."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
                raise FileNotFoundError(
                    f"{folder}: is a run folder: write a model first, with "
                    f"`softtrunc export {folder} --out DIR`"
                )
            raise FileNotFoundError(f"{folder / name}: no such file: is {folder} a saved model?")
        return folder / name
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{source}: no such folder, and no repository of the Hub either (owner/name)"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name, revision=revision, **download))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{source}: {name} is neither in a folder of that name nor to be had from the Hub: "
            f"{reason}"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library") != "softtrunc":
        raise ValueError(f"{path}: not the configuration of a softtrunc model")
    missing = [key for key in _KEYS if key not in config]
    unknown = [key for key in config if key not in (*_KEYS, "library")]
    if missing or unknown:
        problems = [f"missing {key}" for key in missing] + [f"unknown {key}" for key in unknown]
        raise ValueError(f"{path}: {'; '.join(problems)}")
    if config["format"] != _FORMAT:
        raise ValueError(f"{path}: format {config['format']}, this version reads {_FORMAT}")
    for key in ("network", "sde"):
        if not isinstance(config[key], dict) or "type" not in config[key]:
            raise ValueError(f"{path}: {key} must be a mapping with a type")
    pair = config["value_range"]
    numbers = isinstance(pair, list) and all(isinstance(v, int | float) for v in pair)
    if not numbers or len(pair) != 2:
        raise ValueError(f"{path}: value_range = {pair!r}: write [low, high]")
    return config


def _build_sde(values: Mapping[str, Any], path: Path) -> SDE:
    kind = values["type"]
    if kind not in _SDES:
        raise ValueError(f"{path}: sde.type = {kind!r}: this version knows {', '.join(_SDES)}")
    try:
        return _SDES[kind](**{key: value for key, value in values.items() if key != "type"})
    except TypeError as error:
        raise ValueError(f"{path}: sde: {error}") from error


def _build_network(values: Mapping[str, Any], path: Path) -> nn.Module:
    if values["type"] != ScoreUNet.__name__:
        raise ValueError(
            f"{path}: the network is a {values['type']}, which softtrunc cannot build: give it as "
            "network=..."
        )
    try:
        return ScoreUNet(
            ScoreUNetConfig.from_dict({k: v for k, v in values.items() if k != "type"})
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a softtrunc model",
) -> str:
    """Put the files of a folder into a model repository of the Hub, made if it is not there.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    commit = api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        repo_type="model",
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        ignore_patterns=[".*"],
    )
    return str(commit.commit_url)


def push_parts(parts: PretrainedParts, repo_id: str, card: str, **options: Any) -> str:
    """`write_pretrained` into a temporary folder and `upload_folder` from there."""
    with TemporaryDirectory() as name:
        write_pretrained(parts, Path(name), card)
        return upload_folder(Path(name), repo_id, **options)


def default_card(parts: PretrainedParts) -> str:
    """A card for a model of which nothing is known but itself."""
    count = sum(parameter.numel() for parameter in parts.network.parameters())
    low, high = parts.value_range
    return f"""---
library_name: softtrunc
tags:
- score-based-diffusion
- soft-truncation
---

# A score model

`{type(parts.network).__name__}` with {count:,} parameters over `{parts.sde!r}`; data in \
[{low:g}, {high:g}].

```python
from softtrunc import ScoreModel

model = ScoreModel.from_pretrained("this folder or repository")
```
"""
