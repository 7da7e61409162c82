"""Every verb that writes, killed at its writes: what was there stays whole, and it goes on.

The command runs in a child that counts each change of the file system (Python's own audit events
tell of them) and ends itself without a word at a chosen one: before it, or, where a file is opened
to be written, with half of it written.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import at_length, seeded, snapshot, times
from killing import HALF, Change, Children
from world import VERBS

# These write in all the ways that there are; the others are tried with the flag.
WRITERS = ["data prepare", "import", "export", "sample", "train"]
if at_length():
    WRITERS = [name for name, verb in VERBS.items() if verb.writes]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.stop()


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
def test_a_kill_leaves_what_was_there_and_the_same_command_ends(world, tmp_path, children, name):
    command, writes = VERBS[name]
    again = [*command, "--resume"] if name == "train" else command

    def fresh(folder: str) -> Path:
        return Path(shutil.copytree(world, tmp_path / folder))

    straight = fresh("straight")
    code, changes, told = children.run(command, straight)
    assert code == 0, told
    truth, before = outcome(straight, writes), snapshot(world)
    for number, at in enumerate(chosen(changes, seeded(name))):
        killed = fresh(f"killed{number}")
        ended = children.run(command, killed, at)
        assert ended.code == -signal.SIGKILL, f"{at}: {ended.told}"
        after = snapshot(killed)
        changed = {n for n, value in before.items() if after.get(n) != value}
        assert changed <= set(writes), f"{at}: lost {changed}"
        for path in map(killed.joinpath, writes):
            if path.is_file():  # in its place, so it is taken for whole
                assert HALF not in path.read_bytes(), f"{at}: {path.name} is half-written"
        ended = children.run(again, killed)
        assert ended.code == 0, f"{at}: {ended.told}"
        assert outcome(killed, writes) == truth, at
        assert not left_over(killed), at
        shutil.rmtree(killed)
