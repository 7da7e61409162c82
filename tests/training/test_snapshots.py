"""Averages of any length out of a run's files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from training_small import SmallNetwork, small_data, small_objective, small_state

from softtrunc import VPSDE, ScoreModel
from softtrunc.training import (
    CheckpointError,
    TrainingConfig,
    fit,
    keep_averages,
    list_checkpoints,
    load_average,
    load_checkpoint,
    save_checkpoint,
)
from softtrunc.training.power_average import PowerAverages
from softtrunc.training.snapshots import MOST_SNAPSHOTS, step_of, thinned

CONFIG = TrainingConfig(batch_size=6, warmup_steps=0, learning_rate=1e-2, posthoc_ema=True)
STEPS = 40


def go_on(state, folder, steps, each=lambda state: None):
    """Train with a checkpoint after every fourth step, of which two stay."""
    accelerator, objective = Accelerator(cpu=True), small_objective()
    for record in fit(state, objective, small_data(), CONFIG, steps=steps, accelerator=accelerator):
        each(state)
        if record.step % 4 == 0:
            save_checkpoint(folder / "checkpoints", state, keep=2)
            keep_averages(state, folder / "checkpoints", folder / "averages")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, and what averages of three lengths are when they are followed."""
    folder, state = tmp_path_factory.mktemp("run"), small_state(CONFIG)
    followed = PowerAverages(state.model, (0.05, 0.07, 0.10))
    go_on(state, folder, STEPS, lambda state: followed.update(state.model, state.step))
    return folder, followed.shadows


def made(folder, length, step=STEPS):
    model = ScoreModel(SmallNetwork(), VPSDE())
    found = folder / "checkpoints" / f"step-{step:08d}"
    load_average(found, folder / "averages", model, length)
    return {name: value.detach() for name, value in model.named_parameters()}


def distance(one, other):
    return max(float((one[name] - value).abs().max()) for name, value in other.items())


@pytest.mark.parametrize("length", [0.05, 0.10])
def test_a_length_that_was_followed_comes_back(run, length):
    folder, followed = run
    assert distance(made(folder, length), followed[length]) < 1e-6


def test_another_length_comes_near_and_is_another_one(run):
    folder, followed = run
    near = distance(made(folder, 0.07), followed[0.07])
    assert near < 0.1 * min(distance(followed[each], followed[0.07]) for each in (0.05, 0.10))


def test_a_run_that_was_resumed_keeps_the_same_averages(run, tmp_path):
    folder, _ = run
    first = small_state(CONFIG)
    go_on(first, tmp_path, 20)
    go_on(first, tmp_path, 24)  # lost: the run goes on from step 20
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000024")
    second = small_state(CONFIG, seed=9)
    load_checkpoint(tmp_path / "checkpoints" / "step-00000020", second)
    keep_averages(second, tmp_path / "checkpoints", tmp_path / "averages")
    assert [step_of(path) for path in list_checkpoints(tmp_path / "averages")][-1] == 20
    go_on(second, tmp_path, STEPS)
    for each in ("averages", "checkpoints"):
        name = list_checkpoints(tmp_path / each)[-1].relative_to(tmp_path) / "averages.safetensors"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert distance(made(tmp_path, 0.07), made(folder, 0.07)) == 0.0


def test_earlier_checkpoints_use_what_came_before_them(run):
    folder, _ = run
    early = made(folder, 0.05, step=36)
    assert distance(early, made(folder, 0.05)) > 1e-4


def test_what_is_damaged_or_was_not_kept_is_told(run, tmp_path):
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    file = tmp_path / "run" / "averages" / "step-00000008" / "averages.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()  # it may be a checkpoint's too
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="step-00000008"):
        made(tmp_path / "run", 0.07)
    plain = small_state(dataclasses.replace(CONFIG, posthoc_ema=False))
    plain.step = STEPS
    save_checkpoint(tmp_path / "plain" / "checkpoints", plain)
    with pytest.raises(CheckpointError, match=r"training\.posthoc_ema=true"):
        made(tmp_path / "plain", 0.07)
    with pytest.raises(ValueError, match=r"an average of length 0\.5"):
        made(folder, 0.5)
    with pytest.raises(CheckpointError, match="holds no averages"):
        load_checkpoint(tmp_path / "plain" / "checkpoints" / "step-00000040", small_state(CONFIG))


def without_one(tensors, name):
    del tensors[name]


def with_a_stranger(tensors, name):
    tensors["x:y:z"] = torch.zeros(2)


def in_another_shape(tensors, name):
    tensors[name] = torch.zeros(3, 7)


def in_whole_numbers(tensors, name):
    tensors[name] = tensors[name].long()


def with_nan(tensors, name):
    tensors[name] = torch.full_like(tensors[name], float("nan"))


@pytest.mark.parametrize(
    "change", [without_one, with_a_stranger, in_another_shape, in_whole_numbers, with_nan]
)
def test_averages_that_their_checkpoint_vouches_for_are_still_looked_at(run, tmp_path, change):
    """As of a run that diverged, or of another version."""
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}"
    file = checkpoint / "averages.safetensors"
    tensors = load_file(file)
    change(tensors, next(iter(tensors)))
    file.unlink()
    save_file(tensors, file)
    info = json.loads((checkpoint / "state.json").read_text())
    info["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    del info["sha256"]
    info["sha256"] = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=r"averages\.safetensors"):
        made(tmp_path / "run", 0.07)
    with pytest.raises(CheckpointError, match=r"averages\.safetensors"):
        load_checkpoint(checkpoint, small_state(CONFIG))


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 100])
def test_thinned_snapshots_spread_over_the_whole_run(count):
    kept: list[int] = []
    for step in range(1, count + 1):
        kept = sorted(thinned([*kept, step], MOST_SNAPSHOTS))
    assert len(kept) == min(count, MOST_SNAPSHOTS)
    assert (kept[0], kept[-1]) == (1, count)
    gaps = torch.tensor(kept).diff()
    assert count <= MOST_SNAPSHOTS or int(gaps.max()) <= 3 * int(gaps.min()) + 1
