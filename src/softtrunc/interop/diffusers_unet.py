"""A score model in the shape that diffusers' schedulers and pipelines call.

Their schedulers know one family of states, `y = sqrt(a) (x_0 + rho z)` with data in [-1, 1] and
`a = 1 / (1 + rho^2)`, at 1,000 noise-to-signal ratios `rho`. A state of any of our SDEs is one of
these up to a factor: `x = alpha (centre + half_width y / sqrt(a))` has the ratio
`sigma / alpha = half_width rho` and the same noise z. So VP, sub-VP, VE and RVE models, with data
in [-1, 1] or [0, 1], all look alike from there.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.networks import config_of
from softtrunc.score import ScoreFunction, ScoreModel
from softtrunc.sde import SDE

_LEAST_RATIO = 2e-3
"""Schedulers keep `1 - a = rho^2 / (1 + rho^2)` in float32 beside 1: below this it is rounding."""


class DiffusersOutput(NamedTuple):
    """What a call returns; diffusers reads `.sample`, or the first entry of a tuple."""

    sample: Float[Tensor, "b c h w"]


def _noise_to_signal(sde: SDE, steps: int, least: float) -> Tensor:
    """`sigma / alpha` at `steps` times, ascending from `least` or what `t_end` has; float64.

    Even in t for VP and sub-VP, as the schedules of DDPM are; even in log sigma for VE and RVE.
    """
    ends = sde.log_snr(torch.tensor([sde.t_end, sde.t_max], dtype=torch.float64))
    ends = ends.clamp(max=-2.0 * math.log(least))
    share = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    if sde.exploding:
        return (-0.5 * torch.lerp(ends[0], ends[1], share)).exp()
    first, last = sde.time_of_log_snr(ends)
    return (-0.5 * sde.log_snr(torch.lerp(first, last, share))).exp()


class DiffusersUNet(nn.Module):
    """Called like diffusers' `UNet2DModel`: `(sample, timestep) -> noise`.

    ```python
    unet = DiffusersUNet.from_pretrained("runs/mine/export")
    scheduler = DPMSolverMultistepScheduler.from_config(unet.scheduler_config)
    images = DDIMPipeline(unet, DDIMScheduler.from_config(unet.scheduler_config))()
    ```

    Timesteps may lie between whole numbers, as EulerDiscreteScheduler's do; the ratio is then
    interpolated as that scheduler interpolates it.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        image_size: (height, width) in pixels; None asks the model's `ScoreUNet`.
        channels: of the image; None asks as well.
        value_range: of the model's data; None takes the model's own, or (-1, 1).
        train_timesteps: number of noise levels that schedulers are told of.

    Raises:
        ValueError: the model does not say its image size and channels, or there are fewer than
            two noise levels.
    """

    ratios: Tensor

    def __init__(
        self,
        model: ScoreFunction,
        *,
        image_size: tuple[int, int] | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        network = getattr(model, "network", None)
        known = None if network is None else config_of(network)
        if known is not None:
            image_size, channels = image_size or known.size, channels or known.channels
        if image_size is None or channels is None:
            raise ValueError("DiffusersUNet: the model does not say its image_size and channels")
        if train_timesteps < 2:
            raise ValueError(f"train_timesteps={train_timesteps}: need at least 2, e.g. 1000")
        self.model = model
        if value_range is None:
            value_range = model.value_range if isinstance(model, ScoreModel) else (-1.0, 1.0)
        low, high = value_range
        self._centre, self._half_width = 0.5 * (low + high), 0.5 * (high - low)
        square = image_size[0] == image_size[1]
        size = image_size[0] if square else image_size
        self.config = SimpleNamespace(sample_size=size, in_channels=channels, out_channels=channels)
        least = _LEAST_RATIO * self._half_width
        ratios = _noise_to_signal(model.sde, train_timesteps, least) / self._half_width
        a = 1.0 / (1.0 + ratios.square())
        betas = 1.0 - a / torch.cat([torch.ones(1, dtype=a.dtype), a[:-1]])
        self.betas: list[float] = betas.tolist()
        # Schedulers multiply up in float32, which is off by percents in 1 - a where a is nearly 1.
        # What they make of the betas is what they mean by a timestep.
        a = torch.cumprod(1.0 - torch.tensor(self.betas, dtype=torch.float32), dim=0).double()
        self.register_buffer("ratios", ((1.0 - a) / a).sqrt().float(), persistent=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> DiffusersUNet:
        """The adapter around `ScoreModel.from_pretrained`, which takes the same options."""
        return cls(ScoreModel.from_pretrained(pretrained_model_name_or_path, **options))

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """For `SomeScheduler.from_config`: our noise levels, and that the output is noise.

        Schedulers that clip the predicted image (DDPM, DDIM) do so unless told
        `clip_sample=False`.
        """
        return {
            "num_train_timesteps": len(self.betas),
            "trained_betas": list(self.betas),
            "prediction_type": "epsilon",
            "timestep_spacing": "linspace",
        }

    dtype = torch.float32  # of the states that pipelines draw

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.ratios.device

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Tensor | float,
        class_labels: object = None,
        return_dict: bool = True,
    ) -> DiffusersOutput | tuple[Tensor]:
        """The noise in `sample`.

        Args:
            sample: a scheduler's state, `(B, C, H, W)`, after its `scale_model_input`.
            timestep: one for all, or `(B,)`; in [0, train_timesteps - 1].
            class_labels: the model knows no classes: None.
            return_dict: whether the result has a name, or stands in a plain tuple.

        Raises:
            ValueError: if class labels are given.
        """
        if class_labels is not None:
            raise ValueError("this model knows no classes: leave class_labels out")
        last = len(self.ratios) - 1
        place = torch.as_tensor(timestep, device=self.device, dtype=self.ratios.dtype)
        place = place.clamp(0, last).expand(len(sample))
        below = place.floor().long()
        above = (below + 1).clamp(max=last)
        ratio = torch.lerp(self.ratios[below], self.ratios[above], place - below)
        sample_dtype, sde = sample.dtype, self.model.sde
        sample = sample.to(torch.promote_types(sample_dtype, torch.float32))
        t = sde.time_of_log_snr(-2.0 * (self._half_width * ratio).log())
        alpha, sigma = (v[:, None, None, None] for v in sde.marginal(t))
        spread = (1.0 + ratio.square()).sqrt()[:, None, None, None]
        x = alpha * (self._centre + self._half_width * spread * sample)
        out = (-sigma * self.model.score(x, t)).to(sample_dtype)
        return DiffusersOutput(out) if return_dict else (out,)
