"""The pretend device itself: what it refuses, and what it counts."""

from __future__ import annotations

import pytest
import torch
from device_cases import SHAPE, data


def test_the_pretend_device_refuses_what_a_real_one_does(machine):
    x, on_cpu = data(machine), torch.rand(SHAPE)
    with pytest.raises(RuntimeError, match="both devices"):
        x + on_cpu
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=machine.device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="not pinned"):
        on_cpu.to(machine.device, non_blocking=True)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    before = machine.waits.total()
    float(x.sum()), x[x > 0.5], x.tolist(), on_cpu.to(machine.device)
    assert machine.waits.total() == before + 4
    if machine.device.type == "mps":
        for cast in (x.double, lambda: x.to("cpu", torch.float64)):
            with pytest.raises(TypeError, match="float64"):
                cast()
        torch.special.log_ndtr(x)
        assert list(machine.missing_kernels()) == ["special_log_ndtr.default"]
        machine.kernels.clear()


@pytest.mark.parametrize("step", ["host", "device"])
def test_one_kernel_for_all_parameters_takes_no_counter_of_the_host(machine, step):
    parameter = torch.nn.Parameter(data(machine))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = data(machine)
    optimizer.step()
    slots = optimizer.state[parameter]
    assert slots["step"].device == machine.device
    if step == "host":
        slots["step"] = slots["step"].cpu()
        with pytest.raises(RuntimeError, match="both devices"):
            optimizer.step()
    else:
        optimizer.step()
        assert slots["step"].item() == 2.0


@pytest.mark.parametrize("join", [torch.stack, torch.cat])
def test_numbers_of_the_host_are_joined_with_none_of_the_device(machine, join):
    there = data(machine).mean()
    pair = [there, torch.zeros(())] if join is torch.stack else [there[None], torch.zeros(1)]
    with pytest.raises(RuntimeError, match="both devices"):
        join(pair)
