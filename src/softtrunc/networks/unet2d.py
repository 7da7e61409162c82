"""diffusers' `UNet2DModel` as one of the networks that recipes and saved models can name.

The network is theirs, weights under their names. Of it this package knows the configuration alone,
and diffusers is imported when one is built.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from softtrunc.feedback.errors import nearest
from softtrunc.networks.config import MOST_BLOCKS, ImageSize

UNET2D = "UNet2DModel"
"""The name of the class."""


@dataclass(frozen=True)
class UNet2DConfig:
    """The configuration of a `UNet2DModel`: the arguments of its constructor.

    Args:
        values: the arguments; `sample_size`, `in_channels` and `out_channels` among them.

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
        ValueError: if an argument is unknown (the nearest one is named) or no value for it, or the
            sizes are missing.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        arguments = dict(inspect.signature(_unet2d().__init__).parameters)
        del arguments["self"]
        for name, value in self.values.items():
            if name not in arguments:
                raise ValueError(f"{UNET2D}: unknown argument '{name}'; {nearest(name, arguments)}")
            _check(name, value, arguments[name].default)
        if not self.values.get("sample_size"):
            raise ValueError(f"{UNET2D}: sample_size is missing: write the images' size in pixels")
        outputs = self.values.get("out_channels", self.channels)
        if outputs != self.channels:
            doubled = " (a learned variance?)" if outputs == 2 * self.channels else ""
            raise ValueError(
                f"{UNET2D}: out_channels = {outputs} for in_channels = {self.channels}{doubled}: "
                "need as many channels out as in"
            )

    def __hash__(self) -> int:
        return hash(repr(sorted(self.to_dict().items())))

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return int(self.values.get("in_channels", 3))

    @property
    def size(self) -> ImageSize:
        """Height and width of the images."""
        size = self.values["sample_size"]
        return ImageSize(size, size) if isinstance(size, int) else ImageSize(*size)

    @property
    def conditional(self) -> bool:
        """Whether the network must be given class labels."""
        return any(self.values.get(k) is not None for k in ("class_embed_type", "num_class_embeds"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values (lists rather than tuples), for JSON or YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.values.items()}

    def build(self) -> nn.Module:
        """The network, with random weights.

        Raises:
            ValueError: if the arguments do not make a network.
        """
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.values.items()}
        try:
            network: nn.Module = _unet2d()(**values)
        # What does not fit together fails wherever in their constructor it is used first.
        except (TypeError, ArithmeticError, LookupError, RuntimeError) as error:
            raise ValueError(f"{UNET2D}: {error}") from error
        return network

    @classmethod
    def of(cls, network: nn.Module) -> UNet2DConfig:
        """The configuration of a network that was built."""
        own: Any = network.config
        values = {k: v for k, v in dict(own).items() if not k.startswith("_")}
        return cls(cls(values).to_dict())


def _check(name: str, value: object, default: object) -> None:
    """Refuse what their constructor takes and should not, or would not end with."""
    numbers = value if isinstance(value, list | tuple) else (value,)
    if isinstance(default, bool) and not isinstance(value, bool):
        what = "true or false"
    elif any(isinstance(each, float) and not math.isfinite(each) for each in numbers):
        what = "a finite number"
    elif name == "layers_per_block" and not (isinstance(value, int) and 0 < value <= MOST_BLOCKS):
        what = f"a whole number of at most {MOST_BLOCKS:,}"
    else:
        return
    raise ValueError(f"{UNET2D}: {name} = {value!r}: need {what}")


def is_unet2d(network: nn.Module) -> bool:
    """Whether a network is diffusers' `UNet2DModel`, which is not imported for the question."""
    cls = type(network)
    return cls.__name__ == UNET2D and cls.__module__.startswith("diffusers.")


def _unet2d() -> Any:
    try:
        from diffusers import UNet2DModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"networks of diffusers ({UNET2D}) need the package diffusers: "
            "pip install 'softtrunc[hub]'"
        ) from error
    return UNet2DModel
