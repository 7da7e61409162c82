"""Drawing that is stopped or spread over processes ends in the same bytes."""

import signal
import time

import pytest
from command_line import TINY, start
from test_cli_interruption import finish, launch

from softtrunc.cli import main

# Slow enough to be met in the middle: 12 batches of 40 network evaluations.
COMMAND = ["-n", "47", "--batch-size", "4", "--sampler", "pc", "--steps", "20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two"
    command = ["train", "digits-vp-nll-st", "--out", str(folder), *TINY]
    assert main([*command, "--set", "training.steps=2"]) == 0
    return folder


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "images.zip"
    assert main(["sample", str(run), *COMMAND, "--out", str(out)]) == 0
    return out.read_bytes()


def wait_for_pieces(out, process, count):
    pieces = out.with_name(f".{out.name}.partial")
    deadline = time.monotonic() + 120
    while len(list(pieces.glob("0*.zip"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return pieces


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_same_command_goes_on(run, straight, tmp_path, number):
    out = tmp_path / "images.zip"
    command = ["sample", str(run), *COMMAND, "--out", str(out)]
    process = start(*command, cwd=tmp_path)
    pieces = wait_for_pieces(out, process, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    kept = len(list(pieces.glob("0*.zip")))
    assert 2 <= kept < 12
    assert not out.exists()
    assert process.returncode == 128 + number
    assert f"stopped at {4 * kept} of 47 images; the same command goes on" in err
    if number == signal.SIGINT:
        return  # it leaves what SIGTERM leaves
    said = finish(start(*command, cwd=tmp_path))
    assert f"47 images in {out}" in said.replace("\n", "")
    assert out.read_bytes() == straight
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.zip", "images.zip.json"]


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(run, straight, tmp_path):
    out = tmp_path / "images.zip"
    said = launch(2, tmp_path, "-m", "softtrunc", "sample", str(run), *COMMAND, "--out", str(out))
    assert "Traceback" not in said
    assert out.read_bytes() == straight
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.zip", "images.zip.json"]
