"""`softtrunc data`: what a person sees, and what one line says when it cannot be done."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, environment
from forked import Forked
from PIL import Image

from softtrunc.cli import main

pytestmark = pytest.mark.usefixtures("unchecked")


def noise(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "photos"
    for i in range(24):
        path = root / ("test" if i % 4 == 3 else "train") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i)).save(path)
    (root / "train" / "00.png").write_bytes(b"broken")
    Image.fromarray(noise(1)).quantize(200).save(root / "train" / "02.png")
    return root


def refused(capsys, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("softtrunc: ")


def test_inspect_tells_all_and_changes_nothing(folder, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert main(["data", "inspect", str(folder), "--grid", str(tmp_path / "grid.png")]) == 0
    text = capsys.readouterr().out
    for words in (
        "(folder)",
        "23: 17 train, 6 test",
        "8x8 (23)",
        "RGB (22), P (1)",
        "palette looked up (1)",
        "0 ... 255, 256 different ones",
        "unreadable: train/00.png: not an image in a format that is read",
        "the largest distance among all images at 8x8",
        "grid.png",
    ):
        assert words in text, words
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 8 * 4
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_large_set_says_that_sigma_max_is_of_a_sample(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (3000, 4, 4), np.uint8))
    assert main(["data", "inspect", str(tmp_path / "a.npy")]) == 0
    assert "images (a lower bound) at 4x4" in capsys.readouterr().out


def test_prepare_then_train_on_what_was_prepared(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", str(folder), "--out", "ready", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "photos  test " in captured.out
    assert captured.out.rstrip().endswith("ready")
    assert "train: left out train/00.png: not an image" in captured.err
    assert "train: 1 images: palette looked up" in captured.err
    run = ["train", "digits-vp-nll-st", "--data", "ready", "--out", "run", *TINY]
    assert main([*run, "--set", "training.steps=2"]) == 0
    resolved = (tmp_path / "run" / "recipe.yaml").read_text()
    assert json.loads((tmp_path / "ready" / "train.json").read_text())["card"]["fingerprint"] in (
        resolved
    )


def test_a_recipe_may_name_the_protocol_of_its_data(folder, tmp_path, capsys):
    command = ["train", "folder-32", "--data", folder, "--out", tmp_path / "run"]
    line = refused(capsys, *command, "--set", "data.preset=cifar10", "--set", "data.channels=3")
    assert line.startswith(f"data: {folder}: 18 train images, CIFAR-10 has 50,000")
    line = refused(capsys, *command, "--set", "data.preset=cifar")
    assert line == "data: preset 'cifar' is unknown: did you mean 'cifar10'?"


def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused(capsys, "data", "prepare", folder, "--out", out, "--preset", "celeba64")
    assert line == (
        f"{folder}: 18 train images, CelebA, aligned, 64x64 has 162,770 (the official split needs "
        "list_eval_partition.txt beside the images): add --allow-count to take them under another "
        "name"
    )
    line = refused(capsys, "data", "prepare", folder, "--out", folder)
    assert line == f"{folder}: exists: choose another folder, or delete it first"
    line = refused(capsys, "data", "prepare", folder, "--out", out, "--split", "valid")
    assert line == f'{folder}: split \'valid\' is unknown: write "train" or "test"'
    line = refused(capsys, "data", "prepare", folder, "--out", out, "--channels", "2")
    assert line == f"{folder}: channels=2: write 1 (grey), 3 (RGB) or nothing"
    line = refused(capsys, "data", "inspect", tmp_path / "absent")
    assert line.startswith(f'{tmp_path / "absent"}: no such data: write "digits", "fashion16", ')
    assert not out.exists()


@pytest.mark.parametrize(
    ("package", "extra", "source"),
    [("lmdb", "lsun", "a_train_lmdb"), ("datasets", "hub", "hf://some/thing")],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path, capsys, monkeypatch, package, extra, source
):
    (tmp_path / "a_train_lmdb").mkdir()
    (tmp_path / "a_train_lmdb" / "data.mdb").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, "data", "inspect", source)
    assert line.endswith(f"pip install 'softtrunc[{extra}]'")


def test_presets_are_listed(capsys):
    assert main(["data", "presets"]) == 0
    text = capsys.readouterr().out
    assert "162,770" in text
    assert "lsun-bedroom256" in text


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_work_to_go_on_with(tmp_path, monkeypatch, capsys):
    for i in range(1500):
        path = tmp_path / "photos" / ("train" if i else "test") / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i)).save(path)
    command = ["data", "prepare", "photos", "--out", "out", "--split", "train"]
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    slow = [str(script), *command, "--workers", "1"]
    process = Forked(slow, cwd=tmp_path, env=environment())
    journal = tmp_path / ".out.partial" / "train.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert "going on from it" in capsys.readouterr().err
    images = np.load(tmp_path / "out" / "train.npy")
    for i in (1, 700, 1499):
        assert np.array_equal(images[i - 1].transpose(1, 2, 0), noise(i))


# The command itself, with every chunk taking its time and written down at once.
SLOW = """
import signal, sys, time
import softtrunc.data
# A shell's background jobs are started with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import softtrunc.data.preparing.fill as filling
real = filling.fill
filling.fill = lambda *task: (time.sleep(0.3), real(*task))[1]
sys.modules["softtrunc.data.preparing.prepare"]._SECONDS_BETWEEN_COMMITS = 0.0
from softtrunc.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepared data of which one pixel was changed behind the back of time and samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 64, 64), dtype=np.uint8)
    np.savez("a.npz", x_train=images)
    assert main(["data", "prepare", "a.npz", "--out", "p"]) == 0
    return tmp_path / "p"


def change_a_pixel(folder):
    file = folder / "train.npy"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-6000, os.SEEK_END)
        stream.write(b"\0\1\2\3")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


TRAIN = [
    "train", "digits-vp-nll", "--data", "p", "--out", "run", "--set", "training.batch_size=2",
    "--set", "network.options={base_channels: 4, channel_multipliers: [1], blocks_per_level: 1}",
    "--set", "data.image_size=64", "--set", "training.sample_every=null",
    "--set", "training.checkpoint_every=1", "--set", "training.samples=2",
]  # fmt: skip


def test_training_on_prepared_data_that_changed_ends_before_anything_is_saved(prepared, capsys):
    assert main([*TRAIN, "--set", "training.steps=1"]) == 0
    assert main(["data", "inspect", "p", "--verify"]) == 0
    assert "train: all 60 images are those of the card" in capsys.readouterr().err
    change_a_pixel(prepared)
    for more in ([], ["--verify"]):
        assert main([*TRAIN, "--set", "training.steps=3", "--resume", *more]) == 2
        assert "the images have changed" in capsys.readouterr().err
        saved = [path.name for path in (prepared.parent / "run" / "checkpoints").iterdir()]
        assert saved == ["step-00000001"]
    assert main(["data", "inspect", "p", "--verify"]) == 2
    assert "the images have changed" in capsys.readouterr().err
