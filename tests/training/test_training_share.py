"""A process draws its share of a step's numbers, which are the same however many share them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from training_small import small_data, small_objective, small_state

from softtrunc.training import TrainingConfig, fit

BATCH, PROCESSES = 240, 8


class Alone(Accelerator):
    """Says that it is one of several, and leaves out what they would exchange."""

    num_processes, process_index, device = 1, 0, torch.device("cpu")

    def __init__(self, processes: int = 1, index: int = 0) -> None:
        self.num_processes, self.process_index = processes, index

    def prepare_model(self, model, **options):
        return model

    def backward(self, loss):
        loss.backward()

    def no_sync(self, module):
        return nullcontext()


class Spy:
    def __init__(self):
        self.seen = []

    def draw(self, n, *, tau=None, generator=None):
        return small_objective().draw(n, tau=tau, generator=generator)

    def __call__(self, model, x, *, tau=None, draw=None, noise=None, generator=None):
        self.seen.append((x.clone(), noise.clone()))
        return small_objective()(model, x, draw=draw, noise=noise)


def step(accelerator):
    """The batch of the second step with its noise, as the loss sees them."""
    config = TrainingConfig(batch_size=BATCH)
    spy = Spy()
    list(fit(small_state(config), spy, small_data(), config, steps=2, accelerator=accelerator))
    return spy.seen[1]


@pytest.mark.parametrize("index", [0, 3, 7])
def test_each_process_draws_its_share_of_the_same_numbers(monkeypatch, index):
    x, noise = step(Alone())
    drawn = {"randn": 0, "rand": 0}

    def counting(name, real):
        def make(shape, **options):
            drawn[name] += 0 if isinstance(shape, int) else shape[0]  # the times: one a row
            return real(shape, **options)

        return make

    for name in drawn:
        monkeypatch.setattr(torch, name, counting(name, getattr(torch, name)))
    share = BATCH // PROCESSES
    ours, our_noise = step(Alone(PROCESSES, index))
    mine = slice(share * index, share * (index + 1))
    assert torch.equal(ours, x[mine])  # mirrored and dequantised alike
    assert torch.equal(our_noise, noise[mine])
    # Two steps, each with noise; flips and pixels are two streams. A block may lie half outside.
    assert drawn["randn"] <= 2 * (share + 30)
    assert drawn["rand"] <= 4 * (share + 30)


def test_no_two_examples_share_their_noise():
    _, noise = step(Alone())
    flat = noise.flatten(1)
    assert flat.unique(dim=0).shape == flat.shape
    # 8640 normal numbers: mean within 5 standard errors, variance within 5 of its own.
    assert abs(float(flat.mean())) < 5 / flat.numel() ** 0.5
    assert abs(float(flat.var()) - 1.0) < 5 * (2 / flat.numel()) ** 0.5
