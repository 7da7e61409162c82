"""Under which name, in which shape and in which order public checkpoints keep each weight.

The public networks keep all layers in one list `all_modules`, in the order in which they act. The
list is derived here from the network itself, part by part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softtrunc.networks import ScoreUNet, ScoreUNetConfig
from softtrunc.networks.blocks import (
    AttentionBlock,
    ImageHead,
    InputSkip,
    ResidualBlock,
    ResidualPyramid,
)
from softtrunc.networks.embeddings import FourierFeatures
from softtrunc.networks.resample import ConvDownsample, ConvUpsample
from softtrunc.networks.score_unet import PlainResampling, Stage

# The one public tensor without a gradient.
_FREQUENCIES = "W"


class PublicTensor(NamedTuple):
    """One tensor of a public checkpoint.

    - `key`: its name there, without the prefix `module.`.
    - `view`: the weight of our network, seen in the shape it has there; writing to it changes the
      network. On the meta device where the public network holds a weight that it never uses.
    - `trained`: whether the public code trains it, and hence averages it.
    """

    key: str
    view: Tensor
    trained: bool


def public_layout(network: ScoreUNet) -> list[PublicTensor]:
    """Every tensor that a public checkpoint of this network (on any device) holds, in its order."""
    return [
        PublicTensor(f"all_modules.{index}.{name}", view, trained=name != _FREQUENCIES)
        for index, tensors in enumerate(_modules(network))
        for name, view in tensors.items()
    ]


Tensors = dict[str, Tensor]


def _modules(network: ScoreUNet) -> Iterator[Tensors]:
    """The tensors of each public module; a module without weights still takes its number."""
    config = network.config
    yield from _embedding(network)
    yield _affine(network.input_conv)
    for level in network.down:
        for stage in level.stages:
            yield from _stage(stage, config)
        if level.downsample is not None:
            yield _resampling(level.downsample, config)
        if isinstance(level.pyramid, ResidualPyramid):
            yield _convolution(level.pyramid.down, config)
        elif isinstance(level.pyramid, InputSkip):
            yield _affine(level.pyramid.conv, "Conv_0")
    yield _residual(network.middle.block1, config)
    yield _attention(network.middle.attention)
    yield _residual(network.middle.block2, config)
    for rise in network.up:
        for stage in rise.stages:
            yield from _stage(stage, config)
        if rise.output is not None:
            yield from _head(rise.output.head)
        if rise.upsample is not None:
            yield _resampling(rise.upsample, config)
    if network.head is not None:
        yield from _head(network.head)


def _embedding(network: ScoreUNet) -> Iterator[Tensors]:
    config, embedding = network.config, network.embedding
    if config.embedding == "fourier":
        if embedding is None:
            yield {
                _FREQUENCIES: torch.empty(
                    config.embedding_size or config.base_channels, device="meta"
                )
            }
        elif isinstance(embedding.features, FourierFeatures):
            yield {_FREQUENCIES: embedding.features.frequencies}
    if embedding is not None:
        yield _affine(embedding.linear1)
        yield _affine(embedding.linear2)


def _stage(stage: Stage, config: ScoreUNetConfig) -> Iterator[Tensors]:
    yield _residual(stage.block, config)
    if stage.attention is not None:
        yield _attention(stage.attention)


def _residual(block: ResidualBlock, config: ScoreUNetConfig) -> Tensors:
    tensors = _affine(block.norm1, "GroupNorm_0") | _affine(block.conv1, "Conv_0")
    if block.noise is not None:
        tensors |= _affine(block.noise, "Dense_0")
    else:
        # A public network that is not told the noise level has the layer and passes it by.
        width = 4 * (config.embedding_size or config.base_channels)
        tensors |= _affine(nn.Linear(width, block.conv1.out_channels, device="meta"), "Dense_0")
    tensors |= _affine(block.norm2, "GroupNorm_1") | _affine(block.conv2, "Conv_1")
    if block.shortcut is not None:
        if config.residual_block == "biggan":
            tensors |= _affine(block.shortcut, "Conv_2")
        else:
            shortcut = dict(block.shortcut.named_parameters())
            tensors |= _channel_mixing(shortcut["weight"][:, :, 0, 0], shortcut["bias"], 0)
    return tensors


def _attention(attention: AttentionBlock) -> Tensors:
    tensors = _affine(attention.norm, "GroupNorm_0")
    channels = attention.qkv.in_features
    for index in range(3):
        rows = slice(index * channels, (index + 1) * channels)
        tensors |= _channel_mixing(attention.qkv.weight[rows], attention.qkv.bias[rows], index)
    return tensors | _channel_mixing(attention.out.weight, attention.out.bias, 3)


def _resampling(module: nn.Module, config: ScoreUNetConfig) -> Tensors:
    if isinstance(module, ResidualBlock):
        return _residual(module, config)
    if isinstance(module, PlainResampling):
        inner = module.resample
        if isinstance(inner, ConvDownsample | ConvUpsample):
            return _convolution(inner, config)
        return {}
    raise TypeError(f"no public counterpart of {type(module).__name__}")


def _convolution(module: ConvDownsample | ConvUpsample, config: ScoreUNetConfig) -> Tensors:
    return _affine(module.conv, "Conv2d_0" if config.fir else "Conv_0")


def _head(head: ImageHead) -> Iterator[Tensors]:
    yield from (_affine(head.norm), _affine(head.conv))


def _channel_mixing(weight: Tensor, bias: Tensor, index: int) -> Tensors:
    """A layer that mixes channels pixel by pixel, kept as (in, out)."""
    return {f"NIN_{index}.W": weight.T, f"NIN_{index}.b": bias}


def _affine(module: nn.Conv2d | nn.Linear | nn.GroupNorm, name: str | None = None) -> Tensors:
    """Weight and bias."""
    prefix = "" if name is None else f"{name}."
    return {f"{prefix}{part}": tensor for part, tensor in module.named_parameters()}
