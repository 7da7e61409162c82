"""A score model in the shape that diffusers' schedulers and pipelines call, save and load.

The module's path is part of the files that diffusers writes: a pipeline names its parts by the
module and the class, and looks in the module for the base class that says how they are loaded.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from softtrunc.hub import upload_folder
from softtrunc.interop.noise_levels import TRAIN_TIMESTEPS, noise_levels
from softtrunc.networks import UNet2DConfig, config_of
from softtrunc.pretrained import read_train_timesteps, write_train_timesteps
from softtrunc.score import ScoreFunction, ScoreModel

# What pipelines tell every part of theirs while they load, and what makes no difference here.
_OF_THE_LOADER = {
    *("max_memory", "offload_folder", "offload_state_dict", "variant", "use_safetensors"),
    *("low_cpu_mem_usage", "disable_mmap", "use_flashpack"),
}


class DiffusersOutput(NamedTuple):
    """What a call returns; diffusers reads `.sample`, or the first entry of a tuple."""

    sample: Float[Tensor, "b c h w"]


class DiffusersUNet(ModelMixin, ConfigMixin):
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
        image_size: (height, width) in pixels; None asks the model's network.
        channels: of the image; None asks as well.
        value_range: of the model's data; None takes the model's own, or (-1, 1).
        train_timesteps: number of noise levels that schedulers are told of.

    Raises:
        ValueError: the model does not say its image size and channels, or there are fewer than
            two noise levels.
    """

    config_name: Any = "config.json"
    dtype = torch.float32  # of the states that pipelines draw

    def __init__(
        self,
        model: ScoreFunction,
        *,
        image_size: tuple[int, int] | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        train_timesteps: int = TRAIN_TIMESTEPS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        network = getattr(model, "network", None)
        known = None if network is None else config_of(network)
        if known is not None:
            image_size, channels = image_size or known.size, channels or known.channels
        if image_size is None or channels is None:
            raise ValueError("DiffusersUNet: the model does not say its image_size and channels")
        self.model = model
        # What the network calls its classes, where it knows any.
        self._classes: str | None = None
        if isinstance(known, UNet2DConfig):
            self._classes = "class_labels" if known.conditional else None
        elif known is not None and known.num_classes:
            self._classes = "y"
        if value_range is None:
            value_range = model.value_range if isinstance(model, ScoreModel) else (-1.0, 1.0)
        low, high = value_range
        self._centre, self._half_width = 0.5 * (low + high), 0.5 * (high - low)
        square = image_size[0] == image_size[1]
        size = image_size[0] if square else tuple(image_size)
        levels = noise_levels(model.sde, value_range, train_timesteps)
        self.betas = levels.betas
        # No buffer: whoever casts the network to half precision does not mean these.
        self.ratios = levels.ratios
        self.scheduler_config = levels.scheduler_config()
        self.register_to_config(  # type: ignore[no-untyped-call]
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            train_timesteps=train_timesteps,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str = "",
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        **options: Any,
    ) -> DiffusersUNet:
        """The adapter around `ScoreModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: what `save_pretrained`, of this or of `ScoreModel`,
                `softtrunc export` or a pipeline wrote: a folder, or a repository of the Hub.
            subfolder: of a folder, the one that holds the model.
            torch_dtype: of the network's weights.
            device_map: the one device for all of it.
            options: of `ScoreModel.from_pretrained`.

        Raises:
            FileNotFoundError: as `ScoreModel.from_pretrained`.
            ValueError: as `ScoreModel.from_pretrained`, or the model is to be spread over devices.
        """
        source = str(Path(pretrained_model_name_or_path) / subfolder)
        options = {k: v for k, v in options.items() if k not in _OF_THE_LOADER}
        model = ScoreModel.from_pretrained(source, **options)
        steps = read_train_timesteps(source, TRAIN_TIMESTEPS)
        adapter = cls(model, train_timesteps=steps)
        if isinstance(torch_dtype, torch.dtype):
            model.network.to(torch_dtype)
        if device_map is not None:
            whole = device_map.get("") if isinstance(device_map, dict) else device_map
            if whole is None or whole in ("auto", "balanced", "balanced_low_0", "sequential"):
                raise ValueError(f"device_map={device_map!r}: the model stays whole: name a device")
            model.to(whole)
        return adapter

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **upload: Any,
    ) -> None:
        """Write the files of `ScoreModel.save_pretrained`; safetensors, in one piece.

        Args:
            save_directory: the folder.
            is_main_process: whether this process is the one that writes.
            push_to_hub: also upload it.
            upload: `repo_id` and the options of `ScoreModel.push_to_hub`.

        Raises:
            ValueError: the model is not a `ScoreModel`, or as `ScoreModel.save_pretrained`.
        """
        if not is_main_process:
            return
        self._score_model().save_pretrained(save_directory)
        write_train_timesteps(Path(save_directory), len(self.betas))
        if push_to_hub:
            self.push_to_hub(upload.pop("repo_id", Path(save_directory).name), **upload)

    def push_to_hub(self, repo_id: str, **upload: Any) -> str:  # type: ignore[override]
        """`ScoreModel.push_to_hub`."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, **upload)

    def _score_model(self) -> ScoreModel:
        if isinstance(self.model, ScoreModel):
            return self.model
        raise ValueError(
            f"DiffusersUNet: a {type(self.model).__name__} has no form on disk, a ScoreModel has"
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> DiffusersOutput | tuple[Tensor]:
        """The noise in `sample`.

        Args:
            sample: a scheduler's state, `(B, C, H, W)`, after its `scale_model_input`.
            timestep: one for all, or `(B,)`; in [0, train_timesteps - 1].
            class_labels: for the network, where it knows classes.
            return_dict: whether the result has a name, or stands in a plain tuple.

        Raises:
            ValueError: if class labels are given and the network knows none.
        """
        score, sde = self._scored(class_labels), self.model.sde
        sample_dtype, device = sample.dtype, sample.device
        sample = sample.to(torch.promote_types(sample_dtype, torch.float32))
        ratio = self._ratio(timestep, device).expand(len(sample))
        t = sde.time_of_log_snr(-2.0 * (self._half_width * ratio).log())
        alpha, sigma = (v[:, None, None, None] for v in sde.marginal(t))
        spread = (1.0 + ratio.square()).sqrt()[:, None, None, None]
        x = alpha * (self._centre + self._half_width * spread * sample)
        out = (-sigma * score(x, t)).to(sample_dtype)
        return DiffusersOutput(out) if return_dict else (out,)

    def _ratio(self, timestep: Tensor | float, device: torch.device) -> Tensor:
        """The noise-to-signal ratio at a timestep, between whole numbers too."""
        if self.ratios.device != device:
            self.ratios = self.ratios.to(device)
        last = len(self.ratios) - 1
        place = torch.as_tensor(timestep, device=device, dtype=self.ratios.dtype).clamp(0, last)
        below = place.floor().long()
        above = (below + 1).clamp(max=last)
        return torch.lerp(self.ratios[below], self.ratios[above], place - below)

    def _scored(self, class_labels: Tensor | None) -> Any:
        if class_labels is None:
            return self.model.score
        if self._classes is None:
            raise ValueError("this model knows no classes: leave class_labels out")
        return self._score_model().given(**{self._classes: class_labels}).score
