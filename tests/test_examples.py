"""The training loops of examples/ do what they say: one tau a step, and the weights of one process.

Lightning and Hugging Face's Trainer are no part of the test extra: their examples run where the
libraries are installed.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from together import finish_together, start_together

from softtrunc.cli import main
from softtrunc.data import open_dataset
from softtrunc.objective import SoftTruncationLoss
from softtrunc.training import step_draw

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = 3

# Each process trains in the ways of the examples, and in the way that issues no warning and is
# wrong: the loss called past the wrapper.
SCENES = """
import sys
sys.path.insert(0, sys.argv[1])
import own_loop, own_loop_accelerate, own_loop_ddp, own_loop_fsdp
import torch
import torch.distributed as dist
from accelerate import Accelerator
from own_loop import LOSS, batch, new_model

steps = int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
own_loop.BATCH = own_loop_ddp.BATCH = own_loop_fsdp.BATCH = own_loop_accelerate.BATCH = 32

def past(steps):
    model = new_model()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    torch.manual_seed(rank)
    for step in range(steps):
        optimizer.zero_grad()
        LOSS(wrapped.module, batch(step, rank, 2)[0]).loss.mean().backward()
        optimizer.step()
    return model

def accelerated(steps):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    assert accelerator.num_processes == 2
    return own_loop_accelerate.train(steps, accelerator)

ways = {"ddp": own_loop_ddp.train, "fsdp": own_loop_fsdp.train, "accelerate": accelerated}
for name, train in (ways | {"past": past}).items():
    state = train(steps).state_dict()
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    torch.save(whole, f"{name}-{rank}.pt")
dist.barrier()
"""


@pytest.fixture
def example(monkeypatch):
    """Imports an example, with a small batch."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        module = importlib.import_module(name)
        for each in {module, importlib.import_module("own_loop")}:
            monkeypatch.setattr(each, "BATCH", 32)
        return module

    return load


def alone(own_loop):
    """The weights of one process that sees the whole batch of each step, and each step's tau."""
    model, taus = own_loop.new_model(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        x, noise = own_loop.batch(step)
        draw = step_draw(own_loop.LOSS, len(x), seed=own_loop.SEED, step=step)
        optimizer.zero_grad()
        own_loop.LOSS(model, x, draw=draw, noise=noise).loss.mean().backward()
        optimizer.step()
        taus.append(float(draw.tau))
    return model.state_dict(), taus


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.usefixtures("unchecked")
def test_the_plain_loop_trains_samples_and_measures(example, capsys, monkeypatch):
    own_loop = example("own_loop")
    monkeypatch.setattr(own_loop, "SAMPLES", 8)
    monkeypatch.setattr(own_loop, "HELD_OUT", 2)
    own_loop.main(2)
    assert "nats" in capsys.readouterr().out


def test_two_processes_arrive_where_one_does(example, tmp_path):
    truth, _ = alone(example("own_loop"))
    (tmp_path / "scenes.py").write_text(SCENES)
    words = ["scenes.py", str(EXAMPLES), str(STEPS)]
    ended = finish_together(start_together(words, tmp_path))
    assert [code for code, _, _ in ended] == [0, 0], ended
    both = {
        name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)]
        for name in ("ddp", "fsdp", "accelerate", "past")
    }
    for name in ("ddp", "fsdp", "accelerate"):
        assert largest_difference(*both[name]) == 0.0
        assert largest_difference(both[name][0], truth) < 1e-5
    # Past the wrapper the processes part: what the comparison above would show.
    assert largest_difference(*both["past"]) > 1e-4


def taus_of(train, monkeypatch):
    """Tau of every forward pass while `train` runs."""
    seen = []

    def call(self, *words, real=SoftTruncationLoss.__call__, **named):
        terms = real(self, *words, **named)
        seen.append(float(terms.tau))
        return terms

    monkeypatch.setattr(SoftTruncationLoss, "__call__", call)
    return seen, train()


def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def accelerate_left_alone():
    """accelerate keeps one global state a process; a test must leave none behind."""
    fresh_accelerate()
    yield
    fresh_accelerate()
    Accelerator(cpu=True)


@pytest.mark.usefixtures("accelerate_left_alone")
def test_accumulated_micro_batches_share_tau_and_arrive_where_one_batch_does(example, monkeypatch):
    truth, taus = alone(example("own_loop"))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    run = example("own_loop_accelerate")
    seen, model = taus_of(lambda: run.train(STEPS, accelerator), monkeypatch)
    assert seen == [tau for tau in taus for _ in range(4)]
    assert largest_difference(model.state_dict(), truth) < 1e-5


def check_shared(seen, taus):
    assert seen == [tau for tau in taus for _ in range(4)]
    assert all(a != b for a, b in pairwise(taus))


def test_lightning_draws_one_tau_a_step(example, monkeypatch, tmp_path):
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    _, taus = alone(example("own_loop"))
    run = example("own_loop_lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {**quiet, "enable_model_summary": False, "accelerator": "cpu"}
    monkeypatch.chdir(tmp_path)
    seen, module = taus_of(lambda: run.train(STEPS, **options), monkeypatch)
    check_shared(seen, taus)
    start = run.new_model().state_dict()
    assert largest_difference(module.terms.model.state_dict(), start) > 1e-3


@pytest.mark.usefixtures("accelerate_left_alone")
def test_hugging_face_trainer_draws_one_tau_a_step(example, monkeypatch, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    _, taus = alone(example("own_loop"))
    run = example("own_loop_trainer")
    options = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    seen, module = taus_of(lambda: run.train(STEPS, str(tmp_path), **options), monkeypatch)
    check_shared(seen, taus)
    assert largest_difference(module.model.state_dict(), run.new_model().state_dict()) > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_latents_are_learned_sampled_and_decoded(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    latents = importlib.import_module("latents")
    monkeypatch.setattr(latents, "BATCH", 16)
    latents.encode(tmp_path, steps=60)
    written = load_file(tmp_path / "latents.safetensors")
    assert written["x_train"].shape == (12_000, 4, 4, 4)
    assert written["x_test"].abs().max() <= latents.LIMIT
    run, samples = tmp_path / "run", tmp_path / "samples.npy"
    small = ["training={steps: 4, batch_size: 8, sample_every: 4, samples: 4}"]
    small += ["network.options={base_channels: 8}", "sampling.steps=3"]
    data = ("--data", str(tmp_path / "latents.safetensors"))
    settings = [word for each in small for word in ("--set", each)]
    train = ("train", str(EXAMPLES / "latents.yaml"), *data, *settings, "--out", str(run))
    assert main([*train]) == 0
    assert main(["sample", str(run), "-n", "5", "--out", str(samples)]) == 0
    for name in ("picture.png", "images.npz"):
        latents.decode(tmp_path, samples, tmp_path / name)
    assert (tmp_path / "picture.png").is_file()
    # What the recipe wrote is what the decoder takes: real latents come back as their images.
    images = torch.from_numpy(np.load(tmp_path / "images.npz")["images"])
    assert (images.dtype, images.shape) == (torch.uint8, (5, 16, 16, 1))
    np.save(samples, written["x_test"][:200].numpy())
    latents.decode(tmp_path, samples, tmp_path / "images.npz")
    back = np.load(tmp_path / "images.npz")["images"][..., 0].astype(float)
    real = open_dataset("fashion16", "test").images[:200, 0].astype(float)
    assert np.square(back - real).mean() < 0.5 * np.square(real - real.mean()).mean()
