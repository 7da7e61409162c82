"""Dropout's masks: how many, where, and what becomes of the rest."""

from __future__ import annotations

import math

import pytest
import torch

from softtrunc.networks.dropout import dropout

COUNT = 1 << 20


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_p_in_both_halves_of_a_draw(p):
    torch.manual_seed(0)
    zeros = dropout(torch.ones(COUNT), p) == 0.0
    for half in (zeros[0::2], zeros[1::2]):
        # 5 standard errors: wrong once in two million seeds.
        assert abs(half.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / (COUNT / 2))
    # Neighbours come of one draw, and are independent all the same.
    both = (zeros[0::2] & zeros[1::2]).double().mean()
    assert abs(both - p * p) < 5 * math.sqrt(p * p * (1 - p * p) / (COUNT / 2))


def test_what_stays_is_divided_by_the_share_that_stays_and_so_is_its_gradient():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 3).to(memory_format=torch.channels_last).requires_grad_()
    out = dropout(x, 0.25)
    assert out.stride() == x.stride()
    kept = out != 0.0
    assert 0 < kept.sum() < x.numel()
    torch.testing.assert_close(out[kept], x[kept] / 0.75)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, kept / 0.75)


def test_the_global_seed_decides_the_mask():
    torch.manual_seed(1)
    first = dropout(torch.ones(101, dtype=torch.bfloat16), 0.3)
    assert not torch.equal(dropout(torch.ones_like(first), 0.3), first)
    torch.manual_seed(1)
    assert torch.equal(dropout(torch.ones_like(first), 0.3), first)


def test_probability_zero_keeps_all():
    assert torch.equal(dropout(torch.ones(1000), 0.0), torch.ones(1000))
