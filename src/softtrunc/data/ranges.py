"""From data as their card says them to a model's range, back, and into pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from softtrunc.data.dataset import DataCard
from softtrunc.data.images.pixels import stretch_levels, to_model_range, to_uint8

# Channels of a tensor that a picture shows.
_SHOWN = 4


def to_model(
    stored: Shaped[Tensor, "b c h w"],
    card: DataCard,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    noise: Float[Tensor, "b c h w"] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Data as a model sees them: float32 in [low, high], on the device of `stored`.

    Levels go the way of `to_model_range`. Floats are mapped linearly, from the card's `value_range`
    to the model's.

    Args:
        stored: levels, or floats within the card's range.
        card: of the data.
        value_range: low and high of the model's data.
        noise: what fills the levels' cells; of floats none.

    Raises:
        ValueError: if floats are to be dequantised.
    """
    if card.value_range is None:
        return to_model_range(stored, levels=card.levels, value_range=value_range, noise=noise)
    if noise is not None:
        raise ValueError(f"{card.name}: floats have no levels, and no cells that noise fills")
    return _mapped(stored.float(), card.value_range, value_range)


def from_model(
    x: Float[Tensor, "b c h w"],
    card: DataCard,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    dequantized: bool = True,
) -> Shaped[Tensor, "b c h w"]:
    """Samples as data of a card: levels by `to_uint8`, or floats in the data's own units.

    Floats may lie outside of the card's `value_range`: nothing is clipped.

    Args:
        x: in the model's range.
        card: of the data.
        value_range: low and high of the model's data.
        dequantized: whether noise filled the levels' cells when the model was trained.
    """
    if card.value_range is None:
        levels = card.levels
        return to_uint8(x, levels=levels, value_range=value_range, dequantized=dequantized)
    return _mapped(x.float(), value_range, card.value_range)


def _mapped(
    x: Float[Tensor, "b c h w"], source: tuple[float, float], target: tuple[float, float]
) -> Float[Tensor, "b c h w"]:
    """The linear map that takes the ends of one range to those of the other."""
    (low, high), (to_low, to_high) = source, target
    return to_low + (to_high - to_low) * ((x - low) / (high - low))


def in_pictures(stored: Shaped[Tensor, "n c h w"], card: DataCard) -> UInt8[Tensor, "n k h wide"]:
    """Data as a person can look at them, with values 0 ... 255.

    Images are themselves. Of a tensor of floats the first four channels stand side by side in grey,
    from black at the low end of the card's range to white at the high one.
    """
    if card.value_range is None:
        return stretch_levels(stored, card.levels)
    grey = _mapped(stored[:, :_SHOWN].float(), card.value_range, (0.0, 255.0))
    tiles = torch.nn.functional.pad(
        grey.clamp(0.0, 255.0).round().to(torch.uint8), (0, 1), value=255
    )
    return tiles.movedim(1, 2).flatten(2)[:, None, :, :-1]
