"""The score U-Net: one network of which every network of the paper is a configuration.

NCSN++ and DDPM++ of Song et al. (arXiv 2011.13456, appendix H). The order of the modules, and so
of `parameters()`, is the order in which they act, which is also the order of public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from softtrunc.networks.blocks import (
    AttentionBlock,
    ImageHead,
    InputSkip,
    OutputSkip,
    ResidualBlock,
    ResidualPyramid,
    activation,
)
from softtrunc.networks.config import ScoreUNetConfig
from softtrunc.networks.embeddings import (
    ConditionEmbedding,
    FourierFeatures,
    NoiseEmbedding,
    SinusoidalFeatures,
)
from softtrunc.networks.initial import Initialisable, fan_avg_uniform_
from softtrunc.networks.resample import ConvDownsample, ConvUpsample, downsampler, upsampler


class Stage(nn.Module):
    """A residual block, followed by attention where the level has it."""

    def __init__(self, block: ResidualBlock, attention: AttentionBlock | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, h: Tensor, embedding: Tensor | None, skip: Tensor | None = None) -> Tensor:
        """Features of the same size; on the way up `skip` is what the way down left."""
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        h = self.block(h, embedding)
        return h if self.attention is None else self.attention(h)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(
        self, block1: ResidualBlock, attention: AttentionBlock, block2: ResidualBlock
    ) -> None:
        super().__init__()
        self.block1 = block1
        self.attention = attention
        self.block2 = block2

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        """Features of the same size."""
        out: Tensor = self.block2(self.attention(self.block1(h, embedding)), embedding)
        return out


class PlainResampling(nn.Module):
    """A resampling between "ddpm" blocks: it does not see the noise level."""

    def __init__(self, resample: nn.Module) -> None:
        super().__init__()
        self.resample = resample

    def forward(self, h: Tensor, _embedding: Tensor | None) -> Tensor:
        """Halved or doubled features."""
        out: Tensor = self.resample(h)
        return out


class DownLevel(nn.Module):
    """One resolution on the way down: stages, then (not at the last level) halving and pyramid."""

    def __init__(
        self, stages: list[Stage], downsample: nn.Module | None, pyramid: nn.Module | None
    ) -> None:
        super().__init__()
        self.stages = cast(Sequence[Stage], nn.ModuleList(stages))
        self.downsample = downsample
        self.pyramid = pyramid


class UpLevel(nn.Module):
    """One resolution on the way up: stages, an output where asked, then (not at the top) doubling.

    The last stage alone has attention.
    """

    def __init__(
        self, stages: list[Stage], output: OutputSkip | None, upsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.stages = cast(Sequence[Stage], nn.ModuleList(stages))
        self.output = output
        self.upsample = upsample


class _Parts:
    """Makes the parts of a network, all by the same configuration."""

    def __init__(self, config: ScoreUNetConfig) -> None:
        self.config = config
        self.widths = [config.base_channels * m for m in config.channel_multipliers]
        self.biggan = config.residual_block == "biggan"
        self.block = partial(
            ResidualBlock,
            embedding_width=config.embedding_width,
            nonlinearity=config.nonlinearity,
            dropout=config.dropout,
            init_scale=config.init_scale,
            shortcut_init_scale=1.0 if self.biggan else 0.1,
            rescale=config.skip_rescale,
        )
        self.attention = partial(
            AttentionBlock, init_scale=config.init_scale, rescale=config.skip_rescale
        )
        self.head = partial(
            ImageHead,
            out_channels=config.patch_channels,
            nonlinearity=config.nonlinearity,
            init_scale=config.init_scale,
        )

    def stage(self, in_channels: int, level: int, *, attend: bool) -> Stage:
        width = self.widths[level]
        attend = attend and self.config.attention_at(level)
        return Stage(self.block(in_channels, width), self.attention(width) if attend else None)

    def resampling(self, width: int, *, down: bool) -> nn.Module:
        taps = self.config.taps
        plain = downsampler(taps) if down else upsampler(taps)
        if self.biggan:
            return self.block(width, width, resample=plain)
        if self.config.resample_with_conv:
            plain = ConvDownsample(width, width, taps) if down else ConvUpsample(width, taps)
        return PlainResampling(plain)

    def pyramid(self, in_channels: int, width: int) -> nn.Module | None:
        config = self.config
        if config.input_pyramid == "residual":
            return ResidualPyramid(in_channels, width, config.taps, rescale=config.skip_rescale)
        if config.input_pyramid == "input_skip":
            return InputSkip(
                config.patch_channels, width, config.taps, combine=config.input_combine
            )
        return None


class ScoreUNet(Initialisable):
    """U-Net from a noisy image and a noise label to an image, in the units its owner chooses.

    What goes in and what comes out is settled by `ScoreModel`: the label (999 t, log sigma, ...),
    the range of the image and the scale of the result.

    Args:
        config: the shape of the network.
        generator: source of the initial weights; default: the global one.
    """

    def __init__(
        self, config: ScoreUNetConfig, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Built without memory, since every weight is drawn below by our own rule.
        with torch.device("meta"):
            self._build(config)
        if device.type == "meta":
            return
        # As `to_empty`, which for its `empty_like` of the meta device imports half of sympy.
        self._apply(  # type: ignore[no-untyped-call]
            lambda made: torch.empty(made.shape, dtype=made.dtype, device=device)
        )
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif isinstance(module, Initialisable):
                module.initialise(generator)

    def _build(self, config: ScoreUNetConfig) -> None:
        parts = _Parts(config)
        self.embedding = _noise_embedding(config)
        self.input_conv = nn.Conv2d(config.patch_channels, config.base_channels, 3, padding=1)

        down = []
        width, pyramid_width = config.base_channels, config.patch_channels
        doubles = config.input_pyramid == "input_skip" and config.input_combine == "cat"
        skips = [width]
        for level in range(config.levels):
            stages = []
            for _ in range(config.blocks_per_level):
                stages.append(parts.stage(width, level, attend=True))
                width = parts.widths[level]
                skips.append(width)
            if level == config.levels - 1:
                down.append(DownLevel(stages, None, None))
                break
            halving = parts.resampling(width, down=True)
            down.append(DownLevel(stages, halving, parts.pyramid(pyramid_width, width)))
            pyramid_width = width
            width *= 2 if doubles else 1
            skips.append(width)
        self.down = cast(Sequence[DownLevel], nn.ModuleList(down))

        self.middle = Middle(
            parts.block(width, width), parts.attention(width), parts.block(width, width)
        )

        several_outputs = config.output_pyramid == "output_skip"
        up = []
        for level in reversed(range(config.levels)):
            stages = []
            for index in range(config.blocks_per_level + 1):
                last = index == config.blocks_per_level
                stages.append(parts.stage(width + skips.pop(), level, attend=last))
                width = parts.widths[level]
            output = (
                OutputSkip(parts.head(width), upsampler(config.taps)) if several_outputs else None
            )
            doubling = parts.resampling(width, down=False) if level != 0 else None
            up.append(UpLevel(stages, output, doubling))
        self.up = cast(Sequence[UpLevel], nn.ModuleList(up))
        self.head = None if several_outputs else parts.head(width)

        self.told: ConditionEmbedding | None = None
        if config.embedding_width is not None and (config.num_classes or config.vector_size):
            self.told = ConditionEmbedding(
                config.num_classes, config.vector_size, config.embedding_width
            )

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights of the first convolution."""
        fan_avg_uniform_(self.input_conv, generator=generator)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        c: Float[Tensor, " b"],
        *,
        y: Int[Tensor, " b"] | None = None,
        vector: Float[Tensor, "b size"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Image of the same shape and dtype as `x`.

        Args:
            x: images, usually in [-1, 1] before noise was added, of the configured size.
            c: noise label of each image.
            y: class of each image, 0 ... num_classes - 1; `num_classes`, or no y at all, for
                images of any class.
            vector: what else each image is to follow, `(B, vector_size)`; None: nothing.

        Raises:
            ValueError: x, c, y or vector has another shape than the configuration says.
        """
        expected = (self.config.channels, *self.config.size)
        if x.shape[1:] != expected:
            raise ValueError(
                f"network input has shape {tuple(x.shape)}; this network takes (batch, "
                f"{', '.join(map(str, expected))}): resize the images or set image_size, channels"
            )
        if c.shape != x.shape[:1]:
            raise ValueError(
                f"noise label has shape {tuple(c.shape)}; give one per image: ({x.shape[0]},)"
            )
        embedding = self._embed(c, y, vector)
        patch = self.config.patch_size
        pyramid = x if patch == 1 else functional.pixel_unshuffle(x, patch)
        h = self.input_conv(pyramid)

        skips = [h]
        for level in self.down:
            for stage in level.stages:
                h = self._run(stage, h, embedding)
                skips.append(h)
            if level.downsample is not None:
                h = self._run(level.downsample, h, embedding)
                if level.pyramid is not None:
                    pyramid, h = level.pyramid(pyramid, h)
                skips.append(h)

        h = self._run(self.middle, h, embedding)

        image: Tensor | None = None
        for rise in self.up:
            for stage in rise.stages:
                h = self._run(stage, h, embedding, skips.pop())
            if rise.output is not None:
                image = rise.output(h, image)
            if rise.upsample is not None:
                h = self._run(rise.upsample, h, embedding)
        if self.head is not None:
            image = self.head(h)
        out = cast(Tensor, image).to(x.dtype)
        return out if patch == 1 else functional.pixel_shuffle(out, patch)

    def _embed(self, c: Tensor, y: Tensor | None, vector: Tensor | None) -> Tensor | None:
        """What the blocks are told: the noise level, and what else the network is given."""
        for name, value, field in (("y", y, "num_classes"), ("vector", vector, "vector_size")):
            if value is not None and not getattr(self.config, field):
                raise ValueError(f"{name}: this network takes none: build it with {field} > 0")
        if self.embedding is None:
            return None
        told = None if self.told is None else self.told(len(c), y, vector)
        return cast(Tensor, self.embedding(c, told))

    def _run(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Apply `module`, keeping only its inputs for the backward pass if so configured."""
        out: Tensor
        if self.config.checkpoint_activations and torch.is_grad_enabled():
            out = checkpoint(module, *inputs, use_reentrant=False)
        else:
            out = module(*inputs)
        return out


def _noise_embedding(config: ScoreUNetConfig) -> NoiseEmbedding | None:
    """Embedding of the noise label, or None for a network that is not told it."""
    width = config.embedding_width
    if width is None:
        return None
    size = config.embedding_size or config.base_channels
    nonlinearity = activation(config.nonlinearity)
    if config.embedding == "fourier":
        return NoiseEmbedding(
            FourierFeatures(size, config.fourier_scale), 2 * size, width, nonlinearity
        )
    return NoiseEmbedding(SinusoidalFeatures(size), size, width, nonlinearity)
