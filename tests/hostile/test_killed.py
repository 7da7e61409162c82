"""Every verb that writes, killed at its writes: what was there stays whole, and it goes on.

The command runs in a forked child that counts each change of the file system (Python's own audit
events tell of them) and ends itself without a word at a chosen one: before it, or, where a file is
opened to be written, with half of it written.
"""

from __future__ import annotations

import os
import queue
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import run, snapshot, times
from world import VERBS

from softtrunc.jobs import side_by_side

_CHANGES = {
    *("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate"),
    "shutil.rmtree",
}
HALF = b'{"half": [1, 2, '
# The first ones write in all the ways that there are; the others are tried with the flag.
WRITERS = ["data prepare", "import", "export", "sample", "edit encode", "train"]
if times(1) > 1:
    WRITERS = [name for name, verb in VERBS.items() if verb.writes]


class Change(NamedTuple):
    """The n-th change of the file system that a command makes."""

    number: int
    torn: bool


def _opens_to_write(arguments: tuple) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


class Watch:
    """Counts changes below a folder; kills the process at one of them."""

    def __init__(self, folder: Path, at: Change | None) -> None:
        self.folder, self.at = str(folder), at
        self.seen: list[bool] = []
        self.busy = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.busy or not (event in _CHANGES or event == "open"):
            return
        if event == "open" and not _opens_to_write(arguments):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = str(Path.cwd() / os.fsdecode(arguments[0]))
        if not path.startswith(self.folder):
            return
        self.seen.append(event == "open")
        if self.at is not None and len(self.seen) > self.at.number:
            self.busy = True
            if self.at.torn and event == "open":
                self._tear(path, arguments[1])
            os.kill(os.getpid(), signal.SIGKILL)

    def _tear(self, path: str, mode: object) -> None:
        """Leave the file as a process does that dies while writing it."""
        if isinstance(mode, str) and not Path(path).is_dir():
            with Path(path).open("ab" if "a" in mode or "+" in mode else "wb") as file:
                file.write(HALF)


def in_child(command: list[str], folder: Path, at: Change | None) -> tuple[int, list[bool]]:
    """Run a command in a child; its exit code (-9: killed), and of each change whether it opens."""
    told = folder.parent / "told"
    child = os.fork()
    if child == 0:
        watch = Watch(folder, at)
        sys.addaudithook(watch)
        code = run(*command).code
        watch.busy = True
        told.write_text("".join("o" if opens else "c" for opens in watch.seen))
        os._exit(99 if code is None else code)
    _, status = os.waitpid(child, 0)
    changes = told.read_text() if told.exists() else ""
    told.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), [letter == "o" for letter in changes]


# What says when it was written.
_DATED = (
    *("recipe.yaml", "evaluation.json", "anatomy.json", "study.json", "metrics.jsonl", ".html"),
    *("state.json", "figures.json", "README.md"),
)


def outcome(folder: Path, writes: tuple[str, ...]) -> dict[str, str]:
    """What a command made; of files that say when, only that they are there."""
    found = {n: v for n, v in snapshot(folder).items() if n.split("/")[0] in _tops(writes)}
    return {n: "" if n.endswith(_DATED) else value for n, value in found.items()}


def _tops(writes: tuple[str, ...]) -> set[str]:
    return {name.split("/")[0] for name in writes}


class InOneProcess:
    """Children of a command as calls, so that their writes are watched too."""

    Queue = queue.Queue

    class Process:
        exitcode = 0

        def __init__(self, target, args) -> None:
            self.call = lambda: target(*args)

        def start(self) -> None:
            self.call()

        def is_alive(self) -> bool:
            return False

        def join(self) -> None: ...

        terminate = join


@pytest.fixture
def alone(monkeypatch) -> None:
    monkeypatch.setattr(side_by_side.multiprocessing, "get_context", lambda _: InOneProcess)


def left_over(folder: Path) -> list[str]:
    return [name for name in snapshot(folder) if ".partial" in name]


def chosen(changes: list[bool], draw: random.Random) -> Iterator[Change]:
    """Where to kill: before some change, and with some file half-written."""
    opened = [n for n, opens in enumerate(changes) if opens]
    for number in range(times(1)):
        if opened and (number + len(changes)) % 2:
            yield Change(draw.choice(opened), torn=True)
        else:
            yield Change(draw.randrange(len(changes)), torn=False)


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_leaves_what_was_there_and_the_same_command_ends(
    world, tmp_path, monkeypatch, unchecked, alone, name
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    command, writes = VERBS[name]
    again = [*command, "--resume"] if name == "train" else command

    def fresh(folder: str) -> Path:
        shutil.copytree(world, tmp_path / folder)
        monkeypatch.chdir(tmp_path / folder)
        return tmp_path / folder

    straight = fresh("straight")
    code, changes = in_child(command, straight, None)
    assert code == 0
    truth, before = outcome(straight, writes), snapshot(world)
    for number, at in enumerate(chosen(changes, random.Random(name))):
        killed = fresh(f"killed{number}")
        assert in_child(command, killed, at)[0] == -signal.SIGKILL, at
        after = snapshot(killed)
        changed = {n for n, value in before.items() if after.get(n) != value}
        assert changed <= set(writes), f"{at}: lost {changed}"
        for path in map(killed.joinpath, writes):
            if path.is_file():  # in its place, so it is taken for whole
                assert HALF not in path.read_bytes(), f"{at}: {path.name} is half-written"
        # In a child too: forks of a process that has computed may wait for its threads.
        assert in_child(again, killed, None)[0] == 0, at
        assert outcome(killed, writes) == truth, at
        assert not left_over(killed), at
        shutil.rmtree(killed)
