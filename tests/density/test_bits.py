import math

import pytest
import torch

from softtrunc.density import Density, bits_per_dim, check_on_grid, mean_with_error


def density(nats, levels=None):
    zero = torch.zeros_like(nats)
    nfe = torch.full((len(nats),), 31)
    return Density(nats, zero, zero, nats, nfe, dim=12, levels=levels)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 4.5)])
def test_a_uniform_density_over_the_range_costs_all_bits(levels, value_range):
    nats = torch.tensor([12 * math.log(value_range[1] - value_range[0])], dtype=torch.float64)
    for bits in (
        bits_per_dim(nats, 12, levels=levels, value_range=value_range),
        density(nats).bits_per_dim(levels, value_range),
    ):
        assert bits.item() == pytest.approx(math.log2(levels), abs=1e-12)


def test_discrete_nats_have_no_offset():
    nats = torch.tensor([12 * math.log(2.0) * 3.25], dtype=torch.float64)
    assert density(nats, levels=256).bits_per_dim().item() == pytest.approx(3.25)
    with pytest.raises(ValueError, match="write levels=256"):
        density(nats, levels=256).bits_per_dim(levels=32)


@pytest.mark.parametrize(
    ("levels", "value_range", "dim"),
    [(1, (-1.0, 1.0), 2), (256, (1.0, 1.0), 2), (256, (0.0, math.inf), 2), (256, (0.0, 1.0), 0)],
)
def test_bad_numbers_are_refused(levels, value_range, dim):
    with pytest.raises(ValueError, match="need"):
        bits_per_dim(torch.zeros(1), dim, levels=levels, value_range=value_range)


def test_join():
    joined = Density.join([density(torch.ones(2)), density(torch.zeros(1))])
    assert joined.nats.tolist() == [1.0, 1.0, 0.0]
    assert joined.nfe.tolist() == [31, 31, 31]
    with pytest.raises(ValueError, match="of one dimension"):
        Density.join([density(torch.ones(2)), density(torch.ones(2), levels=256)])


def test_mean_with_error():
    found = mean_with_error(torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert found.mean == 3.0
    assert found.standard_error == pytest.approx(math.sqrt(10.0 / 3.0 / 4.0))
    assert found.n == 4
    assert math.isnan(mean_with_error(torch.ones(1)).standard_error)
    with pytest.raises(ValueError, match="no values"):
        mean_with_error(torch.ones(0))


RAW = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_levels(dtype):
    assert torch.equal(check_on_grid(RAW.to(dtype)), RAW)
    with pytest.raises(ValueError, match="allows 0 to 15"):
        check_on_grid(RAW.to(dtype), levels=16)
    with pytest.raises(ValueError, match="from -1"):
        check_on_grid(torch.tensor([[-1, 3]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_the_three_grids_are_known(value_range, dtype):
    low, high = value_range
    for share in (RAW / 255, (RAW + 0.5) / 256, RAW / 256):
        x = (low + (high - low) * share).to(dtype)
        assert torch.equal(check_on_grid(x, 256, value_range), RAW)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        ((RAW + torch.rand(RAW.shape)) / 128 - 1, "already dequantised"),
        ((RAW / 127.5 - 1) * 0.97, "resized in floating"),
        (RAW / 255 / 127.5 - 1, "normalised twice"),
        (RAW.float(), "pass them as integers"),
        (2 * (RAW / 127.5 - 1), "outside of value_range"),
        (torch.full((1, 2), torch.nan), "nan or inf"),
        (torch.zeros(0, 2), "empty"),
    ],
)
def test_data_that_have_no_bits_are_refused(x, why):
    with pytest.raises(ValueError, match=why):
        check_on_grid(x)
