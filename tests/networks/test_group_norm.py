"""Group normalisation in half precision, channels last: the same numbers by another way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softtrunc.networks.blocks import group_norm

# Of one rounding to bfloat16, relative to the norm of a whole tensor, the mean is 1.7e-3. The
# gradient of the weights is a sum of products that are rounded once.
ONE_ROUNDING = 2e-3


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm())


def in_float64(norm: nn.GroupNorm) -> nn.GroupNorm:
    exact = nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps).double()
    exact.load_state_dict(norm.state_dict())
    return exact


@pytest.mark.parametrize(("channels", "side"), [(128, 32), (128, 8), (48, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_float64(channels, side, dtype):
    torch.manual_seed(0)
    norm = group_norm(channels)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = (torch.randn(3, channels, side, side) + 0.5).to(dtype, memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    given = x.detach().requires_grad_()
    out = norm(given)
    assert type(out.grad_fn).__name__ == "_NarrowGroupsBackward"
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)

    wide, exact = x.double().requires_grad_(), in_float64(norm)
    truth = exact(wide)
    assert relative(out.detach(), truth.detach()) < ONE_ROUNDING
    found = torch.autograd.grad(out, [given, *norm.parameters()], gradient)
    wanted = torch.autograd.grad(truth, [wide, *exact.parameters()], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert relative(mine, right) < 2 * ONE_ROUNDING
    assert [mine.dtype for mine in found] == [dtype, torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("dtype", "layout", "channels"),
    [
        (torch.float32, torch.channels_last, 128),
        (torch.bfloat16, torch.contiguous_format, 128),
        (torch.bfloat16, torch.channels_last, 512),
    ],
)
def test_what_pytorch_does_quickly_is_left_to_it(dtype, layout, channels):
    x = torch.randn(2, channels, 4, 4).to(dtype, memory_format=layout).requires_grad_()
    assert type(group_norm(channels)(x).grad_fn).__name__ == "NativeGroupNormBackward0"


def test_a_gradient_of_the_gradient_is_refused_and_not_wrong():
    x = torch.randn(2, 128, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last)
    x.requires_grad_()
    (first,) = torch.autograd.grad(group_norm(128)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
