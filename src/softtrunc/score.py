"""The learned way back: what a model of the score must offer, and how a network becomes one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.sde import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE, expand_to, widen

if TYPE_CHECKING:
    from softtrunc.pretrained import PretrainedParts

__all__ = [
    "Conditioning",
    "Prediction",
    "ScoreFunction",
    "ScoreModel",
    "denoise",
    "noise_label",
]

Conditioning = Literal["time", "unbounded_time", "log_sigma", "unbounded_sigma"]
"""What a network is told of the noise; see `noise_label`."""

Prediction = Literal["noise", "scaled_score"]
"""What a network's output means: the noise (`-sigma score`) or `sigma score`."""


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


def denoise(
    model: ScoreFunction, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
) -> Float[Tensor, "b *event"]:
    """`E[x_0 | x_t = x] = (x + sigma^2 score) / alpha` (Tweedie's formula)."""
    alpha, sigma = model.sde.marginal(t)
    return (x + expand_to(sigma, x).square() * model.score(x, t)) / expand_to(alpha, x)


def _time_log_snr_blend(sde: VPSDE | SubVPSDE, t: Tensor) -> Tensor:
    """F(t) = log(1 - exp(-B) + c) + B, c = 1e-3: like log sigma at small t, like B at large."""
    b = sde.integrated_beta(t)
    return (1e-3 - torch.expm1(-b)).log() + b


def noise_label(
    sde: SDE, conditioning: Conditioning, t: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The number that tells a network how noisy its input is.

    - "time": `999 t` (DDPM++).
    - "unbounded_time": `999 (F(t) - F(1e-5)) / (F(1) - F(1e-5))`, finer at small t (UDDPM++;
      VP and sub-VP only).
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
        if not isinstance(sde, VPSDE | SubVPSDE):
            raise ValueError(
                f'conditioning "unbounded_time" needs a VP or sub-VP SDE, not {type(sde).__name__}:'
                ' write "log_sigma" or "unbounded_sigma"'
            )
        low, high = (_time_log_snr_blend(sde, torch.full_like(t, v)) for v in (1e-5, 1.0))
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
    before anything is divided by sigma.

    Args:
        network: the body.
        sde: the forward diffusion.
        conditioning: what the network is told of the noise; None takes "time" for VP and sub-VP,
            "log_sigma" for VE and RVE.
        prediction: what the output means; None takes "noise" for VP and sub-VP, "scaled_score"
            for VE and RVE.
        value_range: the range in which the data are given; None takes (-1, 1) for VP and sub-VP,
            (0, 1) for VE and RVE.

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
        exploding = isinstance(sde, VESDE | ReciprocalVESDE)
        self.network = network
        self._sde = sde
        self.conditioning: Conditioning = conditioning or ("log_sigma" if exploding else "time")
        self.prediction: Prediction = prediction or ("scaled_score" if exploding else "noise")
        self.value_range = value_range or ((0.0, 1.0) if exploding else (-1.0, 1.0))
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
        noise_label(sde, self.conditioning, torch.ones(()))

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self._sde

    def forward(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The network's output at `(x, t)` in the precision of `x`: noise, or minus it."""
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        low, high = self.value_range
        inputs = x if (low, high) == (-1.0, 1.0) else (2.0 * x - (low + high)) / (high - low)
        label = noise_label(self.sde, self.conditioning, t.to(x.device)).to(dtype)
        output: Tensor = self.network(inputs.to(dtype), label.expand(x.shape[0]))
        return output.to(x.dtype)

    def noise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted noise `E[z | x_t = x] = -sigma score`."""
        output: Tensor = self(x, t)
        return output if self.prediction == "noise" else -output

    def score(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted score `grad log p_t(x)`."""
        return -self.noise(x, t) / expand_to(self.sde.marginal(t).sigma, x)

    def denoise(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The predicted clean example `E[x_0 | x_t = x] = (x - sigma noise) / alpha`."""
        alpha, sigma = self.sde.marginal(t)
        return (x - expand_to(sigma, x) * self.noise(x, t)) / expand_to(alpha, x)

    # What follows fetches `softtrunc.pretrained` when called: that brings networks and files
    # along, for which a program that only trains must not wait.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        network: nn.Module | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> ScoreModel:
        """A saved model, in evaluation mode, on the CPU.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` or `softtrunc export`
                wrote, or the id of a repository of the Hugging Face Hub, `owner/name`.
            network: to load the weights into, where it is not a `softtrunc.networks.ScoreUNet`.
            revision: branch, tag or commit of the repository.
            token: for private repositories; None takes the one that is logged in.
            cache_dir: where downloads are kept.
            force_download: download again what is in the cache.
            local_files_only: take what is in the cache, ask nobody.

        Raises:
            FileNotFoundError: there is no such folder or repository, or it cannot be reached.
            ValueError: the files do not describe a model, or the weights do not fit; every tensor
                that is missing, unknown or wrongly shaped is named.
        """
        from softtrunc.pretrained import read_pretrained

        parts = read_pretrained(
            pretrained_model_name_or_path,
            network=network,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls(
            parts.network,
            parts.sde,
            conditioning=cast(Conditioning, parts.conditioning),
            prediction=cast(Prediction, parts.prediction),
            value_range=parts.value_range,
        ).eval()

    def save_pretrained(self, save_directory: str | Path, *, card: str | None = None) -> None:
        """Write `config.json`, `model.safetensors` and a model card into a folder.

        Weights are saved to the bit; of a network that is no `ScoreUNet` only its type's name is
        kept, and `from_pretrained` asks for it.

        Args:
            save_directory: the folder, made where it is missing; files of these names in it are
                replaced, each only when the new one is complete.
            card: text of `README.md`; None writes a short one. `softtrunc export RUN` writes one
                with recipe, data and measured figures.

        Raises:
            ValueError: the SDE is not one of softtrunc's.
        """
        from softtrunc.pretrained import default_card, write_pretrained

        parts = self._parts()
        write_pretrained(parts, Path(save_directory), card or default_card(parts))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload a softtrunc model",
    ) -> str:
        """Save the model into a repository of the Hugging Face Hub, made if it is not there.

        Args:
            repo_id: `owner/name`.
            card: see `save_pretrained`.
            private: whether a new repository is private; None takes the owner's default.
            token: with the right to write; None takes the one that is logged in.
            revision: branch to commit to; None takes main.
            create_pr: open a pull request rather than commit.
            commit_message: first line of the commit.

        Returns:
            The address of the commit.

        Raises:
            ValueError: the SDE is not one of softtrunc's.
            huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
        """
        from softtrunc.pretrained import default_card, push_parts

        parts = self._parts()
        return push_parts(
            parts,
            repo_id,
            card or default_card(parts),
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )

    def _parts(self) -> PretrainedParts:
        from softtrunc.pretrained import PretrainedParts

        return PretrainedParts(
            self.network, self.sde, self.conditioning, self.prediction, self.value_range
        )
