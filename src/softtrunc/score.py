"""The learned way back: what a model of the score must offer, and how a network becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, Unpack, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softtrunc.prediction import Level, Parametrization, noise_label
from softtrunc.sde import SDE, Conditioning, Prediction, expand_to, send, widen

if TYPE_CHECKING:
    from softtrunc.hub import Download, Upload

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
    "score_at",
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


def _wrong_shape(found: tuple[int, ...], wanted: tuple[int, ...]) -> ValueError:
    """The refusal of a network's output."""
    doubled = found[:1] + found[2:] == wanted[:1] + wanted[2:] and found[1:2] == (2 * wanted[1],)
    why = " (a learned variance? give the first half, e.g. by wrapping the network)"
    return ValueError(
        f"the network returned {found} for an input of {wanted}{why if doubled else ''}: "
        "need an output of the input's shape"
    )


class ScoreModel(nn.Module):
    """A network and an SDE, joined to a score.

    The network is called as `network(x, label)` with `x` of shape `(B, *event)` mapped from
    `value_range` to [-1, 1] and `label` of shape `(B,)`; it returns the shape of `x`, as a tensor
    or as the `.sample` of anything, as the networks of diffusers do. It may run
    in reduced precision under autocast; what it returns is brought back to the precision of `x`
    before anything is divided by sigma. What else it is to know, class labels say, goes to it by
    name: `model.score(x, t, y=labels)`, or bound by `given` for whoever calls `score(x, t)`.

    Args:
        network: the body.
        sde: the forward diffusion; None below takes what it says.
        conditioning: what the network is told of the noise (`noise_label`); VP and sub-VP say
            "time", VE and RVE "log_sigma", and any SDE "edm" where the prediction is that.
        prediction: what the output means (`softtrunc.prediction`); VP and sub-VP say "noise", VE
            and RVE "scaled_score".
        value_range: the range in which the data are given; VP and sub-VP say (-1, 1), VE and RVE
            (0, 1).
        sigma_data: for the prediction "edm", the standard deviation of the data in [-1, 1].

    Raises:
        ValueError: if one of these is out of what is allowed.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        *,
        conditioning: Conditioning | None = None,
        prediction: Prediction | None = None,
        value_range: tuple[float, float] | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.network = network
        self._sde = sde
        self.parametrization = Parametrization(
            prediction or sde.default_prediction, value_range or sde.default_value_range, sigma_data
        )
        own: Conditioning = "edm" if self.prediction == "edm" else sde.conditionings[0]
        self.conditioning: Conditioning = conditioning or own
        # A conditioning that this SDE cannot serve is refused here and not at the first batch.
        noise_label(sde, self.conditioning, torch.ones((), device="cpu"))

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self._sde

    @property
    def prediction(self) -> Prediction:
        """What the network's output means."""
        return self.parametrization.prediction

    @property
    def value_range(self) -> tuple[float, float]:
        """The range in which the data are given."""
        return self.parametrization.value_range

    @property
    def sigma_data(self) -> float:
        """For the prediction "edm", the standard deviation of the data in [-1, 1]."""
        return self.parametrization.sigma_data

    def forward(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The network's output at `(x, t)` in the precision of `x`: what `prediction` says.

        Raises:
            ValueError: if it has not the shape of `x`.
        """
        return self._output(x, t, Level.at(self.sde, t, x), condition)

    def _output(self, x: Tensor, t: Tensor, level: Level, condition: Mapping[str, Any]) -> Tensor:
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        inputs = self.parametrization.network_input(x, level)
        half = self.parametrization.half_width
        label = noise_label(self.sde, self.conditioning, widen(t, x.device), half_width=half)
        label = label.to(dtype).expand(x.shape[0])
        output = self.network(inputs.to(dtype), label, **condition)
        output = output if isinstance(output, Tensor) else output.sample
        if output.shape != x.shape:
            raise _wrong_shape(tuple(output.shape), tuple(x.shape))
        return output.to(x.dtype)

    def noise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The predicted noise `E[z | x_t = x] = -sigma score`."""
        return self._noise(x, t, Level.at(self.sde, t, x), condition)

    def _noise(self, x: Tensor, t: Tensor, level: Level, condition: Mapping[str, Any]) -> Tensor:
        return self.parametrization.noise(self._output(x, t, level, condition), x, level)

    def score(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"], **condition: Any
    ) -> Float[Tensor, "b *event"]:
        """The predicted score `grad log p_t(x)`."""
        level = Level.at(self.sde, t, x)
        return -self._noise(x, t, level, condition) / level.sigma

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
            self.network,
            self.sde,
            self.conditioning,
            self.prediction,
            self.value_range,
            self.sigma_data,
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
                `softtrunc.hub.upload_folder`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: see `save_pretrained`.
            huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
        """
        from softtrunc.hub import upload_folder

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card)
            return upload_folder(Path(folder), repo_id, **upload)


class BoundModel(nn.Module):
    """A score function that may hold something for each example, or differ from time to time."""

    def at(self, t: float) -> ScoreFunction:  # noqa: ARG002
        """What answers at a time that the host knows, so that the device is not asked for it."""
        return cast(ScoreFunction, self)

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


def score_at(model: ScoreFunction, t: float) -> ScoreFunction:
    """`model.at(t)` where the model has it: what answers at this one time, for the whole batch."""
    return model.at(t) if isinstance(model, BoundModel) else model


class GivenModel(BoundModel):
    """A model bound to a condition: what losses, samplers and densities take for a score function.

    Args:
        model: called as `model.score(x, t, **condition)`.
        condition: by name. A tensor with a leading B belongs to the B examples of a batch; anything
            else is for all of them. Tensors are sent to where the model is.
    """

    def __init__(self, model: ScoreModel, condition: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        parameter = next(model.parameters(), None)
        # Once and now: at every call, and for its rows, the host would wait.
        self.condition = dict(condition) if parameter is None else _on(condition, parameter.device)

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
        return self.model.score(x, t, **_on(self.condition, x.device))

    def noise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted noise `E[z | x_t = x, condition]`."""
        return self.model.noise(x, t, **_on(self.condition, x.device))

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
            return value[send(index, value.device)] if own else value

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


def _on(condition: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A condition, its tensors on a device."""
    return {
        name: send(value, device) if isinstance(value, Tensor) else value
        for name, value in condition.items()
    }
