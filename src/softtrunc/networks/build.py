"""From a configuration to a network, and from a network to what files say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from softtrunc.networks.config import ScoreUNetConfig
from softtrunc.networks.score_unet import ScoreUNet
from softtrunc.networks.unet2d import UNET2D, UNet2DConfig, is_unet2d

NetworkConfig = ScoreUNetConfig | UNet2DConfig
"""What a network is built from; both know the `channels` and the `size` of the images."""


def build_network(config: NetworkConfig) -> nn.Module:
    """The network, with random weights from PyTorch's global generator.

    Raises:
        ValueError: if the configuration makes no network.
    """
    return ScoreUNet(config) if isinstance(config, ScoreUNetConfig) else config.build()


def output_of(network: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """What a network answers: a tensor, or the `.sample` of what those of diffusers return."""
    answer = network(x, label)
    return answer if isinstance(answer, Tensor) else answer.sample


def config_of(network: nn.Module) -> NetworkConfig | None:
    """What a network was built from; None of a stranger."""
    if isinstance(network, ScoreUNet):
        return network.config
    return UNet2DConfig.of(network) if is_unet2d(network) else None


def network_to_dict(network: nn.Module) -> dict[str, Any]:
    """The type of a network, and its configuration where this package can build it."""
    config = config_of(network)
    return {"type": type(network).__name__} | ({} if config is None else config.to_dict())


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """Inverse of `network_to_dict`, as far as the configuration.

    Raises:
        KeyError: naming a type that this package cannot build.
        ValueError: if the configuration makes no sense.
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], NetworkConfig]] = {
        ScoreUNet.__name__: ScoreUNetConfig.from_dict,
        UNET2D: UNet2DConfig,
    }
    make = kinds[values["type"]]
    return make({k: v for k, v in values.items() if k != "type"})
