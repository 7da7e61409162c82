"""FIR resampling against sums written out by hand in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from softtrunc.networks.resample import (
    AverageDownsample,
    ConvDownsample,
    ConvUpsample,
    FIRDownsample,
    FIRUpsample,
    NearestUpsample,
)

TAPS = [(1, 3, 3, 1), (1, 2, 5, 4), (1, 5, 10, 10, 5, 1)]


def filtered(z: np.ndarray, taps: tuple[float, ...], before: int, after: int) -> np.ndarray:
    """Convolution of `z` (last axis), padded with zeros, with the normalised taps."""
    k = np.array(taps, dtype=np.float64) / sum(taps)
    z = np.pad(z, [(0, 0)] * (z.ndim - 1) + [(before, after)])
    n = z.shape[-1] - len(k) + 1
    return np.stack(
        [sum(z[..., o + j] * k[len(k) - 1 - j] for j in range(len(k))) for o in range(n)], axis=-1
    )


def halved(x: np.ndarray, taps: tuple[float, ...]) -> np.ndarray:
    pad = len(taps) - 2
    return filtered(x, taps, (pad + 1) // 2, pad // 2)[..., ::2]


def doubled(x: np.ndarray, taps: tuple[float, ...]) -> np.ndarray:
    """Polyphase form: even outputs see the odd taps, odd outputs the even ones."""
    z = np.zeros((*x.shape[:-1], 2 * x.shape[-1]))
    z[..., ::2] = 2 * x
    pad = len(taps) - 2
    return filtered(z, taps, (pad + 1) // 2 + 1, pad // 2)


def on_both_axes(one_axis, x: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
    rows = one_axis(x.numpy(), taps)
    return torch.from_numpy(one_axis(rows.swapaxes(-1, -2), taps).swapaxes(-1, -2).copy())


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize(("layer", "truth"), [(FIRDownsample, halved), (FIRUpsample, doubled)])
def test_fir_equals_direct_polyphase_sum(image, taps, layer, truth) -> None:
    module = layer(taps).double()
    module.kernel.copy_(
        torch.outer(*2 * [torch.tensor(taps, dtype=torch.float64)])[None, None] / sum(taps) ** 2
    )
    torch.testing.assert_close(
        module(image), on_both_axes(truth, image, taps), rtol=1e-12, atol=1e-12
    )


def test_kernel_is_exact_in_half_precision() -> None:
    kernel = FIRDownsample((1, 3, 3, 1)).kernel
    assert kernel.sum() == 1
    assert torch.equal(kernel.bfloat16().float(), kernel)


@pytest.mark.parametrize("layer", [FIRDownsample((1, 3, 3, 1)), FIRUpsample((1, 3, 3, 1))])
def test_fir_keeps_a_constant_away_from_the_frame(layer) -> None:
    out = layer(torch.full((1, 2, 8, 8), 3.0))
    torch.testing.assert_close(out[..., 1:-1, 1:-1], torch.full_like(out[..., 1:-1, 1:-1], 3.0))


def test_box_filters(image) -> None:
    x = image.numpy()
    means = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(AverageDownsample()(image), torch.from_numpy(means))
    repeated = x.repeat(2, axis=-1).repeat(2, axis=-2)
    torch.testing.assert_close(NearestUpsample()(image), torch.from_numpy(repeated))


@pytest.mark.parametrize("taps", TAPS)
def test_learned_fir_downsampling_filters_then_strides(image, taps) -> None:
    layer = ConvDownsample(3, 5, taps).double()
    layer.initialise(torch.manual_seed(1))
    pad = len(taps)
    one_axis = lambda x, k: filtered(x, k, (pad + 1) // 2, pad // 2)  # noqa: E731
    smooth = on_both_axes(one_axis, image, taps)
    want = functional.conv2d(smooth, layer.conv.weight, layer.conv.bias, stride=2)
    torch.testing.assert_close(layer(image), want, rtol=1e-6, atol=1e-6)
    assert layer(image).shape == (2, 5, 4, 6)


@pytest.mark.parametrize("taps", TAPS)
def test_learned_fir_upsampling_commutes_with_its_convolution(image, taps) -> None:
    """Zeros, convolution (all of its extent), filter: the order of the public code."""
    layer = ConvUpsample(3, taps).double()
    layer.initialise(torch.manual_seed(1))
    z = torch.zeros(2, 3, 15, 23, dtype=torch.float64)
    z[..., ::2, ::2] = 4 * image
    wide = functional.conv2d(z, layer.conv.weight, padding=2).detach()
    pad = len(taps) - 4
    one_axis = lambda x, k: filtered(x, k, (pad + 1) // 2 + 1, pad // 2 + 1)  # noqa: E731
    want = on_both_axes(one_axis, wide, taps)
    torch.testing.assert_close(layer(image).detach(), want, rtol=1e-6, atol=1e-6)


def test_learned_resampling_without_filter(image) -> None:
    down, up = ConvDownsample(3, 5, None).double(), ConvUpsample(3, None).double()
    padded = functional.pad(image, (0, 1, 0, 1))
    want = functional.conv2d(padded, down.conv.weight, down.conv.bias, stride=2)
    torch.testing.assert_close(down(image), want)
    repeated = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
    want = functional.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
    torch.testing.assert_close(up(image), want)
