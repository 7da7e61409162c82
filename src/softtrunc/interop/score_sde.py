"""Checkpoints of the public score_sde_pytorch and Soft-Truncation code, as `ScoreModel`.

Such a file holds `model` (the state of the network), `ema` (a list of averaged parameters, those
that are trained, in the network's order), `optimizer` and `step`. Nothing is loaded unless all of
it fits and is finite.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.feedback.errors import all_of
from softtrunc.interop.conditioning import choose_conditioning, random_images
from softtrunc.interop.public_config import (
    ModelDescription,
    describe_public_config,
    read_public_config,
)
from softtrunc.interop.public_layout import PublicTensor, public_layout
from softtrunc.interop.torch_file import read_torch_file
from softtrunc.networks import ScoreUNet, ScoreUNetConfig
from softtrunc.networks.plain_state import plain_name
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
        ValueError: the configuration is not supported, the file is damaged or no such checkpoint,
            or keys are missing, unknown or wrongly shaped: all of them stand in its notes.
    """
    if conditioning not in (None, "auto", *get_args(Conditioning)):
        allowed = ", ".join((*get_args(Conditioning), "auto"))
        raise ValueError(f"conditioning {conditioning!r} is unknown: write one of {allowed}")
    description = _describe(config)
    checkpoint = ScoreSDECheckpoint.read(path)
    checkpoint.check(description.network, description.sde, weights)
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


class AdamMoments(NamedTuple):
    """What Adam remembers of each parameter, by the names of our network.

    - `steps`: optimiser steps taken. `first`, `second`: running means of gradients and of squares.
    """

    steps: int
    first: dict[str, Tensor]
    second: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ScoreSDECheckpoint:
    """What a public checkpoint holds of the network.

    - `where`: the file, for messages.
    - `model`: the state of the network by key, without the prefixes of wrappers (`module.` of
      parallel training, `_orig_mod.` of compilation).
    - `ema`: the averaged parameters, in the network's order or by key; None if the file has none.
    - `step`: optimiser steps done.
    - `ema_updates`: updates of the average as the file counts them.
    - `optimizer`: the state of its optimiser; None if the file has none.
    """

    where: str
    model: dict[str, Any]
    ema: list[Any] | dict[str, Any] | None
    step: int
    ema_updates: int
    optimizer: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, path: str | Path) -> ScoreSDECheckpoint:
        """Read a file, executing nothing that it may contain.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no checkpoint of this kind.
        """
        where = f"checkpoint {path}"
        try:
            content = read_torch_file(Path(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"{where}: no such file") from None
        except ValueError as error:
            raise ValueError(f"checkpoint {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
            raise ValueError(
                f"{where}: holds no 'model': give a file that the public code saved with 'model', "
                "'ema', 'optimizer' and 'step'"
            )
        average, optimizer = content.get("ema"), content.get("optimizer")
        updates = average.get("num_updates") if isinstance(average, Mapping) else 0
        return cls(
            where=where,
            model=_unwrapped(content["model"], where),
            ema=_averaged(average, where),
            step=_count(content.get("step")),
            ema_updates=_count(updates),
            optimizer=optimizer if isinstance(optimizer, Mapping) else None,
        )

    def check(self, config: ScoreUNetConfig, sde: SDE, weights: Weights) -> None:
        """Refuse what does not fit a network, before the network is built.

        The state of the network is checked whichever weights are asked for: what is not trained
        (the Fourier frequencies) comes from there. The SDE is for the file's own noise levels.

        Raises:
            ValueError: naming the first keys that are missing, unknown or wrongly shaped, or hold
                values that are not finite, and all of them in its notes.
        """
        if weights not in get_args(Weights):
            raise ValueError(f"weights {weights!r}: write 'ema' or 'raw'")
        with torch.device("meta"):
            layout = public_layout(ScoreUNet(config))
        expected = {entry.key: entry.view for entry in layout}
        problems = [f"missing {key}" for key in expected if key not in self.model]
        problems += [f"unknown {key}" for key in self.model if key not in {*expected, _SIGMAS}]
        problems += _misfits(self.model, expected)
        if _SIGMAS in self.model:
            problems += _check_sigmas(self.model[_SIGMAS], sde)
        if weights == "ema":
            trained = [entry for entry in layout if entry.trained]
            problems += self._check_average({*expected, _SIGMAS}, trained)
        if problems:
            raise all_of(f"{self.where}: does not fit the network", problems)

    def _check_average(self, known: set[str], trained: Sequence[PublicTensor]) -> list[str]:
        if self.ema is None:
            return ["no averaged weights: 'ema' with 'shadow_params' is missing"]
        problems = []
        if isinstance(self.ema, list) and len(self.ema) != len(trained):
            problems.append(
                f"ema.shadow_params holds {len(self.ema)} tensors instead of {len(trained)}"
            )
        average = self._average(trained)
        problems += [f"missing {e.key} in ema" for e in trained if e.key not in average]
        problems += [f"unknown {key} in ema" for key in average if key not in known]
        return problems + _misfits(average, {e.key: e.view for e in trained}, "ema: ")

    def _average(self, trained: Sequence[PublicTensor]) -> dict[str, Any]:
        """The averaged weights by key."""
        if isinstance(self.ema, list):
            return {e.key: value for e, value in zip(trained, self.ema, strict=False)}
        return self.ema or {}

    @torch.no_grad()
    def fill(self, network: ScoreUNet, sde: SDE, weights: Weights) -> None:
        """Write the weights into a network; it stays untouched unless all of them fit.

        Raises:
            ValueError: as `check`.
        """
        self.check(network.config, sde, weights)
        layout = public_layout(network)
        values = self.model
        if weights == "ema":
            trained = [entry for entry in layout if entry.trained]
            values = values | self._average(trained)
        for entry in layout:
            entry.view.copy_(values[entry.key])

    @torch.no_grad()
    def moments(self, network: ScoreUNet) -> AdamMoments | None:
        """What Adam remembers; None if the file does not tell.

        Raises:
            ValueError: if it tells, but not of this network, or of values that are not finite.
        """
        slots = self._slots(public_layout(network))
        if slots is None:
            return None
        found: list[dict[str, Tensor]] = []
        for moment in ("exp_avg", "exp_avg_sq"):
            # A second network is filled like the first one: its parameters are then the moments.
            scratch = copy.deepcopy(network)
            views = {e.key: e.view for e in public_layout(scratch) if e.trained}
            values: dict[str, Any] = {k: slots[k].get(moment) for k in views if k in slots}
            problems = [f"missing {key}" for key in views if key not in values]
            problems += _misfits(values, views)
            if problems:
                raise all_of(f"{self.where}: optimizer: {moment}", problems)
            for key, view in views.items():
                view.copy_(values[key])
            trained = ((n, p) for n, p in scratch.named_parameters() if p.requires_grad)
            found.append({name: parameter.detach() for name, parameter in trained})
        if any(bool((value < 0).any()) for value in found[1].values()):
            raise ValueError(f"{self.where}: optimizer: exp_avg_sq: holds negative numbers")
        steps = max(_count(slot.get("step")) for slot in slots.values())
        return AdamMoments(steps, found[0], found[1])

    def _slots(self, layout: Sequence[PublicTensor]) -> dict[str, Mapping[str, Any]] | None:
        """The optimiser's memory by key; it numbers the parameters, frozen ones included or not."""
        state = (self.optimizer or {}).get("state")
        groups = (self.optimizer or {}).get("param_groups")
        if not isinstance(state, Mapping) or not state or not isinstance(groups, list):
            return None
        told = (group.get("params") for group in groups if isinstance(group, Mapping))
        order = [number for numbers in told if isinstance(numbers, list) for number in numbers]
        trained = [entry for entry in layout if entry.trained]
        entries = next((e for e in (layout, trained) if len(e) == len(order)), None)
        if entries is None:
            raise ValueError(
                f"{self.where}: optimizer: of {len(order)} parameters instead of {len(trained)}"
            )
        pairs = zip(entries, order, strict=True)
        return {e.key: s for e, n in pairs if isinstance(s := state.get(n), Mapping)}


def _unwrapped(state: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Values by key, without what wrappers put into the keys."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        plain = plain_name(str(key))
        if plain in found:
            raise ValueError(f"{where}: {plain} stands twice, with and without a wrapper's prefix")
        found[plain] = value
    return found


def _averaged(average: object, where: str) -> list[Any] | dict[str, Any] | None:
    """The averaged weights, in whichever of the usual forms they are kept."""
    if isinstance(average, Mapping) and "shadow_params" in average:
        average = average["shadow_params"]
    if isinstance(average, list | tuple):
        return list(average)
    if isinstance(average, Mapping) and average:
        return _unwrapped(average, where)
    return None


def _count(value: object) -> int:
    """A number of steps, whether saved as a number or as a tensor."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, int | float) and value >= 0 else 0


def _misfits(
    values: Mapping[str, Any], expected: Mapping[str, Tensor], where: str = ""
) -> list[str]:
    """What is wrong with the tensors that are there."""
    found = ((key, _misfit(values[key], view)) for key, view in expected.items() if key in values)
    return [f"{where}{key} {complaint}" for key, complaint in found if complaint is not None]


def _misfit(value: object, view: Tensor) -> str | None:
    """What is wrong with a tensor of the file, if anything."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.shape != view.shape:
        return f"has shape {tuple(value.shape)} instead of {tuple(view.shape)}"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "is no plain tensor"
    if not value.is_floating_point():
        return f"has type {value.dtype} instead of floating point"
    if wrong := int((~value.isfinite()).sum()):
        return f"holds {wrong:,} values that are not finite"
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
