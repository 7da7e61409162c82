"""Runs that are killed, stopped or spread over processes end in the same weights."""

import json
import os
import signal
import time

import pytest
from command_line import TINY, start
from safetensors.torch import load_file
from together import finish_together, start_together

from softtrunc.cli import main
from softtrunc.jobs import train as job

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
THIRTY = [*TINY, "--set", "training.steps=30", "--set", "training.checkpoint_every=6"]


def train(folder, *extra):
    return ["train", "digits-vp-nll-st", "--out", str(folder), *THIRTY, *extra]


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out + err


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last(folder):
    return folder / "checkpoints" / "step-00000030"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert main(train(folder)) == 0
    return folder


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_thirty_steps_straight_equal_twelve_killed_and_eighteen(straight, tmp_path):
    folder = tmp_path / "run"
    process = start(*train(folder), cwd=tmp_path)
    wait_for(folder / "checkpoints" / "step-00000012", process)
    process.kill()
    process.communicate()
    assert main(train(folder, "--resume")) == 0
    for name in FILES:
        assert (last(folder) / name).read_bytes() == (last(straight) / name).read_bytes()
    assert [row["step"] for row in losses(folder)] == [row["step"] for row in losses(straight)]
    for a, b in zip(losses(folder), losses(straight), strict=True):
        assert (a["loss"], a["taus"]) == (b["loss"], b["taus"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_cleanly(straight, tmp_path, monkeypatch, capsys, number):
    folder = tmp_path / "run"

    def fit(*arguments, real=job.fit, **options):
        for record in real(*arguments, **options):
            if record.step == 7:
                os.kill(os.getpid(), number)
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(job, "fit", fit)
        code = main(train(folder, "--set", "training.checkpoint_every=1000"))
    assert code == 128 + number
    assert "stopped at step 7 with a checkpoint" in capsys.readouterr().err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000007"]
    assert main(train(folder, "--resume")) == 0
    for name in FILES:
        assert (last(folder) / name).read_bytes() == (last(straight) / name).read_bytes()


WORKER = """
import json, os, torch
from accelerate import Accelerator
from softtrunc.recipes import load_recipe
from softtrunc.recipes.build import build_data, build_model, build_objective, build_training
from softtrunc.training import TrainState, fit

accelerator = Accelerator(cpu=True)
recipe = load_recipe("digits-vp-nll-st", ["network.options={base_channels: 8}",
    "training.batch_size=16", "training.micro_batch_size=4"])
data, config = build_data(recipe, "train"), build_training(recipe)
state = TrainState.create(build_model(recipe, channels=1, image_size=(8, 8)), config)
rows = []
for r in fit(state, build_objective(recipe), data, config, steps=8, accelerator=accelerator):
    tau = torch.tensor([r.tau], dtype=torch.float64)
    values = {"tau": tau, "loss": r.loss, "t": r.t}
    rows.append({name: accelerator.gather(value).tolist() for name, value in values.items()})
if accelerator.is_main_process:
    print("ROWS " + json.dumps(rows), flush=True)
accelerator.wait_for_everyone()
os._exit(0)  # as softtrunc's own __main__ ends: gloo's threads may abort an ordinary exit
"""


def launch(processes, cwd, *command):
    """What the first of so many processes says."""
    ended = finish_together(start_together(command, cwd, processes=processes))
    assert all(code == 0 for code, _, _ in ended), [err[-3000:] for _, _, err in ended]
    return ended[0][1]


@pytest.mark.slow
def test_two_processes_share_tau_and_see_the_batch_of_one(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    one, two = (
        json.loads(
            next(
                line
                for line in launch(n, tmp_path, str(script)).splitlines()
                if line.startswith("ROWS ")
            ).removeprefix("ROWS ")
        )
        for n in (1, 2)
    )
    for a, b in zip(one, two, strict=True):
        assert b["tau"] == [a["tau"][0]] * 2
        assert b["t"] == a["t"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_two_processes_write_the_checkpoint_of_one(straight, tmp_path):
    folder = tmp_path / "run"
    launch(2, tmp_path, "-m", "softtrunc", *train(folder))
    for name in FILES:
        ours, theirs = load_file(last(folder) / name), load_file(last(straight) / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert (value - theirs[key]).abs().max() <= 1e-6 * max(1.0, theirs[key].abs().max())
    for a, b in zip(losses(folder), losses(straight), strict=True):
        assert a["taus"] == b["taus"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
