"""Run folders with files cut short, emptied, swapped, flipped, linked or missing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Outcome, Proof, at_length, seeded, times
from world import FAST, RECIPE, ROUGH, SHORT, add_special_files, sets

LATER = (*SHORT, "training.steps=3")
ASKED = {
    "sample": ["sample", "run", "-n", "1", *FAST, "--out", "drawn.npz"],
    "train --resume": ["train", RECIPE, *sets(*LATER), "--out", "run", "--resume"],
    "evaluate": ["evaluate", "run", "--bpd", "--limit", "1", *sets(*ROUGH)],
    "export": ["export", "run", "--out", "exported"],
    "report": ["report", "run", "--out", "page.html"],
}


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def blank(path: Path, draw: random.Random) -> None:
    """As a file system that crashed leaves a file: the length is there, the content is not."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))].ljust(len(content), b"\0"))


def swap(path: Path, draw: random.Random) -> None:
    other = draw.choice([p for p in sorted(Path("run").rglob("*")) if p.is_file() and p != path])
    path.write_bytes(other.read_bytes())


def of_another_run(path: Path, draw: random.Random) -> None:
    shutil.copy(Path("two", path.relative_to("run")), path)


def missing(path: Path, draw: random.Random) -> None:
    path.unlink()


def a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path, draw: random.Random) -> None:
    path.unlink()
    outside = [Path(name).absolute() for name in ("zero", "null", "own.yaml")]
    path.symlink_to(draw.choice([path.name, "nowhere", "..", *outside]))


def a_pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    cut, empty, flip, blank, swap, of_another_run, missing, a_folder, a_link, a_pipe,
]  # fmt: skip


@pytest.mark.parametrize("verb", ASKED)
def test_damaged_runs(inhabited: Proof, verb):
    draw, first = seeded(verb), verb == "sample" or at_length()
    add_special_files(inhabited.folder)
    files = sorted(p for p in Path("run").rglob("*") if p.is_file())
    drawn: list[bytes] = []
    for number in range(first + times(1)):
        path, damage = draw.choice(files), draw.choice(DAMAGES)
        if number or not first:  # first what an undamaged run gives
            damage(path, draw)

        def right(_: Outcome, damage: object = damage) -> None:
            if verb == "sample" and damage is not of_another_run:
                drawn.append(Path("drawn.npz").read_bytes())
                assert drawn[-1] == drawn[0], "other images"

        what = f"{verb}: {damage.__name__} {path}"
        # Exit 1: the work failed, as a training that cannot write.
        inhabited.attempt(what, *ASKED[verb], right=right, codes=(0, 1, 2), restore=True)
        shutil.rmtree("run")
        shutil.copytree(inhabited.kept / "run", "run")
