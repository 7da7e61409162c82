import pytest
import torch

from softtrunc.density import bin_centers, bin_index, check_on_grid, dequantize, spread_range

RAW = torch.randint(0, 256, (5, 400), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_noise_stays_within_its_bin_and_fills_it(value_range):
    low, high = value_range
    generator = torch.Generator().manual_seed(1)
    y = dequantize(RAW, 256, value_range, generator=generator, dtype=torch.float64)
    u = (y - low) / (high - low) * 256 - RAW
    assert u.min() >= 0.0
    assert u.max() <= 1.0
    # 2000 uniforms: five standard deviations of their mean and of their mean square.
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
    assert abs(u.square().mean() - 1 / 3) < 5 * (4 / 45 / 2000) ** 0.5
    assert dequantize(RAW, generator=generator).dtype == torch.float32


def test_seeds_make_an_example_independent_of_its_batch():
    whole = dequantize(RAW, seeds=range(5))
    assert torch.equal(dequantize(RAW[[3, 1]], seeds=[3, 1]), whole[[3, 1]])
    assert not torch.equal(dequantize(RAW, seeds=range(1, 6)), whole)
    first = dequantize(RAW, generator=torch.Generator().manual_seed(3))
    assert torch.equal(dequantize(RAW, generator=torch.Generator().manual_seed(3)), first)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_centers_and_their_inverse(levels):
    x = RAW % levels
    for dtype in (torch.float32, torch.float64):
        y = bin_centers(x, levels, (0.0, 1.0), dtype=dtype)
        assert torch.equal(bin_index(y, levels, (0.0, 1.0)), x)
        assert torch.equal(check_on_grid(y, levels, (0.0, 1.0)), x)
    with pytest.raises(ValueError, match="middle"):
        bin_index(y + 0.3 / levels, levels, (0.0, 1.0))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_spread_from_end_to_end_are_centres_of_a_wider_range(levels):
    x = torch.arange(levels)
    y = bin_centers(x, levels, spread_range(levels, (0.0, 1.0)), dtype=torch.float64)
    torch.testing.assert_close(y, x.double() / (levels - 1), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="at least 2"):
        spread_range(1)


def test_given_noise():
    zero = dequantize(RAW, noise=torch.zeros(RAW.shape))
    torch.testing.assert_close(zero, RAW / 128 - 1)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        dequantize(RAW, noise=torch.full(RAW.shape, 1.5))


def test_floats_and_wrong_seeds_are_refused(unchecked):
    with pytest.raises(ValueError, match="uint8"):
        dequantize(RAW.float())
    with pytest.raises(ValueError, match="2 of them for 5"):
        dequantize(RAW, seeds=[1, 2])
