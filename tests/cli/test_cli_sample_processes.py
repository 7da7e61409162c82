"""Drawing that is stopped or spread over processes ends in the same bytes."""

import os
import signal

import pytest
from command_line import TINY
from test_cli_interruption import launch

from softtrunc.cli import main
from softtrunc.runs import draw as drawing

COMMAND = ["-n", "47", "--batch-size", "4", "--sampler", "pc", "--steps", "5"]


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_same_command_goes_on(run, straight, tmp_path, monkeypatch, capsys, number):
    out = tmp_path / "images.zip"
    command = ["sample", str(run), *COMMAND, "--out", str(out)]

    def draw_batches(*arguments, real=drawing.draw_batches, **options):
        for count, batch in enumerate(real(*arguments, **options)):
            if count == 2:
                os.kill(os.getpid(), number)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_batches", draw_batches)
        assert main(command) == 128 + number
    # What was drawn already is kept.
    assert "stopped at 12 of 47 images; the same command goes on" in capsys.readouterr().err
    assert len(list((tmp_path / ".images.zip.partial").glob("0*.zip"))) == 3
    assert not out.exists()
    assert main(command) == 0
    assert out.read_bytes() == straight
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.zip", "images.zip.json"]


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(run, straight, tmp_path):
    out = tmp_path / "images.zip"
    said = launch(2, tmp_path, "-m", "softtrunc", "sample", str(run), *COMMAND, "--out", str(out))
    assert "Traceback" not in said
    assert out.read_bytes() == straight
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.zip", "images.zip.json"]
