"""Configurations of the public score-SDE and Soft-Truncation code: what model they describe.

Their layout is a mapping of sections ("data", "model", "training", ...) as those projects' Python
configuration files build it. Only what decides the model's output is read here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softtrunc.feedback.errors import all_of, nearest
from softtrunc.feedback.json import read_json
from softtrunc.networks import ScoreUNetConfig
from softtrunc.score import Conditioning, Prediction
from softtrunc.sde import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE, TabulatedVPSDE

# Words of each section.
_REQUIRED = {
    "data": "image_size num_channels centered",
    "model": "name nf ch_mult num_res_blocks attn_resolutions resamp_with_conv conditional fir "
    "fir_kernel skip_rescale resblock_type progressive progressive_input progressive_combine "
    "embedding_type fourier_scale init_scale nonlinearity dropout scale_by_sigma",
    "training": "sde continuous",
}

# Keys that came later or belong to some SDEs only.
_OPTIONAL = {
    "data": "",
    "model": "beta_min beta_max sigma_min sigma_max attention auxiliary_resblock fourier_feature "
    "lsgm embedding_dim",
    "training": "truncation_time unbounded_parametrization stabilizing_constant ddpm_score "
    "model_mode eta",
}

# Keys of "model" that the public network never reads, or that do not change what it computes.
_INERT = ("attention_type", "conv_size", "ema_rate", "normalization", "num_scales", "sigma_begin")

_VP = {"vpsde": VPSDE, "subvpsde": SubVPSDE}
_VE = {"vesde"}
_RVE = {"rvesde", "rve-sde", "reciprocal_vesde", "reciprocal_sde"}

# What "ddpm" stands for among the keys of ncsnpp.
_DDPM: dict[str, Any] = {
    "conditional": True,
    "fir": False,
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": False,
    "resblock_type": "ddpm",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "embedding_type": "positional",
    "fourier_scale": 16,
    "init_scale": 0.0,
}
_DDPM_WIDTH = 128
_STEPS = 1000  # of the public discrete models

_NONLINEARITY = {"swish": "silu", "elu": "elu", "relu": "relu", "lrelu": "leaky_relu"}

# In the data and training sections other keys are none of our business, unless one looks like a
# slip of the pen for a key that is.
_SLIP = 0.9


@dataclass(frozen=True)
class ModelDescription:
    """All that a `ScoreModel` is made of, but for the weights.

    - `network`: shape of the score U-Net.
    - `sde`: the forward diffusion.
    - `conditioning`: what the network is told of the noise.
    - `prediction`: what its output means.
    - `value_range`: the range in which the data are given.
    """

    network: ScoreUNetConfig
    sde: SDE
    conditioning: Conditioning
    prediction: Prediction
    value_range: tuple[float, float]


def read_public_config(path: str | Path) -> dict[str, Any]:
    """The sections of a public configuration saved as JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration {path}: no such file")
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"configuration {path}: not valid JSON: {str(error)[:120]}") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"configuration {path}: must be a JSON object with data, model and training"
        )
    return config


def describe_public_config(
    config: Mapping[str, Any], *, where: str = "configuration"
) -> ModelDescription:
    """The model that a public configuration describes.

    Its evident intent counts: a configuration of an unbounded model (`unbounded_parametrization`,
    or the reciprocal SDE with `model_mode: reciprocal`) gets the unbounded conditioning, although
    the public code misspells the name under which it looks for the latter.

    Args:
        config: sections "data", "model" and "training" in the public layout; others are ignored.
        where: how to call the configuration in messages.

    Raises:
        ValueError: keys are missing or unknown (all are in its notes), or a value is not supported.
    """
    config = _spoken_out(config, where)
    _check_keys(config, where)
    reader = _Reader(config, where)
    reader.only("model.auxiliary_resblock", True)
    reader.only("model.fourier_feature", False)
    network = _describe_network(config["data"], config["model"], reader)

    kind = reader.word("training.sde")
    unbounded = reader.flag("training.unbounded_parametrization", default=False)
    value_range = (-1.0, 1.0) if reader.flag("data.centered") else (0.0, 1.0)
    if kind not in {*_VP, *_VE, *_RVE}:
        known = ", ".join(sorted({*_VP, *_VE, *_RVE}))
        raise ValueError(f"{where}: training.sde = {kind!r} is unknown: write one of {known}")
    discrete = not reader.flag("training.continuous")
    # A network of discrete noise levels is told a step, also of VE.
    embedding = "positional" if kind in _VP or discrete else "fourier"
    if network.embedding != embedding:
        raise ValueError(
            f"{where}: training.sde = {kind!r} with model.embedding_type = {network.embedding!r} "
            f"is not supported, only with {embedding!r}"
        )
    reader.only("model.scale_by_sigma", kind not in _VP)
    if kind in _VP:
        reader.only("training.ddpm_score", True)
        if unbounded:
            reader.only("training.stabilizing_constant", 1e-3)
        sde: SDE = _VP[kind](reader.number("model.beta_min"), reader.number("model.beta_max"))
    elif kind in _VE:
        sde = VESDE(reader.number("model.sigma_min"), reader.number("model.sigma_max"))
    else:
        sde = _reciprocal(reader)
        older = isinstance(config.get("uncsn"), Mapping)
        unbounded |= older or config["training"].get("model_mode") == "reciprocal"
    conditioning = sde.conditionings[1 if unbounded else 0]
    if discrete:
        sde, conditioning = _discrete(kind, sde, reader)
    return ModelDescription(network, sde, conditioning, sde.default_prediction, value_range)


def _spoken_out(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The configuration in the keys of ncsnpp, with what is left unsaid for some networks.

    "ddpm" is the network of ncsnpp with the blocks of DDPM and nothing else; its configurations do
    not say so, and hold keys that it never reads.
    """
    model = config.get("model")
    name = model.get("name", "ncsnpp") if isinstance(model, Mapping) else "ncsnpp"
    if name == "ncsnpp":
        if isinstance(model, Mapping) and model.get("embedding_type") == "positional":
            # Files of positional networks need not name what Fourier features are scaled by.
            return {**config, "model": {"fourier_scale": 16, **model}}
        return config
    if name != "ddpm":
        raise ValueError(
            f"{where}: model.name = {name!r}: only networks of the ncsnpp family (NCSN++, DDPM++) "
            "and ddpm can be loaded"
        )
    assert isinstance(model, Mapping)
    width = model.get("nf")
    if isinstance(width, int) and width < _DDPM_WIDTH:
        raise ValueError(
            f"{where}: model.nf = {width}: ddpm normalises in 32 groups, as the networks here do "
            f"from {_DDPM_WIDTH} channels on: only such ones can be loaded"
        )
    return {**config, "model": {"scale_by_sigma": False, **model, **_DDPM, "name": "ncsnpp"}}


def _discrete(kind: str, sde: SDE, reader: _Reader) -> tuple[SDE, Conditioning]:
    """The SDE of a model that was trained at `num_scales` noise levels, and what it was told."""
    steps = int(reader.number("model.num_scales", default=_STEPS))
    if isinstance(sde, VPSDE):
        betas = sde.beta_min / steps, sde.beta_max / steps
        table = TabulatedVPSDE.from_schedule("linear", steps, *betas)
        return table, table.conditionings[0]
    if isinstance(sde, VESDE) and steps == _STEPS:
        # Its levels are those of the SDE at t = 1 - i / 999, and it is told i.
        return sde, "reversed_time"
    raise ValueError(
        f"{reader.where}: training.continuous = false with training.sde = {kind!r} and "
        f"model.num_scales = {steps}: of discrete models only VP ones and VE ones of {_STEPS} "
        "noise levels can be loaded: take the continuous model of the same name"
    )


def _reciprocal(reader: _Reader) -> ReciprocalVESDE:
    low, high = reader.number("model.sigma_min"), reader.number("model.sigma_max")
    # The code of the unbounded models kept its keys in a section of their own.
    older = isinstance(reader.config.get("uncsn"), Mapping)
    eta = reader.number("uncsn.eta" if older else "training.eta", default=low)
    if eta != low:
        raise ValueError(
            f"{reader.where}: eta = {eta} differs from model.sigma_min = {low}: only the "
            "reciprocal SDE whose log sigma is linear in 1/t is supported, where they agree"
        )
    return ReciprocalVESDE(low, high, reader.number("training.truncation_time", default=1e-5))


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    """Name every section and key that is missing or unknown."""
    problems = []
    for section, words in _REQUIRED.items():
        values = config.get(section)
        if not isinstance(values, Mapping):
            problems.append(f"section '{section}' is missing")
            continue
        required = words.split()
        problems += [f"missing {section}.{key}" for key in required if key not in values]
        known = [*required, *_OPTIONAL[section].split()]
        unknown = [str(key) for key in values if key not in known]
        if section == "model":
            unknown = [key for key in unknown if key not in _INERT]
        else:
            unknown = [k for k in unknown if difflib.get_close_matches(k, known, 1, _SLIP)]
        problems += [f"unknown {section}.{key} ({nearest(key, known)})" for key in unknown]
    if problems:
        raise all_of(where, problems)


@dataclass(frozen=True)
class _Reader:
    """Reads single values by `section.key`; refuses in the configuration's own words."""

    config: Mapping[str, Any]
    where: str

    def _value(self, name: str, default: object = None) -> Any:
        section, key = name.split(".")
        return self.config[section].get(key, default)

    def _refusal(self, name: str, value: object, what: str) -> ValueError:
        return ValueError(f"{self.where}: {name} = {value!r}: write {what}")

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._refusal(name, value, "true or false")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(name, default)
        if value is None:
            raise ValueError(f"{self.where}: missing {name}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(name, value, "a number")
        return float(value)

    def word(self, name: str) -> str:
        """A name, in lower case."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self._refusal(name, value, "a name in quotes")
        return value.lower()

    def numbers(self, name: str) -> tuple[Any, ...]:
        """A list of numbers, checked by whoever takes them."""
        value = self._value(name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self._refusal(name, value, "a list of numbers")
        return tuple(value)

    def only(self, name: str, supported: object) -> None:
        """Refuse any value but one, which is also what an absent key means."""
        value = self._value(name, supported)
        if value != supported:
            raise ValueError(
                f"{self.where}: {name} = {value!r} is not supported here, only {supported!r}"
            )


def _describe_network(
    data: Mapping[str, Any], model: Mapping[str, Any], reader: _Reader
) -> ScoreUNetConfig:
    nonlinearity = reader.word("model.nonlinearity")
    if nonlinearity not in _NONLINEARITY:
        raise ValueError(
            f"{reader.where}: model.nonlinearity = {nonlinearity!r} is unknown: write one of "
            f"{', '.join(_NONLINEARITY)}"
        )
    embedding = reader.word("model.embedding_type")
    # The size of the embedding was made free for the 512-channel networks, behind this switch.
    embedding_size = None
    if reader.flag("model.lsgm", default=False) and embedding == "positional":
        embedding_size = model.get("embedding_dim")
        if embedding_size is None:
            raise ValueError(f"{reader.where}: model.lsgm = true needs model.embedding_dim")
    attends = reader.flag("model.attention", default=True)
    fields: dict[str, Any] = {
        "image_size": data["image_size"],
        "channels": data["num_channels"],
        "base_channels": model["nf"],
        "channel_multipliers": reader.numbers("model.ch_mult"),
        "blocks_per_level": model["num_res_blocks"],
        "attention_resolutions": reader.numbers("model.attn_resolutions") if attends else (),
        "dropout": reader.number("model.dropout"),
        "embedding": embedding,
        "embedding_size": embedding_size,
        "fourier_scale": reader.number("model.fourier_scale"),
        "conditional": model["conditional"],
        "residual_block": reader.word("model.resblock_type"),
        "resample_with_conv": model["resamp_with_conv"],
        "fir": model["fir"],
        "input_pyramid": reader.word("model.progressive_input"),
        "input_combine": reader.word("model.progressive_combine"),
        "output_pyramid": reader.word("model.progressive"),
        "skip_rescale": model["skip_rescale"],
        "init_scale": reader.number("model.init_scale"),
        "nonlinearity": _NONLINEARITY[nonlinearity],
    }
    if model["fir"]:
        fields["fir_kernel"] = reader.numbers("model.fir_kernel")
    try:
        return ScoreUNetConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{reader.where}: {error}") from error
