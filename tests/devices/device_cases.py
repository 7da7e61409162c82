"""Models, data and an accelerator that the tests of this folder put on a pretend device."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from pretend import move_module
from torch import nn

from softtrunc.data import ImageDataset
from softtrunc.score import ScoreModel
from softtrunc.sde import VESDE, VPSDE, ReciprocalVESDE, SubVPSDE, TabulatedVPSDE

SDES = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "rve": ReciprocalVESDE(),
    "table": TabulatedVPSDE.from_schedule(steps=50, beta_end=0.2),
}
SHAPE = (4, 1, 4, 4)


class Network(nn.Module):
    """Small, smooth and differentiable; it looks at its noise label, and at a class if told one."""

    def __init__(self, channels=1):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)
        self.classes = nn.Embedding(4, 1)
        self.calls = 0

    def forward(self, x, label, y=None):
        self.calls += 1
        h = torch.tanh(self.layer(x)) * torch.cos(label)[:, None, None, None]
        told = self.classes.weight[3:] if y is None else self.classes(y)
        return x + 0.1 * h + 0.1 * told[:, :, None, None]


def model(sde, channels=1, **told):
    """A score model of that network on the pretend device."""
    torch.manual_seed(0)
    return move_module(ScoreModel(Network(channels), sde, **told).eval())


def data(machine, dtype=torch.float32):
    return torch.rand(SHAPE, device=machine.device, dtype=dtype)


def images(*, labels=False, floats=False):
    """64 images on the CPU, of 17 levels or floats; with labels in three classes."""
    rng = np.random.default_rng(0)
    told = {"name": "x", "split": "train", "source": "x"}
    if labels:
        told |= {"labels": np.arange(64) % 3}
    if floats:
        values = rng.random((64, *SHAPE[1:]), dtype=np.float32)
        return ImageDataset.of_floats(values, value_range=(0.0, 1.0), **told)
    levels = rng.integers(0, 17, (64, *SHAPE[1:])).astype(np.uint8)
    return ImageDataset.create(levels, levels=17, **told)


class Alone(Accelerator):
    """What `fit` asks of accelerate, with one process on the pretend device."""

    device = num_processes = process_index = is_main_process = None

    def __init__(self, device):
        self.device = device
        self.num_processes, self.process_index, self.is_main_process = 1, 0, True

    def prepare_model(self, module, evaluation_mode=False):
        return module

    def backward(self, loss):
        loss.backward()

    def no_sync(self, module):
        return nullcontext()

    def reduce(self, x, reduction):
        return x


class AtOnce:
    """In the place of a thread, which would not see the pretend device."""

    def __init__(self, *_, **__): ...

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self, **_): ...
