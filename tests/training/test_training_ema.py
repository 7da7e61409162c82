import pytest
import torch
from training_small import SmallNetwork

from softtrunc.training import EMA


def move(module, step):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(step)


def test_average_follows_the_warmed_up_recursion():
    module = SmallNetwork()
    ema = EMA(module, rate=0.3)
    expected = module.first.weight.detach().clone()
    for n in range(8):
        move(module, 1.0 + n)
        ema.update(module)
        rate = min(0.3, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * module.first.weight.detach()
        torch.testing.assert_close(ema.shadow["first.weight"], expected)
    assert ema.updates == 8


def test_buffers_and_frozen_parameters_are_left_alone():
    module = SmallNetwork()
    ema = EMA(module, rate=0.9)
    assert "frozen" not in ema.shadow
    assert "calls" not in ema.shadow
    module.calls.fill_(7.0)
    ema.update(module)
    ema.copy_to(module)
    assert float(module.calls) == 7.0
    assert float(module.frozen) == 1.0


def test_applied_puts_the_parameters_back_even_after_an_error():
    module = SmallNetwork()
    ema = EMA(module, rate=0.9)
    move(module, 1.0)
    own = module.first.weight.detach().clone()

    def fail():
        with ema.applied(module):
            assert torch.equal(module.first.weight, ema.shadow["first.weight"])
            assert not torch.equal(module.first.weight, own)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(module.first.weight, own)


def test_refusals():
    module = SmallNetwork()
    with pytest.raises(ValueError, match=r"ema_rate=1\.0"):
        EMA(module, rate=1.0)
    ema = EMA(module, rate=0.9)
    with pytest.raises(ValueError, match=r"do not fit the network: .*first\.weight"):
        ema.load({"first.weight": torch.zeros(1)}, updates=1)
