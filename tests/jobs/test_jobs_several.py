"""Two processes at a time: they wait for each other's work, and for nobody who is dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stand_in import save_stand_in
from together import finish_together, start_together

from softtrunc import VPSDE, ScoreModel
from softtrunc.cli import main
from softtrunc.feedback.locks import only_one
from softtrunc.feedback.processes import company
from softtrunc.feedback.signals import StopRequest
from softtrunc.jobs.shared_grid import draw_together
from softtrunc.samplers import DPMSolver

TINY = ["network.options={base_channels: 8}", "training.batch_size=16", "training.samples=4"]

# The first process takes long to write its first checkpoint, the second one to draw its part of the
# first grid: both longer than `training.timeout`. From step 3 on every step takes a second.
TRAIN = """
import sys, time
from pathlib import Path
import softtrunc.jobs.train as job
import softtrunc.runs.node_images as images
from softtrunc.feedback.processes import company
from softtrunc.recipes import load_recipe

def say(*words): print(*words, flush=True)

def fit(*a, real=job.fit, **k):
    for record in real(*a, **k):
        say("step", record.step)
        if record.step > 2:
            time.sleep(1.0)
        yield record

def save(folder, state, real=job.save_checkpoint, **k):
    time.sleep(13.0 if state.step == 2 else 0.0)
    return real(folder, state, **k)

def build_score(spec, model, real=job.build_score, once=[13.0]):
    score = real(spec, model)
    def watched(x, t):
        say("drawn", len(x))
        time.sleep(once.pop() if once and company().rank == 1 else 0.2)
        return score(x, t)
    return watched

def build_data(*a, real=images.build_data, **k):
    say("decoded")
    return real(*a, **k)

job.fit, job.save_checkpoint = fit, save
job.build_score, images.build_data = build_score, build_data
recipe = load_recipe("digits-vp-nll-st", sys.argv[2:])
outcome = job.train(recipe, Path(sys.argv[1]))
say("end", outcome.step, outcome.interrupted)
company().meet()
__import__("os")._exit(0)
"""


@pytest.mark.slow
def test_long_work_of_one_process_is_waited_for_and_a_signal_is_answered_in_a_step(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    every = [f"training.{key}_every=2" for key in ("checkpoint", "sample", "log")]
    settings = [*TINY, *every, "training.timeout=10", "training.micro_batch_size=1"]
    settings += ["training.steps=500", "sampling={sampler: dpm_solver, steps: 2}"]
    started = start_together(["train.py", "run", *settings], tmp_path)
    head = []
    while (line := started[0].stdout.readline()) and line != "step 5\n":
        head.append(line)
    for process in started:
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    (code, rest, err), (other_code, other, other_err) = finish_together(started)
    assert time.monotonic() - began < 20
    assert (code, other_code) == (0, 0), err + other_err
    said = ["".join(head) + rest, other]
    assert sorted(text.count("decoded") for text in said) == [0, 1]
    assert {line for text in said for line in text.splitlines() if line[:5] == "drawn"} == {
        "drawn 1"
    }
    assert all("drawn" in text.partition("step 3")[0] for text in said)
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
    last = int(said[0].rpartition("end ")[2].split()[0])
    assert last <= 6  # ten steps without a question would have been ten seconds
    assert f"end {last} True" in said[0]
    assert f"end {last} True" in said[1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:08d}").is_dir()


# Whoever has no work left waits longer than `training.timeout` for the second process's batches;
# so does the second one while the first opens the extractor. In the end the second one is killed.
USE = """
import os, sys, time
from pathlib import Path
import softtrunc.jobs.measure as measuring
import softtrunc.runs.draw as drawing
from softtrunc.cli import main
from softtrunc.evaluation.bits import BitsMeasurement
from softtrunc.feedback.processes import company

second = os.environ["RANK"] == "1"
dying, lags = [], {"draw": 12.0, "measure": 12.0}

def lag(what):
    time.sleep(lags.pop(what, 0.3) if second else 0.3)

def say(*words): print(*words, flush=True)

def draw_batches(opened, parts, *, seed, real=drawing.draw_batches):
    for batch in real(opened, parts, seed=seed):
        if dying and second:
            os._exit(9)
        lag("draw")
        say("batch of", len(batch.images))
        yield batch

def measure_some(self, turn, images, real=BitsMeasurement._measure):
    lag("measure")
    say("measured", len(images))
    return real(self, turn, images)

def open_extractor(*a, real=measuring.open_extractor):
    time.sleep(0.0 if second else 12.0)
    return real(*a)

drawing.draw_batches = draw_batches
BitsMeasurement._measure, measuring.open_extractor = measure_some, open_extractor
run, extractor = sys.argv[1:]
assert main(["train", "no-such-recipe"]) == 2
command = ["sample", run, "-n", "10", "--batch-size", "2", "--steps", "2", "--out"]
assert main([*command, "images.npz"]) == 0
lags["draw"] = 12.0
few = ["--limit", "10", "-n", "10", "--set", "evaluation.batch_size=2"]
few += ["--set", "evaluation.solver_check=0", "--set", "sampling.steps=2"]
few += ["--set", "evaluation.figures=[nll_residual]"]
assert main(["evaluate", run, "--bpd", "--fid", "--features", extractor, *few]) == 0
dying.append(True)
say("code", main([*command, "others.npz"]))
os._exit(0)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several") / "run"
    settings = [*TINY, "training.timeout=10", "training.steps=1"]
    sets = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "digits-vp-nll-st", "--out", str(folder), *sets]) == 0
    return folder


@pytest.mark.slow
def test_uneven_shares_are_waited_for_and_a_dead_process_is_told_of(run, tmp_path):
    (tmp_path / "use.py").write_text(USE)
    network = save_stand_in(tmp_path / "projections.pt")
    started = start_together(["use.py", str(run), str(network)], tmp_path)
    (code, out, err), (died, other, other_err) = finish_together(started)
    assert (code, died) == (0, 9), err + other_err
    # Whoever is free takes the next batch: the slow one had one of the five.
    drawn = [text.partition("measured")[0].count("batch of 2") for text in (out, other)]
    assert sum(drawn) == 5
    assert drawn[0] > drawn[1] >= 1
    assert (tmp_path / "images.npz").exists()
    assert {figure["key"] for figure in evaluation(run)} >= {"nll_residual", "frechet_distance"}
    assert out.endswith("code 1\n")
    assert not (tmp_path / "others.npz").exists()
    mistake, *_, last = err.strip().splitlines()
    assert "no-such-recipe" in mistake
    assert "process 1 of 2 has shown no sign of life for 10 s" in last
    assert "Traceback" not in err
    assert "softtrunc: " not in other_err  # one of them speaks


def evaluation(run):
    return json.loads((run / "evaluation.json").read_text())["figures"]


@pytest.mark.slow
def test_a_mistake_that_all_make_is_one_line(tmp_path):
    command = ["train", "digits-vp-nll-st", "--set", "training.batch_size=3", "--out", "run"]
    started = start_together(["-m", "softtrunc", *command], tmp_path)
    ended = finish_together(started)
    told = "".join(err for _, _, err in ended)
    assert told.count("softtrunc: ") == 1, told
    assert "batch_size=3 does not divide over 2 processes" in told
    assert sorted(code for code, _, _ in ended)[-1] == 2


@pytest.mark.parametrize("stopped", [False, True])
def test_a_signal_ends_a_grid_between_two_evaluations(stopped):
    stop, sizes = StopRequest(), []

    def score(x, t):
        sizes.append(len(x))
        if stopped and len(sizes) == 2:
            stop(signal.SIGTERM, None)
        return -x

    images = draw_together(
        6,
        (1, 4, 4),
        2,
        sampler=DPMSolver(steps=3),
        model=ScoreModel(torch.nn.Identity(), VPSDE()),
        score=score,
        to_levels=lambda x: x.clamp(0, 255).to(torch.uint8),
        company=company(),
        stop=stop,
    )
    assert set(sizes) == {2}
    if stopped:
        assert images is None
        assert len(sizes) == 2
    else:
        assert images.shape == (6, 1, 4, 4)
        assert len(sizes) > 6


def test_a_place_has_one_writer(run, tmp_path, capsys):
    out = tmp_path / "run"
    train = ["train", "digits-vp-nll-st", "--out", str(out), "--steps", "1"]
    train += ["--set", "network.options={base_channels: 8}"]
    sample = ["sample", str(run), "-n", "2", "--steps", "2", "--out", str(tmp_path / "a.npz")]
    export = ["export", str(run), "--out", str(tmp_path / "exported")]
    for command, place in (
        (train, out),
        (sample, tmp_path / "a.npz"),
        (export, tmp_path / "exported"),
    ):
        with only_one(place, "busy there"):
            assert main(command) == 2
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"({os.getpid()} on {socket.gethostname()}, since" in line
            assert line.count(str(place)) == 1
            assert ".lock.partial" in line
            assert not place.exists()
        assert main(command) == 0
    # What a killed process leaves behind is no hindrance.
    (tmp_path / ".run.lock.partial").touch()
    (tmp_path / ".run.owner.partial").write_text(
        '{"process": 1, "machine": "far", "since": "1970"}'
    )
    assert main([*train, "--resume"]) == 0
    assert not list(tmp_path.glob(".*.partial"))


SHARDED = """
import os, sys
from softtrunc.cli import main

for arguments in (["fresh", "3"], ["fresh", "5", "--resume"], ["begun", "5", "--resume"]):
    out, steps, *resume = arguments
    command = ["train", "digits-vp-nll-st", "--out", out, "--steps", steps, *resume]
    assert main([*command, "--set", "training.shard=true", *sys.argv[1:]]) == 0
os._exit(0)
"""


@pytest.mark.slow
def test_a_network_spread_over_two_processes_learns_what_one_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sharded.py").write_text(SHARDED)
    settings = [*TINY, "training.checkpoint_every=3", "training.sample_every=3"]
    settings += ["training.micro_batch_size=4", "sampling={sampler: dpm_solver, steps: 2}"]
    sets = [word for setting in settings for word in ("--set", setting)]

    def one(out: str, steps: int, *more: str) -> Path:
        command = ["train", "digits-vp-nll-st", "--out", out, "--steps", str(steps)]
        assert main([*command, *sets, *more]) == 0
        return Path(out, "checkpoints", f"step-{steps:08d}")

    one("begun", 3)
    truth = one("whole", 5)
    ended = finish_together(start_together(["sharded.py", *sets], tmp_path))
    assert [code for code, _, _ in ended] == [0, 0], ended
    for folder in ("fresh", "begun"):
        found = Path(folder, "checkpoints", truth.name)
        assert Path(folder, "samples", "step-00000003.png").exists()
        for name in ("model", "ema", "optimizer"):
            ours, theirs = (load_file(p / f"{name}.safetensors") for p in (found, truth))
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert value.shape == theirs[key].shape
                assert (value - theirs[key]).abs().max() <= 1e-6 * max(1, theirs[key].abs().max())
    # And one process goes on from what two wrote.
    assert (one("fresh", 6, "--resume") / "state.json").exists()
