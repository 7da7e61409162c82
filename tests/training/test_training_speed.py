"""What is asked of a device to be quick: in force while it trains, and nowhere in what is saved."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from training_small import SmallNetwork, small_data, small_objective, weights

from softtrunc import VPSDE, ScoreModel
from softtrunc.jobs import train as job
from softtrunc.recipes import UserError, load_recipe
from softtrunc.training import TrainingConfig, TrainState, fit, load_checkpoint, save_checkpoint
from softtrunc.training.speed import fast_kernels, lay_channels_last, prefers_channels_last

CONFIG = TrainingConfig(batch_size=12, micro_batch_size=6, warmup_steps=0, learning_rate=1e-2)
CHANNELS = 3  # of one channel every layout is channels-last


def flags():
    cudnn = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_kernels_are_quick_on_cuda_and_within_the_block_alone(tf32, precision):
    before = flags()
    with fast_kernels(torch.device("cuda"), tf32=tf32):
        assert flags() == (precision, tf32, True)
    assert flags() == before
    with fast_kernels(torch.device("cpu"), tf32=tf32):
        assert flags() == before
    with pytest.raises(KeyError), fast_kernels(torch.device("cuda"), tf32=tf32):
        raise KeyError
    assert flags() == before


def test_the_layout_is_that_which_was_measured_to_be_faster():
    wide, cpu = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 3)), torch.device("cpu")
    assert prefers_channels_last(wide, cpu)
    assert not prefers_channels_last(SmallNetwork(), cpu)
    assert not prefers_channels_last(wide, torch.device("cuda"))


# Pages that the system cleared in the tenth of several rounds of freeing and taking 24 MiB.
FAULTS = """
import sys, resource, torch
from softtrunc.training.speed import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(1 << 20) for _ in range(6)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_a_step_frees_stays_for_the_next_one():
    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        # glibc's own thresholds, held: as it adapts them, what is left may stay by chance.
        fixed = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | fixed
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
        return int(done.stdout)

    assert faults("keep") < 100 < 1000 < faults("leave")


def trained(steps, state=None, *, channels_last=True):
    if state is None:
        torch.manual_seed(0)
        model = ScoreModel(SmallNetwork(CHANNELS), VPSDE())
        if channels_last:
            lay_channels_last(model.network)
        state = TrainState.create(model, CONFIG)
    data = small_data(channels=CHANNELS)
    accelerator = Accelerator(cpu=True)
    list(fit(state, small_objective(), data, CONFIG, steps=steps, accelerator=accelerator))
    return state


def test_weights_moments_and_average_share_a_layout_and_a_checkpoint_has_none(tmp_path):
    state = trained(2)
    weight = state.model.network.first.weight
    slots = state.optimizer.state[weight]
    average = state.ema.shadow["network.first.weight"]
    for tensor in (weight, weight.grad, average, slots["exp_avg"], slots["exp_avg_sq"]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    path = save_checkpoint(tmp_path, state)
    for name in ("model", "ema", "optimizer"):
        saved = load_file(path / f"{name}.safetensors")
        assert all(value.is_contiguous() for value in saved.values())
    # It goes on in the same bits, and in the other layout to the same numbers.
    straight = weights(trained(5, state))
    for channels_last, rtol, atol in ((True, 0.0, 0.0), (False, 1e-4, 1e-5)):
        again = trained(0, channels_last=channels_last)
        load_checkpoint(path, again)
        for name, value in weights(trained(5, again)).items():
            torch.testing.assert_close(value, straight[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("wanted", [None, True])
def test_a_recipe_is_trained_so(tmp_path, monkeypatch, wanted):
    """With the flags of a GPU, and the layout of the CPU that it is."""
    seen = {}

    def fit_seen(state, *args, real=job.fit, **options):
        convolutions = (m.weight for m in state.model.modules() if isinstance(m, torch.nn.Conv2d))
        seen["layouts"] = {
            weight.is_contiguous(memory_format=torch.channels_last)
            for weight in convolutions
            if weight.shape[1] > 1 and weight.shape[2] > 1  # else the layouts are the same one
        }
        seen["flags"] = flags()
        return real(state, *args, **options)

    real = job.fast_kernels
    monkeypatch.setattr(job, "fit", fit_seen)
    monkeypatch.setattr(
        job, "fast_kernels", lambda device, **options: real(torch.device("cuda"), **options)
    )
    settings = ["network.options={base_channels: 8}", "training.batch_size=4", "training.steps=1"]
    settings += ["training.samples=1", "training.sample_every=null"]
    settings += [] if wanted is None else ["training.channels_last=true"]
    before = flags()
    job.train(load_recipe("digits-vp-nll-st", settings), tmp_path / "run")
    assert seen == {"layouts": {wanted is not None}, "flags": ("high", True, True)}
    assert flags() == before


def test_shards_cannot_have_it():
    with pytest.raises(UserError, match="channels_last: true cannot be had with shard: true"):
        load_recipe("digits-vp-nll-st", ["training.shard=true", "training.channels_last=true"])
