"""Two processes: they wait for each other's work, and for nobody who is dead.

They are started once, for all tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import NamedTuple

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
from softtrunc.jobs import train as job
from softtrunc.jobs.shared_grid import draw_together
from softtrunc.samplers import DPMSolver

SMALL = "network.options={base_channels: 8, channel_multipliers: [1]}"
SETTINGS = [
    *(SMALL, "training.batch_size=8", "training.samples=4", "training.micro_batch_size=2"),
    *("training.timeout=5", "training.checkpoint_every=2", "training.sample_every=2"),
    *(
        "training.log_every=1",
        "training.posthoc_ema=true",
        "sampling={sampler: dpm_solver, steps: 2}",
    ),
]
GRID = Path("samples", "step-00000002.png")
SETS = [word for setting in SETTINGS for word in ("--set", setting)]

# Lags are longer than `training.timeout`. Whoever takes part says what it does on its own output.
SCENES = """
import os, signal, sys, time
from pathlib import Path
import softtrunc.jobs.measure as measuring
import softtrunc.jobs.train as job
import softtrunc.runs.draw as drawing
import softtrunc.runs.node_images as images
from softtrunc.cli import main
from softtrunc.evaluation.bits import BitsMeasurement

extractor, *sets = sys.argv[1:]
second = os.environ["RANK"] == "1"
scene, lags = "", set()  # what is to take long the next time

def say(*words): print(*words, flush=True)

def lag(what):
    if what in lags:
        lags.remove(what)
        time.sleep(6.0)

def begin(what):
    # The first goes on when the second has work too, however quick it was.
    file = Path(f"{scene}-{what}")
    if second:
        file.touch()
    while not file.exists():
        time.sleep(0.02)

def run(name, *command, slow=()):
    global scene, lags
    scene, lags = name, set(slow)
    say("scene", name)
    say("code", main(list(command)))

def train(out, steps, *more, slow=()):
    command = ["train", "digits-vp-nll-st", "--out", out, "--steps", str(steps)]
    run(out, *command, *sets, *more, slow=slow)

run("mistake", "train", "no-such-recipe")

# A network spread over both: from its beginning, and from what one process has written.
train("fresh", 3, "--set", "training.shard=true")
train("begun", 3, "--set", "training.shard=true", "--resume")

# The first writes its checkpoint slowly, the second draws its part of a grid slowly and is the
# only one that gets a signal.
def fit(*a, real=job.fit, **k):
    for record in real(*a, **k):
        if record.step == 3:
            grads = [p.grad for p in a[0].model.parameters() if p.grad is not None]
            say("shared", all(g.untyped_storage().nbytes() > g.nbytes for g in grads))
        if record.step == 5 and second:
            os.kill(os.getpid(), signal.SIGTERM)
        yield record

def save(folder, state, real=job.save_checkpoint, **k):
    say("saved", state.step)
    lag("save")
    return real(folder, state, **k)

def build_drawn(spec, model, y, real=job.build_drawn):
    drawn = real(spec, model, y)
    class Watched:
        sde = model.sde
        def score(self, x, t):
            begin("grid")
            say("drawn", len(x))
            lag("grid")
            return drawn.score(x, t)
    return Watched()

def build_data(*a, real=images.build_data, **k):
    say("decoded")
    return real(*a, **k)

job.fit, job.save_checkpoint, job.build_drawn = fit, save, build_drawn
images.build_data = build_data
os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "5"
train("run", 500, slow=["grid"] if second else ["save"])

# The second draws and measures slowly, the first opens the extractor slowly.
def draw_batches(opened, parts, *, seed, real=drawing.draw_batches):
    for batch in real(opened, parts, seed=seed):
        begin("draw")
        if "die" in lags:
            os._exit(9)
        lag("draw")
        say("batch of", len(batch.images))
        yield batch

def measure_some(self, turn, images, real=BitsMeasurement._measure):
    begin("measure")
    lag("measure")
    say("measured", len(images))
    return real(self, turn, images)

def open_extractor(*a, real=measuring.open_extractor):
    lag("open")
    return real(*a)

drawing.draw_batches = draw_batches
BitsMeasurement._measure, measuring.open_extractor = measure_some, open_extractor
sample = ["sample", "run", "-n", "10", "--batch-size", "2", "--steps", "2", "--out"]
run("sample", *sample, "images.npz", slow=["draw"] if second else [])
few = ["--limit", "10", "-n", "10", "--set", "evaluation.batch_size=2"]
few += ["--set", "evaluation.solver_check=0", "--set", "sampling.steps=2"]
few += ["--set", "evaluation.figures=[nll_residual]", "--features", extractor]
run("evaluate", "evaluate", "run", "--bpd", "--fid", *few, slow=["measure" if second else "open"])
run("death", *sample, "others.npz", slow=["die"] if second else [])
os._exit(0)
"""


def train(out: Path, steps: int, *more: str) -> Path:
    """By this process alone; the last checkpoint."""
    command = ["train", "digits-vp-nll-st", "--out", str(out), "--steps", str(steps)]
    assert main([*command, *SETS, *more]) == 0
    return out / "checkpoints" / f"step-{steps:08d}"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two steps of one process; the average is far from the weights, its grid still to be drawn."""

    def save(folder, state, real=job.save_checkpoint, **options):
        for average in state.ema.shadow.values():
            average += 0.5
        return real(folder, state, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "save_checkpoint", save)
        run = train(tmp_path_factory.mktemp("alone") / "begun", 2).parents[1]
    (run / GRID).unlink()
    return run


class Told(NamedTuple):
    """What the two processes left, how they ended, and what each said in each scene."""

    folder: Path
    codes: list[int]
    errors: list[str]
    scenes: list[dict[str, str]]


@pytest.fixture(scope="module")
def told(begun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    shutil.copytree(begun, folder / "begun")
    (folder / "scenes.py").write_text(SCENES)
    network = save_stand_in(folder / "projections.pt")
    ended = finish_together(start_together(["scenes.py", str(network), *SETS], folder))
    codes, outs, errors = (list(each) for each in zip(*ended, strict=True))
    scenes = [dict(part.split("\n", 1) for part in out.split("scene ")[1:]) for out in outs]
    assert all(len(each) == 7 for each in scenes), errors
    return Told(folder, codes, errors, scenes)


@pytest.mark.slow
def test_a_mistake_that_all_make_is_one_line(told):
    assert [each["mistake"] for each in told.scenes] == ["code 2\n"] * 2
    assert [text.count("no-such-recipe") for text in told.errors] == [1, 0]


@pytest.mark.slow
def test_a_network_spread_over_two_processes_learns_what_one_does(told, begun, tmp_path):
    for each in told.scenes:
        assert (each["fresh"], each["begun"]) == ("code 0\n", "code 0\n"), told.errors
    shutil.copytree(begun, tmp_path / "whole")
    pairs = [
        ("begun", train(tmp_path / "whole", 3, "--resume")),
        ("fresh", train(tmp_path / "f", 3)),
    ]
    for run, truth in pairs:
        found = told.folder / run / "checkpoints" / truth.name
        for name in ("model", "ema", "optimizer", "averages"):
            ours, theirs = (load_file(p / f"{name}.safetensors") for p in (found, truth))
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert value.shape == theirs[key].shape
                scale = float(theirs[key].abs().max())
                assert (value - theirs[key]).abs().max() <= 1e-6 * max(1, scale)
    fresh, average, theirs = (
        (place / GRID).read_bytes()
        for place in (told.folder / "fresh", told.folder / "begun", tmp_path / "whole")
    )
    assert average == theirs != fresh
    # And one process goes on from what two wrote.
    shutil.copytree(told.folder / "fresh", tmp_path / "fresh")
    assert (train(tmp_path / "fresh", 4, "--resume") / "state.json").exists()


@pytest.mark.slow
def test_long_work_of_one_process_is_waited_for_and_a_signal_to_one_ends_both(told):
    out, other = (each["run"] for each in told.scenes)
    # 143 of who was told itself; who was not stops as if by Ctrl-C.
    assert [text.splitlines()[-1] for text in (out, other)] == ["code 130", "code 143"]
    for text in (out, other):
        assert {line for line in text.splitlines() if line[:5] == "drawn"} == {"drawn 2"}
        assert "shared True" in text.splitlines()  # gradients lie where they are exchanged
    assert sorted(text.count("decoded") for text in (out, other)) == [0, 1]
    # Writing took six seconds, and a launcher would have waited for five.
    (late,) = (line for line in told.errors[0].splitlines() if "a stop may be too late" in line)
    assert "launcher kills 5 s after a signal" in late
    assert "too late" not in told.errors[1]
    saved = [int(line.split()[1]) for line in out.splitlines() if line[:5] == "saved"]
    assert saved in ([2, 4, 5], [2, 4, 6])
    run = told.folder / "run"
    assert {p.name for p in (run / "checkpoints").iterdir()} == {f"step-{s:08d}" for s in saved}
    assert (run / "samples" / "step-00000004.png").exists()
    assert not (run / "samples" / "step-00000006.png").exists()


@pytest.mark.slow
def test_who_is_free_takes_the_next_batch_and_waits_for_the_last(told):
    for scene, what in (("sample", "batch of 2"), ("evaluate", "measured 2")):
        out, other = (each[scene] for each in told.scenes)
        assert out.endswith("code 0\n"), told.errors
        assert other.endswith("code 0\n"), told.errors
        assert out.count(what) + other.count(what) == 5
        assert out.count(what) > other.count(what) >= 1
    assert (told.folder / "images.npz").exists()
    figures = json.loads((told.folder / "run" / "evaluation.json").read_text())["figures"]
    assert {figure["key"] for figure in figures} >= {"nll_residual", "frechet_distance"}


@pytest.mark.slow
def test_a_dead_process_is_told_of(told):
    assert told.codes == [0, 9]
    assert told.scenes[0]["death"].endswith("code 1\n")
    assert not (told.folder / "others.npz").exists()
    last = told.errors[0].strip().splitlines()[-1]
    assert "process 1 of 2 has shown no sign of life for 5 s" in last
    assert "Traceback" not in told.errors[0]
    assert "softtrunc: " not in told.errors[1]  # one of them speaks


@pytest.mark.parametrize("stopped", [False, True])
def test_a_signal_ends_a_grid_between_two_evaluations(stopped):
    stop, sizes = StopRequest(), []

    class Stopping(ScoreModel):
        def score(self, x, t):
            sizes.append(len(x))
            if stopped and len(sizes) == 2:
                stop(signal.SIGTERM, None)
            return -x

    images = draw_together(
        6,
        (1, 4, 4),
        2,
        sampler=DPMSolver(steps=3),
        drawn_from=lambda _: Stopping(torch.nn.Identity(), VPSDE()),
        to_data=lambda x: x.clamp(0, 255).to(torch.uint8),
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


def test_a_place_has_one_writer(begun, tmp_path, capsys):
    out = tmp_path / "run"
    train = ["train", "digits-vp-nll-st", "--out", str(out), "--steps", "1"]
    train += ["--set", SMALL, "--set", "training.batch_size=8", "--set", "training.samples=4"]
    sample = ["sample", str(begun), "-n", "2", "--steps", "2", "--out", str(tmp_path / "a.npz")]
    export = ["export", str(begun), "--out", str(tmp_path / "exported")]
    measured = shutil.copytree(begun, tmp_path / "measured")
    evaluate = ["evaluate", str(measured), "--bpd", "--limit", "1"]
    evaluate += ["--set", "evaluation={figures: [nelbo], nelbo_draws: 1}"]
    for command, place in (
        (train, out),
        (sample, tmp_path / "a.npz"),
        (export, tmp_path / "exported"),
        (evaluate, measured / "evaluation.json"),
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
