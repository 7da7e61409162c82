"""What stands on a terminal, and where the output goes: control characters, pipes, encodings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from softtrunc.cli import main

pytestmark = pytest.mark.usefixtures("unchecked")

RED = "\x1b[31mred\u202e"


def test_control_characters_are_shown_as_escapes(tmp_path, monkeypatch, capsys):
    """In refusals, in lines and in tables; what looks like rich's markup stays as it is."""
    monkeypatch.chdir(tmp_path)
    shown = r"\x1b[31mred\u202e"
    assert main(["train", f"{RED}.yaml"]) == 2
    assert f"{shown}.yaml" in capsys.readouterr().err
    folder = Path(f"[bold]{RED}")
    folder.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    (folder / f"{RED}.png").write_bytes(b"no image")
    assert main(["data", "inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"[bold]{shown}" in out  # the table
    assert f"unreadable: {shown}.png" in out  # a line
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("{} recipes list | head -1; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{} recipes list > /dev/full", 1, "No space left"),
        ("{} recipes show digits-ve >&-", 0, ""),
    ],
)
def test_whatever_stdout_is(shell, code, words):
    if "/dev/full" in shell and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    line = shell.format(f"{sys.executable} -m softtrunc")
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    told = done.stderr.decode(errors="replace")
    assert "Traceback" not in told
    assert words in told
    # A short list may fit the pipe.
    assert done.returncode in (code, 0 if code == 141 else code), told


@pytest.mark.parametrize("verb", ["recipes list", "recipes show digits-ve"])
def test_whoever_reads_the_output_has_seen_enough(verb):
    """Nobody reads the pipe from the start: what is printed fails at once, or as it is flushed."""
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "softtrunc", *verb.split()]
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_an_encoding_that_lacks_a_letter_gets_its_escape(encoding):
    """The list of recipes names the weighting sigma squared by its letters."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "softtrunc", "recipes", "list"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"\\u03c3" in done.stdout
    assert b"digits-vp-nll-st" in done.stdout
