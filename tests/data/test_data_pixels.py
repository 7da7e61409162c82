"""Grey levels to a model's range and back."""

from __future__ import annotations

import pytest
import torch

from softtrunc.data import stretch_levels, to_model_range, to_uint8

RANGES = [(-1.0, 1.0), (0.0, 1.0)]


def all_levels(levels: int) -> torch.Tensor:
    return torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_fills_its_own_cell(levels, value_range):
    low, high = value_range
    x = all_levels(levels)
    width = (high - low) / levels
    for u in (0.0, 0.25, 0.999):
        y = to_model_range(x, levels=levels, value_range=value_range, noise=torch.full(x.shape, u))
        expected = low + width * (torch.arange(levels, dtype=torch.float64) + u)
        assert torch.allclose(y.flatten().double(), expected, atol=2e-7, rtol=0)
        assert y.dtype == torch.float32


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_quantising_undoes_dequantising(levels, value_range):
    x = all_levels(levels).expand(500, 1, 1, levels)
    noise = 1e-3 + 0.998 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    y = to_model_range(x, levels=levels, value_range=value_range, noise=noise)
    assert torch.equal(to_uint8(y, levels=levels, value_range=value_range), x)


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_plain_levels_span_the_range_and_come_back(levels, value_range):
    x = all_levels(levels)
    y = to_model_range(x, levels=levels, value_range=value_range)
    assert (y.min(), y.max()) == value_range
    back = {"levels": levels, "value_range": value_range, "dequantized": False}
    assert torch.equal(to_uint8(y, **back), x)
    # Nearest level: anything within half a step comes back too.
    step = (value_range[1] - value_range[0]) / (levels - 1)
    assert torch.equal(to_uint8(y + 0.49 * step, **back), x)
    assert torch.equal(to_uint8(y - 0.49 * step, **back), x)


@pytest.mark.parametrize("dequantized", [True, False])
def test_samples_outside_the_range_are_clipped(dequantized):
    y = torch.tensor([-7.0, -1.0, 1.0, 7.0]).reshape(1, 1, 1, 4)
    levels = to_uint8(y, levels=17, dequantized=dequantized)
    assert levels.flatten().tolist() == [0, 0, 16, 16]


def test_stretched_levels_reach_from_black_to_white():
    assert stretch_levels(all_levels(17), 17).flatten().tolist() == [
        round(255 * i / 16) for i in range(17)
    ]
    assert torch.equal(stretch_levels(all_levels(256), 256), all_levels(256))
