"""What goes wrong is told in one line with the right exit code, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from PIL import Image
from safetensors.torch import load_file, save_file

from softtrunc import VPSDE, ScoreModel, cli
from softtrunc.cli import main
from softtrunc.data import open_dataset
from softtrunc.feedback import files
from softtrunc.jobs import train as training
from softtrunc.runs import sample_files
from softtrunc.runs.sample_files import Destination
from softtrunc.samplers import DPMSolver, EulerMaruyama, Heun, PredictorCorrector, sample_from
from softtrunc.training import checkpoint as checkpoints

pytestmark = pytest.mark.usefixtures("unchecked")


def command(*options, recipe="digits-vp-nll-st"):
    options = (*options, "network.options={base_channels: 8}", "training.batch_size=16")
    options = (*options, "training.samples=4", "training.warmup_steps=0", "sampling.steps=3")
    return ["train", recipe, *(word for option in options for word in ("--set", option))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    steps = ("training.steps=4", "training.checkpoint_every=2", "training.sample_every=2")
    assert main([*command(*steps), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def told(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("softtrunc: ")
    assert len(lines[-1]) < 400
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


class Spoiled:
    """A score that is finite above a time only, and for some examples only."""

    sde = VPSDE()

    def score(self, x, t):
        found = -x
        found[1:][t[1:] < 0.5] = torch.nan
        return found


@pytest.mark.parametrize(
    "sampler", [DPMSolver(8), Heun(8), EulerMaruyama(8), PredictorCorrector(8, corrector_steps=0)]
)
def test_samples_that_are_not_finite_are_never_returned(sampler):
    with pytest.raises(FloatingPointError, match=r"2 of 3 samples .*first at t = 0\.[0-4]"):
        sampler.sample(Spoiled(), (3, 4), seeds=[0, 1, 2])
    with pytest.raises(FloatingPointError, match="2 of 3 samples"):
        sample_from(sampler, Spoiled(), torch.zeros(3, 4), 0.7, seeds=[0, 1, 2])


def test_a_state_that_overflows_is_told_apart():
    class Finite:
        sde = VPSDE()

        def score(self, x, t):
            return torch.full_like(x, 3e38)

    with pytest.raises(FloatingPointError, match=r"answers are finite, the state is not|first at"):
        DPMSolver(4).sample(Finite(), (1, 4), seeds=[0])


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_no_image_and_no_figure_of_values_that_are_not_finite(run, capsys, monkeypatch, verb):
    monkeypatch.setattr(ScoreModel, "score", lambda _, x, t: x * torch.nan)
    options = []
    if verb == "evaluate":
        options += ["--fid", "-n", "40"]
    assert main([verb, str(run), *options]) == 1
    assert "not finite" in told(capsys)
    assert not (run / "samples" / "drawn").exists()
    assert not (run / "evaluation.json").exists()


def test_a_full_disk_while_training(tmp_path, capsys, monkeypatch):
    steps = ("training.steps=4", "training.checkpoint_every=2")
    saved = checkpoints.save_file

    def full(tensors, path, *rest):
        if "00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        saved(tensors, path, *rest)

    monkeypatch.setattr(checkpoints, "save_file", full)
    assert main([*command(*steps), "--out", str(tmp_path / "run")]) == 1
    line = told(capsys)
    assert "No space left" in line
    assert "step-00000002" in line
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert main([*command(*steps), "--out", str(tmp_path / "run"), "--resume"]) == 0


@pytest.mark.parametrize("verb", ["sample", "export", "evaluate"])
def test_a_full_disk_elsewhere(run, tmp_path, capsys, monkeypatch, verb):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "sync", full)
    options = {"sample": ["-n", "2"], "export": ["--out", str(tmp_path / "out")]}
    options["evaluate"] = ["--bpd", "--limit", "2"]
    assert main([verb, str(run), *options[verb]]) == 1
    assert "No space left" in told(capsys)
    assert not (tmp_path / "out").exists()
    assert not list(run.rglob("*.json.*partial"))


def nameless(*_, **__):
    """What the system says as a file is closed, and NumPy and Pillow of what they write."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["a grid", "metrics"])
def test_a_full_disk_that_names_no_file_while_training(tmp_path, capsys, monkeypatch, what):
    steps = ("training.steps=2", "training.sample_every=2", "training.log_every=1")
    if what == "a grid":
        monkeypatch.setattr(Image.Image, "save", nameless)
    else:
        monkeypatch.setattr(training, "append_metrics", nameless)
    assert main([*command(*steps), "--out", str(tmp_path / "run")]) == 1
    line = told(capsys)
    assert f"{tmp_path / 'run'}" in line
    assert "No space left on device: no checkpoint was written; make room" in line


@pytest.mark.parametrize("name", ["out", "out.zip", "out.npz"])
def test_a_full_disk_as_samples_are_joined(tmp_path, monkeypatch, name):
    place = Destination(tmp_path / name)
    place.begin({})
    place.add(0, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 3)
    monkeypatch.setattr(sample_files, "_store", nameless)
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", nameless)
    monkeypatch.setattr(Path, "write_bytes", nameless)
    with pytest.raises(OSError, match="No space left") as caught:
        place.finish(1, {}, {})
    assert caught.value.filename == str(place.out)
    assert not place.out.exists()


def test_a_full_disk_while_preparing(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((8, 4, 4, 3), np.uint8))
    made = np.lib.format.open_memmap

    def full(path, mode, *shape, **options):
        return made(path, mode, *shape, **options) if mode == "r" else nameless()

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    out = tmp_path / "p"
    assert main(["data", "prepare", str(tmp_path / "a.npy"), "--out", str(out)]) == 1
    assert told(capsys) == f"softtrunc: {tmp_path / '.p.partial'}: No space left on device"


def test_a_grid_that_a_kill_prevented_is_drawn(run, monkeypatch):
    grid = run / "samples" / "step-00000004.png"
    before = grid.read_bytes()
    grid.unlink()
    steps = ("training.steps=4", "training.checkpoint_every=2", "training.sample_every=2")
    assert main([*command(*steps), "--out", str(run), "--resume"]) == 0
    assert grid.read_bytes() == before


@pytest.mark.parametrize("damage", ["a pipe", "a folder", "a link", "a line", "no grid"])
def test_what_cannot_be_gone_on_with_is_refused_before_it_is_changed(run, capsys, damage):
    file = run / ("samples/data.png" if damage == "no grid" else "metrics.jsonl")
    text = file.read_bytes()
    file.unlink()
    if damage == "a pipe":
        os.mkfifo(file)
    elif damage == "a link":
        file.symlink_to(file.name)
    elif damage == "a line":
        file.write_bytes(b"{]\n" + text)
    else:
        file.mkdir()
    recipe = (run / "recipe.yaml").read_bytes()
    assert main([*command("training.steps=6"), "--out", str(run), "--resume"]) == 2
    assert file.name in told(capsys)
    assert (run / "recipe.yaml").read_bytes() == recipe


@pytest.mark.parametrize(
    "damage", ["emptied", "partly", "shape", "scalar", "infinite", "negative", "updates", "step"]
)
def test_a_checkpoint_that_does_not_hold_together_is_refused(run, capsys, damage):
    folder = run / "checkpoints" / "step-00000004"
    file = folder / "optimizer.safetensors"
    moments = load_file(file)
    first = next(name for name in moments if name.endswith(":exp_avg_sq"))
    if damage == "emptied":
        moments = {}
    elif damage == "partly":
        moments["network.nobody:exp_avg"] = moments.pop(first)
    elif damage == "shape":
        moments[first] = torch.zeros(3, 5, 7)
    elif damage == "scalar":
        moments[first] = torch.tensor(1.0)
    elif damage == "negative":
        moments[first].flatten()[-1] = -1e-9
    elif damage == "updates":
        moments[first.replace("exp_avg_sq", "step")].fill_(-4)
    elif damage == "infinite":
        moments[first] = moments[first].fill_(torch.inf)
    save_file(moments, file)
    info = json.loads((folder / "state.json").read_text())
    info.pop("sha256")
    info["files"] = {name: checkpoints._sha256(folder / name) for name in info["files"]}
    info["step"] += damage == "step"
    info["sha256"] = checkpoints._state_digest(info)
    (folder / "state.json").write_text(json.dumps(info))
    assert main([*command("training.steps=6"), "--out", str(run), "--resume"]) == 2
    line = told(capsys)
    assert "step-00000004" in line
    assert ("holds negative values" in line) == (damage in ("negative", "updates"))


@pytest.mark.parametrize("number", [signal.SIGUSR1])
def test_a_stopped_training_is_no_success(tmp_path, number):
    steps = ("training.steps=1000000", "training.log_every=1")
    command_line = ["-m", "softtrunc", *command(*steps), "--out", str(tmp_path / "run")]
    process = Forked(command_line, cwd=tmp_path, env=os.environ)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "go on with --resume" in err


def test_tasks_that_do_not_know_of_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert main([*command(), "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert "accelerate launch" in told(capsys)
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert main([*command(), "--steps", "1", "--out", str(tmp_path / "run")]) == 0


def test_an_extractor_that_a_file_names_is_not_run(run, tmp_path, capsys):
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("features: digits-mlp", "features: strange.pt"))
    assert main(["evaluate", str(run), "--fid"]) == 2
    assert "is code: give --features" in told(capsys)
    assert main(["evaluate", str(run), "--fid", "--features", "digits-mlp", "-n", "40"]) == 0
    capsys.readouterr()
    own = tmp_path / "own.yaml"
    own.write_text("extends: digits-vp-nll-st\nevaluation: {features: strange.pt}\n")
    assert main(["study", str(own), "--vary", "truncation.k=1,2", "--dry-run"]) == 2
    assert "is code" in told(capsys)


def test_an_export_holds_nothing_from_outside_the_run(run, tmp_path, capsys):
    secret = tmp_path / "secret.png"
    Image.new("L", (4, 4)).save(secret)
    (run / "samples" / "final.png").symlink_to(secret)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "samples.png") as image:
        assert image.size != (4, 4)
    grid = run / "samples" / "step-00000004.png"
    grid.write_bytes(grid.read_bytes() + b"password")
    assert main(["export", str(run), "--out", str(tmp_path / "again")]) == 0
    assert b"password" not in (tmp_path / "again" / "samples.png").read_bytes()


@pytest.mark.parametrize("device", ["null", "fifo"])
def test_devices_and_pipes_are_no_place_to_write(run, tmp_path, capsys, device):
    if device == "fifo":
        device = str(tmp_path / "fifo")
        os.mkfifo(device)
    else:  # one of our own: a command without the check would replace the machine's
        device = str(tmp_path / "null")
        try:
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    assert main(["report", str(run), "--out", device]) == 2
    assert "device or a pipe" in told(capsys)
    assert Path(device).exists()
    assert not Path(device).is_file()


def test_what_nobody_foresaw_is_one_line_and_a_file(capsys, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise KeyError("what?\nnobody knows")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert main(["train"]) == 1
    line = told(capsys)
    assert "unforeseen KeyError" in line
    (file,) = tmp_path.glob("softtrunc-*.txt")
    assert str(file) in line
    assert "Traceback" in file.read_text()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
     torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")],
)  # fmt: skip
def test_full_memory_is_one_line_with_what_to_do(capsys, monkeypatch, error):
    def greedy(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", greedy)
    assert main(["train"]) == 1
    assert "memory is full: take smaller batches" in told(capsys)


@pytest.mark.parametrize("place", [".", "", "..", "/", "dangling"])
@pytest.mark.parametrize("verb", ["study", "train", "export", "anatomy"])
def test_a_place_without_a_name_is_refused_before_any_work(
    run, tmp_path, capsys, monkeypatch, verb, place
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if place == "dangling":
        place = str(tmp_path / "link")
        Path(place).symlink_to("nowhere")
    what = {"study": ["study", "digits-vp-nll-st", "--vary", "truncation.k=1"], "train": command()}
    assert main([*what.get(verb, [verb, str(run)]), "--out", place]) == 2
    assert "--out" in told(capsys)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["sampling={sampler: pc, t_end: 0.9999999999999999}"], "t_end=0.9999999999999999"),
        (["sampling={sampler: ode, t_end: 0.99999999}"], "t_end=0.99999999"),
        (["sampling={sampler: heun, t_end: 1e-12}"], "whose noise float32 holds"),
        (["sampling={sampler: pc, grid: log_snr, steps: 900000, t_end: 0.9999998}"], "no length"),
        (["truncation.eps=0.9999999999999999"], "truncation.eps"),
        (["truncation.tau_max=.nan"], "tau_max is not a number"),
        (["training.seed=true"], "seed is true or false"),
    ],
)
def test_times_and_numbers_that_make_no_sense(capsys, changes, words):
    options = [word for change in ("sde={kind: rve}", *changes) for word in ("--set", change)]
    assert main(["train", "digits-vp-nll-st", *options, "--dry-run"]) == 2
    assert words in told(capsys)


@pytest.mark.parametrize("verify", [[], ["--verify"]])
def test_training_looks_at_every_pixel_before_it_saves_anything(tmp_path, capsys, verify):
    """One was changed, and the time put back: blocks that are looked at on opening do not tell."""
    images = np.random.default_rng(0).integers(0, 256, (700, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images)
    place, run = tmp_path / "p", tmp_path / "run"
    assert main(["data", "prepare", str(tmp_path / "a.npz"), "--out", str(place)]) == 0
    file = place / "train.npy"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-6000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_dataset(str(place), "train").unread
    train = command("data.image_size=16", "data.channels=3", recipe="folder-32")
    train += ["--data", str(place), "--steps", "1", "--out", str(run), *verify]
    assert main(train) == 2
    assert "have changed" in told(capsys)
    assert not list(run.glob("checkpoints/step-*"))
