"""The shape of a score U-Net, in plain values that JSON and YAML can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard, get_args, get_type_hints

from softtrunc.feedback.errors import nearest
from softtrunc.networks.blocks import Nonlinearity


class ImageSize(NamedTuple):
    """Height and width, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class ScoreUNetConfig:
    """Everything that determines a `ScoreUNet`.

    The name in the public score-SDE configuration files stands in parentheses.

    Attributes:
        image_size: pixels; one number for square images, else (height, width). Both sides are
            multiples of patch_size 2**(levels - 1).
        channels: of the image, 1 for grayscale (num_channels).
        patch_size: side of the square patches whose pixels become channels before the first
            level and pixels again after the last; 1: none. Small networks get faster by it.
        base_channels: width of the first level (nf).
        channel_multipliers: width of each level over `base_channels` (ch_mult).
        blocks_per_level: residual blocks per level on the way down, one more on the way up
            (num_res_blocks).
        attention_resolutions: attention on the levels whose shorter side is one of these
            (attn_resolutions); there is always attention in the middle.
        dropout: probability, in [0, 1).
        embedding: features of the noise label: "positional" sinusoids or random "fourier" ones
            (embedding_type).
        embedding_size: number of sinusoids or of Fourier frequencies; None: `base_channels`.
        fourier_scale: standard deviation of the Fourier frequencies.
        conditional: whether the blocks are told the noise level.
        num_classes: of the labels `y` that the network may be given; 0: none. Embeddings of
            labels, and of no label, are added to that of the noise.
        vector_size: of the vectors that the network may be given beside or instead of a label;
            0: none.
        residual_block: "biggan" resamples inside residual blocks, "ddpm" between them
            (resblock_type).
        resample_with_conv: "ddpm" blocks only: a convolution with each resampling
            (resamp_with_conv).
        fir: resample with a FIR low-pass filter rather than 2x2 averages and repetition.
        fir_kernel: its taps, an even number of them and at least 4.
        input_pyramid: how smaller copies of the input enter the levels (progressive_input).
        input_combine: of "input_skip": add to the features or stand beside them
            (progressive_combine).
        output_pyramid: "output_skip": every level adds to the output (progressive).
        skip_rescale: divide each sum of two branches by sqrt(2).
        init_scale: of last convolutions; 0 means almost zero.
        nonlinearity: activation function.
        checkpoint_activations: keep only the input of each block and compute the rest again in
            the backward pass: less memory for about a third more time.
    """

    image_size: int | tuple[int, int]
    channels: int = 3
    patch_size: int = 1
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks_per_level: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    embedding: Literal["positional", "fourier"] = "positional"
    embedding_size: int | None = None
    fourier_scale: float = 16.0
    conditional: bool = True
    num_classes: int = 0
    vector_size: int = 0
    residual_block: Literal["biggan", "ddpm"] = "biggan"
    resample_with_conv: bool = True
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    input_pyramid: Literal["none", "residual", "input_skip"] = "none"
    input_combine: Literal["sum", "cat"] = "sum"
    output_pyramid: Literal["none", "output_skip"] = "none"
    skip_rescale: bool = True
    init_scale: float = 0.0
    nonlinearity: Nonlinearity = "silu"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check_value(field.name, getattr(self, field.name), hints[field.name])
        _check_sides(self)

    @property
    def size(self) -> ImageSize:
        """Height and width of the images."""
        if isinstance(self.image_size, int):
            return ImageSize(self.image_size, self.image_size)
        return ImageSize(*self.image_size)

    @property
    def grid(self) -> ImageSize:
        """Height and width of the first level's features."""
        height, width = self.size
        return ImageSize(height // self.patch_size, width // self.patch_size)

    @property
    def patch_channels(self) -> int:
        """Channels of the image as the levels see it."""
        return self.channels * self.patch_size**2

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.channel_multipliers)

    @property
    def embedding_width(self) -> int | None:
        """Size of the noise embedding that the blocks see; None if they see none."""
        return 4 * (self.embedding_size or self.base_channels) if self.conditional else None

    @property
    def taps(self) -> tuple[float, ...] | None:
        """Taps of the FIR filter, or None where no filter is used."""
        return self.fir_kernel if self.fir else None

    def attention_at(self, level: int) -> bool:
        """Whether the blocks of this level (0 is the first) are followed by attention."""
        return min(self.grid) // 2**level in self.attention_resolutions

    def to_dict(self) -> dict[str, Any]:
        """Plain values (lists rather than tuples), for JSON or YAML."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreUNetConfig:
        """Inverse of `to_dict`; lists stand for tuples.

        Raises:
            ValueError: a key is unknown, `image_size` is missing, or a value is not allowed.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = nearest(str(name), known, cutoff=0.4)
                raise ValueError(f"network configuration: unknown key '{name}'; {hint}")
        if "image_size" not in values:
            raise ValueError("network configuration: 'image_size' is missing")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_natural(value: object) -> TypeGuard[int]:
    return (value == 0 and type(value) is int) or _is_count(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(_is_count, value))


MOST_BLOCKS = 1000
"""No network has more; building one that a damaged file describes would not end."""

# What a field's value must be, where its type does not say it.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "init_scale": (lambda v: _is_number(v) and v >= 0, "a number >= 0"),
    "fourier_scale": (lambda v: _is_number(v) and v > 0, "a number > 0"),
    "fir_kernel": (
        lambda v: isinstance(v, tuple) and all(map(_is_number, v)) and sum(v) != 0,
        "numbers whose sum is not 0",
    ),
    "embedding_size": (
        lambda v: v is None or (_is_count(v) and v >= 4 and v % 2 == 0),
        "an even whole number >= 4, or null for base_channels",
    ),
    "image_size": (
        lambda v: _is_count(v) or (_are_counts(v) and len(v) == 2),
        "a positive whole number or a pair (height, width)",
    ),
    "num_classes": (_is_natural, "a whole number >= 0"),
    "vector_size": (_is_natural, "a whole number >= 0"),
    "channel_multipliers": (
        lambda v: _are_counts(v) and len(v) > 0,
        "positive whole numbers, at least one level",
    ),
    "attention_resolutions": (_are_counts, "positive whole numbers"),
}


def _check_value(name: str, value: object, hint: object) -> None:
    """Refuse a value of the wrong type or outside its range."""
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        right, what = value in choices, f"one of {', '.join(choices)}"
    elif hint is bool:
        right, what = isinstance(value, bool), "true or false"
    else:
        rule, what = _RULES.get(name, (_is_count, "a positive whole number"))
        right = rule(value)
    if not right:
        raise ValueError(f"network configuration: {name} = {value!r} must be {what}")


def _check_sides(config: ScoreUNetConfig) -> None:
    """Refuse sizes that the levels cannot halve, and widths that the embedding cannot use."""
    blocks = config.levels * config.blocks_per_level
    if blocks > MOST_BLOCKS:
        raise ValueError(
            f"network configuration: {config.levels} levels of {config.blocks_per_level} blocks "
            f"are more than {MOST_BLOCKS:,} blocks"
        )
    factor = config.patch_size * 2 ** (config.levels - 1)
    patches = f"cut into {config.patch_size}s and " if config.patch_size > 1 else ""
    for side, pixels in zip(ImageSize._fields, config.size, strict=True):
        if pixels % factor:
            lower = pixels // factor * factor
            allowed = f"{lower} or {lower + factor}" if lower else f"{factor}"
            raise ValueError(
                f"network configuration: image {side} {pixels} cannot be {patches}halved "
                f"{config.levels - 1} times for {config.levels} levels; use a multiple of "
                f"{factor} (nearest: {allowed}) or fewer channel_multipliers"
            )
    if not config.conditional and (config.num_classes or config.vector_size):
        raise ValueError(
            "network configuration: num_classes and vector_size need conditional = true: what the "
            "network is told is added to the embedding of the noise"
        )
    if len(config.fir_kernel) < 4 or len(config.fir_kernel) % 2:
        raise ValueError(
            f"network configuration: fir_kernel = {config.fir_kernel} must have an even number of "
            "taps, at least 4 (box filter: fir = false)"
        )
    if config.embedding_size is None and (config.base_channels < 4 or config.base_channels % 2):
        raise ValueError(
            f"network configuration: base_channels = {config.base_channels} must be even and "
            "at least 4, or give embedding_size"
        )
