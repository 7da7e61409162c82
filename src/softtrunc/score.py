"""The learned way back: what a model of the score must offer, and how a network becomes one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, Unpack, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softtrunc.sde import SDE, Conditioning, Prediction, expand_to, widen

if TYPE_CHECKING:
    from softtrunc.pretrained import Download, Upload

__all__ = [
    "BoundModel",
    "Conditioning",
    "GivenModel",
    "Prediction",
    "ScoreFunction",
    "ScoreModel",
    "denoise",
    "noise_label",
    "rows_of",
    "tweedie",
]


@runtime_checkable
class ScoreFunction(Protocol):
    """All that losses, samplers and densities ask of a model.

    `score` takes `x` of shape `(B, *event)` and `t` of shape `(B,)` or `()`, and returns the
    gradient of the log-density of x_t, of the shape of `x`.
    """

    @property
    def sde(self) -> SDE:
        """The forward diffusion whose marginals the score belongs to."""

    def score(self, x: Tensor, t: Tensor, /) -> Tensor:
        """`grad log p_t(x)`."""


def tweedie(x: Tensor, score: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """`E[x_0 | x_t = x] = (x + sigma^2 score) / alpha`; alpha and sigma broadcast against `x`."""
    return (x + sigma**2 * score) / alpha


def denoise(
    model: ScoreFunction, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
) -> Float[Tensor, "b *event"]:
    """`E[x_0 | x_t = x]` by Tweedie's formula."""
    alpha, sigma = (expand_to(v, x) for v in model.sde.marginal(t))
    return tweedie(x, model.score(x, t), alpha, sigma)


def _time_log_snr_blend(sde: SDE, t: Tensor) -> Tensor:
    """F = log(1 - alpha^2 + c) + B, B = -2 log alpha: like log sigma at small t, then like B."""
    b = -2.0 * sde.log_alpha(t)
    return (1e-3 - torch.expm1(-b)).log() + b


def noise_label(
    sde: SDE, conditioning: Conditioning, t: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The number that tells a network how noisy its input is.

    - "time": `999 t` (DDPM++).
    - "unbounded_time": `999 (F(t) - F(1e-5)) / (F(T) - F(1e-5))`, F = log(1 - alpha^2 + 1e-3)
      - 2 log alpha, finer at small t (UDDPM++; VP and sub-VP only).
    - "log_sigma": `log sigma(t)` (NCSN++).
    - "unbounded_sigma": `log sigma` above sigma = 0.01 and `-0.01 / (sigma + 1e-4) - 3.6052`
      below it, finer where sigma is tiny (UNCSN++).

    Source: Kim et al. 2022 (arXiv 2106.05527) and its public code.

    Raises:
        ValueError: if the conditioning is unknown or the SDE has no such label.
    """
    t = widen(t)
    if conditioning not in get_args(Conditioning):
        allowed = ", ".join(get_args(Conditioning))
        raise ValueError(f"conditioning {conditioning!r} is unknown: write one of {allowed}")
    if conditioning == "time":
        return 999.0 * t
    if conditioning == "unbounded_time":
        if sde.exploding:
            raise ValueError(
                f'conditioning "unbounded_time" needs a VP or sub-VP SDE, not {type(sde).__name__}:'
                ' write "log_sigma" or "unbounded_sigma"'
            )
        low, high = (_time_log_snr_blend(sde, torch.full_like(t, v)) for v in (1e-5, sde.t_max))
        return 999.0 * (_time_log_snr_blend(sde, t) - low) / (high - low)
    sigma = sde.marginal(t).sigma
    if conditioning == "log_sigma":
        return sigma.log()
    return torch.where(sigma > 0.01, sigma.log(), -0.01 / (sigma + 1e-4) - 3.6052)


class ScoreModel(nn.Module):
    """A network and an SDE, joined to a score.

    The network is called as `network(x, label)` with `x` of shape `(B, *event)` mapped from
    `value_range` to [-1, 1] and `label` of shape `(B,)`; it returns the shape of `x`. It may run
    in reduced precision under autocast; what it returns is brought back to the precision of `x`
    before anything is divided by sigma. What else it is to know, class labels say, goes to it by
    name: `model.score(x, t, y=labels)`, or bound by `given` for whoever calls `score(x, t)`.

    Args:
        network: the body.
        sde: the forward diffusion; None below takes what it says.
        conditioning: what the network is told of the noise; VP and sub-VP say "time", VE and RVE
            "log_sigma".
        prediction: what the output means; VP and sub-VP say "noise", VE and RVE "scaled_score".
        value_range: the range in which the data are given; VP and sub-VP say (-1, 1), VE and RVE
            (0, 1).

    Raises:
        ValueError: if conditioning, prediction or value_range is out of what is allowed.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        *,
        conditioning: Conditioning | None = None,
        prediction: Prediction | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._sde = sde
        self.conditioning: Conditioning = conditioning or sde.conditionings[0]
        self.prediction: Prediction = prediction or sde.default_prediction
        self.value_range = value_range or sde.default_value_range
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"prediction {self.prediction!r} is unknown: write one of "
                f"{', '.join(get_args(Prediction))}"
            )
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"value_range {self.value_range}: need finite low < high, e.g. (-1, 1)"
            )
        # A conditioning that this SDE cannot serve is refused here and not at the first batch.
        noise_label(sde, self.conditioning, torch.ones((), device="cpu"))

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self._sde

    def forward(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The network's output at `(x, t)` in the precision of `x`: noise, or minus it."""
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        low, high = self.value_range
        inputs = x if (low, high) == (-1.0, 1.0) else (2.0 * x - (low + high)) / (high - low)
        label = noise_label(self.sde, self.conditioning, widen(t, x.device)).to(dtype)
        output: Tensor = self.network(inputs.to(dtype), label.expand(x.shape[0]), **condition)
        return output.to(x.dtype)

    def noise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The predicted noise `E[z | x_t = x] = -sigma score`."""
        output: Tensor = self(x, t, **condition)
        return output if self.prediction == "noise" else -output

    def score(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The predicted score `grad log p_t(x)`."""
        return -self.noise(x, t, **condition) / expand_to(self.sde.marginal(t).sigma, x)

    def denoise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The predicted clean example `E[x_0 | x_t = x]`."""
        return denoise(self.given(**condition), x, t)

    def given(self, **condition: Any) -> GivenModel:
        """The model with what its network is given bound to it: a score function of `(x, t)`.

        Tensors with a leading B belong to the examples of a batch; anything else is for all.
        Called as `network(x, label, **condition)`.
        """
        return GivenModel(self, condition)

    # What follows fetches `softtrunc.pretrained` when called: that brings networks and files
    # along, for which a program that only trains must not wait.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        network: nn.Module | None = None,
        sde: type[SDE] | None = None,
        **download: Unpack[Download],
    ) -> ScoreModel:
        """A saved model, in evaluation mode, on the CPU.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` or `softtrunc export`
                wrote, or the id of a repository of the Hugging Face Hub, `owner/name`.
            network: to load the weights into, where it is not a `softtrunc.networks.ScoreUNet`.
            sde: the class of the SDE, where it is not one of softtrunc's.
            download: revision, token, cache_dir, force_download, local_files_only of
                `huggingface_hub.hf_hub_download`.

        Raises:
            FileNotFoundError: there is no such folder or repository, or it cannot be reached.
            ValueError: the files do not describe a model, or the weights do not fit; every tensor
                that is missing, unknown or wrongly shaped is named.
        """
        from softtrunc.pretrained import read_pretrained

        parts = read_pretrained(pretrained_model_name_or_path, network=network, sde=sde, **download)
        return cls(**parts._asdict()).eval()

    def save_pretrained(self, save_directory: str | Path, *, card: str | None = None) -> None:
        """Write `config.json`, `model.safetensors` and a model card into a folder.

        Weights are saved to the bit. Of a network that is no `ScoreUNet`, and of an SDE that is
        not softtrunc's, the type is kept by name, and `from_pretrained` asks for it.

        Args:
            save_directory: the folder, made where it is missing; files of these names in it are
                replaced, each only when the new one is complete.
            card: text of `README.md`; None writes a short one. `softtrunc export RUN` writes one
                with recipe, data and measured figures.

        Raises:
            ValueError: the SDE has no form on disk (`SDE.to_dict`).
        """
        from softtrunc.pretrained import PretrainedParts, write_pretrained

        parts = PretrainedParts(
            self.network, self.sde, self.conditioning, self.prediction, self.value_range
        )
        write_pretrained(parts, Path(save_directory), card)

    def push_to_hub(
        self, repo_id: str, *, card: str | None = None, **upload: Unpack[Upload]
    ) -> str:
        """Save the model into a repository of the Hugging Face Hub, made if it is not there.

        Args:
            repo_id: `owner/name`.
            card: see `save_pretrained`.
            upload: private, token, revision, create_pr, commit_message; see
                `softtrunc.pretrained.upload_folder`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: see `save_pretrained`.
            huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
        """
        from softtrunc.pretrained import upload_folder

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card)
            return upload_folder(Path(folder), repo_id, **upload)


class BoundModel(nn.Module):
    """A score function that may hold something for each example of a batch."""

    def rows(self, index: Int[Tensor, " n"], batch: int | None = None) -> ScoreFunction:
        """The same for the examples at these places of a batch, in their order.

        Args:
            index: the places.
            batch: how many examples the batch has; None: as many as what is held says.
        """
        raise NotImplementedError


@runtime_checkable
class _Conditioned(Protocol):
    """A stranger's score function that holds something for each example of a batch."""

    def rows(self, index: Tensor) -> ScoreFunction:
        """The same for the examples at `index` (n,)."""


def rows_of(model: ScoreFunction, index: Tensor, batch: int | None = None) -> ScoreFunction:
    """`model.rows(index)` where the model has it; else it needs nothing per example.

    Every solver that evaluates a part of its batch asks the model through here.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        index: the examples' places in the batch that `model` was bound for, integers (n,).
        batch: how many examples that batch has; None: as many as the model can tell.
    """
    if isinstance(model, BoundModel):
        return model.rows(index, batch)
    return model.rows(index) if isinstance(model, _Conditioned) else model


class GivenModel(BoundModel):
    """A model bound to a condition: what losses, samplers and densities take for a score function.

    Args:
        model: called as `model.score(x, t, **condition)`.
        condition: by name. A tensor with a leading B belongs to the B examples of a batch; anything
            else is for all of them.
    """

    def __init__(self, model: ScoreModel, condition: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.condition = dict(condition)

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self.model.sde

    @property
    def value_range(self) -> tuple[float, float]:
        """The range in which the data are given."""
        return self.model.value_range

    def score(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted score `grad log p_t(x | condition)`."""
        return self.model.score(x, t, **self._at(x.device))

    def noise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted noise `E[z | x_t = x, condition]`."""
        return self.model.noise(x, t, **self._at(x.device))

    def denoise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted clean example `E[x_0 | x_t = x, condition]`."""
        return denoise(self, x, t)

    def rows(self, index: Int[Tensor, " n"], batch: int | None = None) -> GivenModel:
        """The same for the examples at these places of a batch, in their order.

        Raises:
            ValueError: if `batch` is not given, and tensors of several lengths leave open which
                of them belong to examples.
        """
        batch = self._batch() if batch is None else batch

        def part(value: Any) -> Any:
            own = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
            return value[index.to(value.device)] if own else value

        return GivenModel(self.model, {name: part(v) for name, v in self.condition.items()})

    def _batch(self) -> int | None:
        """The number of examples that the condition is for, None if it is for all."""
        found = {k: len(v) for k, v in self.condition.items() if isinstance(v, Tensor) and v.ndim}
        lengths = set(found.values()) - {1} or set(found.values())
        if len(lengths) > 1:
            told = ", ".join(f"{name} has {length}" for name, length in found.items())
            raise ValueError(
                f"given: {told}: tensors with one entry per example have one length: write what is "
                "for all examples with a leading 1, tensor[None]"
            )
        return next(iter(lengths), None)

    def _at(self, device: torch.device) -> dict[str, Any]:
        """The condition, on a device."""
        return {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.condition.items()
        }
