"""Pipelines of diffusers in: a `UNet2DModel` and a schedule of betas become a score model.

Their schedulers call a network at whole steps i = 0 ... N - 1 of the state
`sqrt(a_i) x_0 + sqrt(1 - a_i) z`; that is a `TabulatedVPSDE`, whose label "timestep" is i.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from softtrunc.feedback.json import read_json
from softtrunc.hub import Download, fetch
from softtrunc.interop.torch_file import read_torch_file
from softtrunc.networks import UNet2DConfig
from softtrunc.pretrained import load_exactly
from softtrunc.score import ScoreModel
from softtrunc.sde import BetaSchedule, Prediction, TabulatedVPSDE

INDEX_FILE = "model_index.json"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "v_prediction": "velocity",
    "sample": "sample",
}
# What attention layers were called before diffusers 0.15; files of then are still about.
_OLDER_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


class Schedule(NamedTuple):
    """The noise schedule of a pipeline, in the words of a recipe.

    - `words`: `schedule`, `steps`, `beta_start` and `beta_end`, or `betas`; and `single`.
    - `sde`: the same made continuous.
    - `prediction`: what the network's output means.
    """

    words: dict[str, Any]
    sde: TabulatedVPSDE
    prediction: Prediction


class DiffusersPipeline(NamedTuple):
    """What a pipeline is made of: the network's configuration, its weights and the schedule."""

    network: UNet2DConfig
    weights: dict[str, Tensor]
    schedule: Schedule


def from_diffusers(pipeline: str | Path | object, **download: Unpack[Download]) -> ScoreModel:
    """A pipeline of the DDPM family as a model, in evaluation mode.

    Its predicted noise at the time `(i + 1) / N` is the pipeline's at step i, to rounding; between
    the steps the network is asked between whole numbers. Below the first step it was never trained:
    `model.sde.t_end` says where that is. A network of classes wants them as
    `model.given(class_labels=...)`.

    Args:
        pipeline: a folder that diffusers wrote, the id of a repository of the Hugging Face Hub,
            `owner/name`, or a pipeline that is loaded, whose network is then shared.
        download: see `ScoreModel.from_pretrained`.

    Raises:
        FileNotFoundError: there is no such folder or repository, or it cannot be reached.
        ModuleNotFoundError: diffusers is not installed.
        ValueError: it is no pipeline of a `UNet2DModel` with a schedule of betas, or its weights do
            not fit.
    """
    if isinstance(pipeline, str | Path):
        found = read_pipeline(pipeline, **download)
        network = found.network.build()
        load_exactly(network, found.weights, str(pipeline))
        schedule = found.schedule
    else:
        network, schedule = _loaded(pipeline)
    return ScoreModel(
        network,
        schedule.sde,
        conditioning="timestep",
        prediction=schedule.prediction,
        value_range=(-1.0, 1.0),
    ).eval()


def _loaded(pipeline: object) -> tuple[nn.Module, Schedule]:
    """Network and schedule of a pipeline in memory."""
    where = type(pipeline).__name__
    network, scheduler = (getattr(pipeline, name, None) for name in ("unet", "scheduler"))
    if network is None or scheduler is None:
        raise ValueError(f"{where}: has no unet and scheduler: give a pipeline of the DDPM family")
    config = {"_class_name": type(network).__name__, **dict(network.config)}
    _network_config(config, where)
    return network, read_schedule(
        {"_class_name": type(scheduler).__name__, **dict(scheduler.config)}, where
    )


def read_pipeline(source: str | Path, **download: Unpack[Download]) -> DiffusersPipeline:
    """The parts of a saved pipeline; nothing is built, and no code in it is run.

    Raises:
        FileNotFoundError: as `from_diffusers`.
        ModuleNotFoundError: as `from_diffusers`.
        ValueError: as `from_diffusers`; that the weights fit is not looked at yet.
    """
    where = str(source)

    def find(*names: str) -> Path:
        """The first of some files that is there."""
        for name in names[:-1]:
            try:
                return fetch(where, name, download)
            except FileNotFoundError:
                continue
        return fetch(where, names[-1], download)

    index = _read_json(find(INDEX_FILE))
    _check_index(index, where)
    # Files of the first versions lie beside the index.
    config = _network_config(_read_json(find("unet/config.json", "config.json")), where)
    schedule = read_schedule(
        _read_json(find("scheduler/scheduler_config.json", "scheduler_config.json")), where
    )
    weights = find(*(f"unet/{name}" for name in _WEIGHTS), *_WEIGHTS)
    return DiffusersPipeline(config, _read_weights(weights), schedule)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not the JSON of a pipeline of diffusers")
    return content


def _check_index(index: Mapping[str, Any], where: str) -> None:
    """Refuse what is more or other than a U-Net in pixels and its scheduler."""
    listed = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list)}
    parts = {name: entry[-1] for name, entry in listed.items() if entry and entry[-1]}
    if parts.get("unet") == "DiffusersUNet":
        raise ValueError(
            f"{where}: a model of softtrunc in the form of a pipeline: read it with "
            "ScoreModel.from_pretrained"
        )
    if others := parts.keys() - {"unet", "scheduler"}:
        raise ValueError(
            f"{where}: {index.get('_class_name', 'pipeline')} has {', '.join(sorted(others))} "
            "beside its unet and scheduler: only unconditional models of pixels can be read"
        )


def _network_config(values: Mapping[str, Any], where: str) -> UNet2DConfig:
    kind = values.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", "UNetUnconditionalModel"):  # its name in the first versions
        raise ValueError(f"{where}: the network is a {kind}: only UNet2DModel can be read")
    if values.get("time_embedding_type", "positional") != "positional":
        raise ValueError(
            f"{where}: the network's time_embedding_type is {values['time_embedding_type']!r}: "
            "only 'positional' ones, which are told a step, can be read"
        )
    try:
        return UNet2DConfig({k: v for k, v in values.items() if not k.startswith("_")})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_schedule(config: Mapping[str, Any], where: str) -> Schedule:
    """The schedule that the configuration of a scheduler describes.

    Raises:
        ValueError: if it is no schedule of betas that ends with some signal left, or the output is
            of a kind that is not known.
    """
    kind = config.get("_class_name", "scheduler")
    betas = config.get("trained_betas")
    name = config.get("beta_schedule")
    if betas is None and name not in get_args(BetaSchedule):
        told = f"beta_schedule = {name!r}" if name else "no beta_schedule"
        raise ValueError(
            f"{where}: {kind} has {told}: only schedules of betas can be read "
            f"({', '.join(get_args(BetaSchedule))}, or trained_betas)"
        )
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"{where}: rescale_betas_zero_snr = true leaves no signal at the last step, where the "
            "log-SNR has then no value: not supported"
        )
    output = str(config.get("prediction_type") or "epsilon")
    if output not in _PREDICTIONS:
        raise ValueError(
            f"{where}: prediction_type = {output!r} is unknown: only {', '.join(_PREDICTIONS)}"
        )
    if str(config.get("variance_type") or "").startswith("learned"):
        raise ValueError(
            f"{where}: variance_type = {config['variance_type']!r}: a learned variance doubles the "
            "network's output: only networks that predict one image can be read"
        )
    try:
        words, sde = _schedule_words(betas, name, config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {kind}: {error}") from error
    return Schedule(words, sde, _PREDICTIONS[output])


def _schedule_words(
    betas: Any, name: Any, config: Mapping[str, Any]
) -> tuple[dict[str, Any], TabulatedVPSDE]:
    # What their arithmetic makes of the betas is what they mean by a step.
    if betas is not None:
        given = [float(beta) for beta in betas]
        return {"betas": given, "single": True}, TabulatedVPSDE.from_betas(given, torch.float32)
    words = {
        "schedule": name,
        "steps": int(config.get("num_train_timesteps", 1000)),
        "beta_start": float(config.get("beta_start", 1e-4)),
        "beta_end": float(config.get("beta_end", 0.02)),
    }
    sde = TabulatedVPSDE.from_schedule(**words, dtype=torch.float32)
    return {**words, "single": True}, sde


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, under the names that diffusers gives them now."""
    if path.suffix == ".safetensors":
        try:
            content: object = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    else:
        content = read_torch_file(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds no state of a network")
    strangers = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if strangers:
        raise ValueError(f"{path}: {', '.join(strangers[:3])}: no tensor")
    found: dict[str, Tensor] = {}
    for key, tensor in content.items():
        name = str(key)
        if ".attentions." in name:
            for older, newer in _OLDER_NAMES.items():
                name = name.replace(older, newer)
        found[name] = tensor
    return found
