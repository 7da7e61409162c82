"""Checkpoints of the public score_sde_pytorch and Soft-Truncation code, as `ScoreModel`.

Such a file holds `model` (the state of the network), `ema` (a list of averaged parameters, those
that are trained, in the network's order), `optimizer` and `step`. Nothing is loaded unless all of
it fits.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.interop.conditioning import choose_conditioning, random_images
from softtrunc.interop.public_config import (
    ModelDescription,
    describe_public_config,
    read_public_config,
)
from softtrunc.interop.public_layout import public_layout
from softtrunc.networks import ScoreUNet
from softtrunc.score import Conditioning, ScoreModel
from softtrunc.sde import SDE

Weights = Literal["ema", "raw"]

# A buffer of the public network: the noise levels of its discrete samplers.
_SIGMAS = "sigmas"

# The sigmas come from logarithms in float64, the configuration from a human hand, and the least
# sigma of VE that a model sees, at its t_end, is a ten-thousandth above sigma_min.
_SIGMA_TOLERANCE = 1e-3

_PROBES = 32


def load_score_sde_checkpoint(
    path: str | Path,
    config: Mapping[str, Any] | str | Path | ModelDescription,
    *,
    weights: Weights = "ema",
    conditioning: Conditioning | Literal["auto"] | None = None,
    images: Float[Tensor, "b c h w"] | None = None,
    generator: torch.Generator | None = None,
) -> ScoreModel:
    """A public checkpoint as a model in evaluation mode, on the CPU.

    Args:
        path: the checkpoint.
        config: its configuration in the public layout, as a mapping or the path of a JSON file;
            the name or the YAML file of a recipe; or a description of the model.
        weights: the averaged ("ema") or the last ("raw") weights.
        conditioning: what the network is told of the noise; None takes what the configuration
            intends, "auto" what denoises `images` better. The public code did not always train
            what its configurations intend.
        images: for "auto", a batch in the model's data range; None draws random images with a
            natural spectrum.
        generator: source of randomness for "auto".

    Raises:
        FileNotFoundError: there is no such checkpoint or configuration.
        ValueError: the configuration is not supported, the file is no such checkpoint, or keys
            are missing, unknown or wrongly shaped: all of them are named.
    """
    if conditioning not in (None, "auto", *get_args(Conditioning)):
        allowed = ", ".join((*get_args(Conditioning), "auto"))
        raise ValueError(f"conditioning {conditioning!r} is unknown: write one of {allowed}")
    description = _describe(config)
    checkpoint = ScoreSDECheckpoint.read(path)
    network = ScoreUNet(description.network, generator=torch.Generator())
    checkpoint.fill(network, description.sde, weights)

    def model(label: Conditioning) -> ScoreModel:
        return ScoreModel(
            network,
            description.sde,
            conditioning=label,
            prediction=description.prediction,
            value_range=description.value_range,
        ).eval()

    if conditioning != "auto":
        return model(conditioning or description.conditioning)
    models = {label: model(label) for label in description.sde.conditionings}
    if images is None:
        shape = (_PROBES, description.network.channels, *description.network.size)
        images = random_images(shape, description.value_range, generator=generator)
    return models[choose_conditioning(models, images, generator=generator).conditioning]


def _describe(config: Mapping[str, Any] | str | Path | ModelDescription) -> ModelDescription:
    """The model that a configuration describes, in whichever form it is given."""
    if isinstance(config, ModelDescription):
        return config
    if isinstance(config, Mapping):
        return describe_public_config(config)
    path = Path(config)
    if path.suffix in (".yaml", ".yml") or (path.suffix != ".json" and not path.is_file()):
        from softtrunc.interop.recipe import describe_recipe  # recipes take a while to import

        return describe_recipe(str(config))
    return describe_public_config(read_public_config(config), where=f"configuration {config}")


@dataclass(frozen=True, eq=False)
class ScoreSDECheckpoint:
    """What a public checkpoint holds of the network.

    - `where`: the file, for messages.
    - `model`: the state of the network by key, without the prefix `module.`.
    - `ema`: the averaged parameters in the network's order; None if the file has none.
    - `step`: optimiser steps done.
    - `ema_updates`: updates of the average as the file counts them.
    """

    where: str
    model: dict[str, Any]
    ema: list[Any] | None
    step: int
    ema_updates: int

    @classmethod
    def read(cls, path: str | Path) -> ScoreSDECheckpoint:
        """Read a file, executing nothing that it may contain.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint of this kind.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint {path}: no such file")
        try:
            # Mapped, not read: two thirds of the file are the optimiser's.
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"checkpoint {path}: not a file of plain tensors that torch.load can read safely: "
                f"{reason}"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
            raise ValueError(
                f"checkpoint {path}: holds no 'model': give a file that the public code saved "
                "with 'model', 'ema', 'optimizer' and 'step'"
            )
        model: dict[str, Any] = {}
        for key, value in content["model"].items():
            plain = str(key)
            while plain.startswith("module."):  # one per wrapper for parallel training
                plain = plain.removeprefix("module.")
            if plain in model:
                raise ValueError(
                    f"checkpoint {path}: {plain} stands twice, with and without module."
                )
            model[plain] = value
        average = content.get("ema")
        average = average if isinstance(average, Mapping) else {}
        shadow = average.get("shadow_params")
        return cls(
            where=f"checkpoint {path}",
            model=model,
            ema=list(shadow) if isinstance(shadow, Sequence) else None,
            step=_count(content.get("step")),
            ema_updates=_count(average.get("num_updates")),
        )

    @torch.no_grad()
    def fill(self, network: ScoreUNet, sde: SDE, weights: Weights) -> None:
        """Write the weights into a network; it stays untouched unless all of them fit.

        The state of the network is checked whichever weights are asked for: what is not trained
        (the Fourier frequencies) comes from there. The SDE is for the file's own noise levels.

        Raises:
            ValueError: naming every key that is missing, unknown or wrongly shaped.
        """
        if weights not in get_args(Weights):
            raise ValueError(f"weights {weights!r}: write 'ema' or 'raw'")
        layout = public_layout(network)
        expected = {entry.key: entry.view for entry in layout}
        problems = [f"missing {key}" for key in expected if key not in self.model]
        problems += [f"unknown {key}" for key in self.model if key not in {*expected, _SIGMAS}]
        problems += [
            f"{key} {complaint}"
            for key, view in expected.items()
            if key in self.model and (complaint := _misfit(self.model[key], view))
        ]
        if _SIGMAS in self.model:
            problems += _check_sigmas(self.model[_SIGMAS], sde)
        values = self.model
        if weights == "ema":
            trained = [entry for entry in layout if entry.trained]
            if self.ema is None:
                problems.append("no averaged weights: 'ema' with 'shadow_params' is missing")
            else:
                if len(self.ema) != len(trained):
                    problems.append(
                        f"ema.shadow_params holds {len(self.ema)} tensors instead of {len(trained)}"
                    )
                problems += [f"missing {entry.key} in ema" for entry in trained[len(self.ema) :]]
                pairs = list(zip(trained, self.ema, strict=False))
                problems += [
                    f"ema.shadow_params[{index}] ({entry.key}) {complaint}"
                    for index, (entry, value) in enumerate(pairs)
                    if (complaint := _misfit(value, entry.view))
                ]
                values = values | {entry.key: value for entry, value in pairs}
        if problems:
            raise ValueError(f"{self.where}: does not fit the network: {'; '.join(problems)}")
        for entry in layout:
            entry.view.copy_(values[entry.key])


def _count(value: object) -> int:
    """A number of steps, whether saved as a number or as a tensor."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, int | float) and value >= 0 else 0


def _misfit(value: object, view: Tensor) -> str | None:
    """What is wrong with a tensor of the file, if anything."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.shape != view.shape:
        return f"has shape {tuple(value.shape)} instead of {tuple(view.shape)}"
    if not value.is_floating_point():
        return f"has type {value.dtype} instead of floating point"
    return None


def _check_sigmas(sigmas: object, sde: SDE) -> list[str]:
    """Whether the file's noise levels are those of the configuration.

    Only variance-exploding SDEs have them; the public code writes them for others as well, from
    settings that mean nothing there. How many there are concerns its samplers, not the model.
    """
    if not sde.exploding:
        return []
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or len(sigmas) < 2:
        return [f"{_SIGMAS} is not a list of noise levels"]
    if not bool((sigmas.diff() < 0).all()):
        return [f"{_SIGMAS} does not descend"]
    given = [float(sigmas[0]), float(sigmas[-1])]
    ends = torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64)
    expected = sde.marginal(ends).sigma.tolist()
    if any(abs(a / b - 1) > _SIGMA_TOLERANCE for a, b in zip(given, expected, strict=True)):
        return [
            f"{_SIGMAS} runs from {given[0]:.6g} to {given[1]:.6g}, the configuration says "
            f"sigma_max = {expected[0]:.3g} and sigma_min = {expected[1]:.3g}"
        ]
    return []
