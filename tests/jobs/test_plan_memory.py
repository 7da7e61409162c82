"""The memory that a dry run promises beside what the system says a training took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The peak of two steps over what the process held before, and the estimate, in MiB. A training of
# one step comes first: it loads libraries.
TRAIN = """
import re, sys
from pathlib import Path
import numpy as np
from accelerate import Accelerator
from softtrunc.data import ImageDataset
from softtrunc.jobs.plan import estimate
from softtrunc.recipes import load_recipe
from softtrunc.recipes.build import build_model, build_objective, build_training
from softtrunc.training import TrainState, fit

def resident(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def train(recipe, size, steps):
    pixels = np.zeros((8, *size), dtype=np.uint8)
    data = ImageDataset.create(pixels, name="noise", split="train", source="made")
    model = build_model(recipe, channels=size[0], image_size=size[1:])
    config = build_training(recipe)
    state = TrainState.create(model, config)
    objective = build_objective(recipe)
    list(fit(state, objective, data, config, steps=steps, accelerator=Accelerator(cpu=True)))

train(load_recipe("digits-vp-nll", ["training.batch_size=2"]), (1, 8, 8), 1)
size = tuple(map(int, sys.argv[1].split("x")))
recipe = load_recipe("digits-vp-nll", sys.argv[2:])
cost = estimate(recipe, channels=size[0], image_size=size[1:])
before = resident("VmRSS")
train(recipe, size, 2)
print(resident("VmHWM") - before, (cost.state_bytes + cost.activation_bytes) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ("1x8x8", ["training.batch_size=768"]),
        ("3x16x16", ["network.preset=small", "training.batch_size=32"]),
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_peak(size, settings):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, size, *settings], capture_output=True, text=True, check=True
    )
    peak, promised = map(float, done.stdout.split())
    assert promised == pytest.approx(peak, rel=0.2)
