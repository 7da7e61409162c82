"""Every argument and option of every verb with what nobody meant: numbers, words, places."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from harness import Proof, seeded, times
from world import VERBS, Verb, add_special_files

from softtrunc.cli import app

NUMBERS = [
    *("0", "-1", "-0", "1.5", "nan", "inf", "-inf", "1e3", "1e400", "5e-324", "0x10", "+1"),
    *(str(n) for n in (2**31, 2**62, 2**63, 2**64, 10**20, 10**400)),
    *("", " ", "one", "\u0661", "½", "1,2", "--", "-", "1e-5,", "all", "\udcff"),
]
WORDS = [
    *(
        "",
        " ",
        "x",
        "-",
        "--",
        "=",
        "x=",
        "=x",
        "a.b.c.d=1",
        "x" * 300,
        "x" * 70_000,
        "\x1b[31mred",
    ),
    *("\u202e", "[bold]x[/bold]", "{", "[", "!!python/object:os.system {}", "&a [*a]", "\udcff"),
    *(
        "ema",
        "raw",
        "train",
        "test",
        "left",
        "inception",
        "digits",
        "null",
        "sampling=1",
        "data={}",
    ),
    *("sampling.steps=[", "name=../../x", "training.steps=1", "evaluation.eps=2", "1e-5,2", "1,"),
    *("truncation.k=1,1", "truncation.k=", "truncation.k=1", "objective={}"),
]
PLACES = [
    *(
        "",
        ".",
        "..",
        "/",
        "./",
        "~",
        "-",
        " ",
        "\n",
        "nothing",
        "nothing/at/all",
        "grey.png/inside",
    ),
    *("x" * 300, "x" * 70_000, "x/" * 3000, "\udcff", "\x1b[31m", "loop", "dangling", "empty"),
    *("folder", "run", "images", "run/recipe.yaml", "c.pth", "c.json", "net.pt", "own.yaml"),
    *(
        "grey.png",
        "fifo",
        "socket",
        "piped",
        "null",
        "zero",
    ),
    *("odd.npz", "odd.zip", "odd.png", "odd.gif", "odd.csv", "odd.parquet", "odd.json", "odd.yaml"),
]
ODD = {"number": NUMBERS, "word": WORDS, "place": PLACES}

PLACED = {
    *("run", "runs", "out", "data", "above", "below", "trajectory", "features", "samples", "stats"),
    *("per_image", "grid", "config", "recipe", "recipes", "checkpoint", "source", "images", "mask"),
    "name",
}


class Argument(NamedTuple):
    """An argument or option of a verb: how it is written ("" for an argument) and what it takes."""

    flag: str
    takes: str


def arguments(verb: Verb) -> Iterator[Argument]:
    """Of what typer made of a verb, so that a new option is tried too."""
    command: Any = typer.main.get_command(app)
    for word in verb.command:
        command = getattr(command, "commands", {}).get(word, command)
    for option in command.params:
        if option.name == "push":  # asks the network
            continue
        annotation = str(option.type_descriptor.annotation)
        place = option.name in PLACED and "int" not in annotation
        place = place and option.opts[0] != "--checkpoint"  # a step
        number = "int" in annotation or "float" in annotation
        takes = "place" if place else "number" if number else "word"
        if annotation != str(bool):
            argument = option.param_type_name == "argument"
            yield Argument("" if argument else option.opts[0], takes)


def altered(command: list[str], argument: Argument, value: str, draw: random.Random) -> list[str]:
    """The command with one thing odd: the option's value, or one of the arguments."""
    words = list(command)
    if argument.flag in words:
        words[words.index(argument.flag) + 1] = value
    elif argument.flag:
        words += [argument.flag, value]
    else:
        start = 2 if words[0] in ("recipes", "data", "edit") else 1
        stop = next((i for i, w in enumerate(words) if w.startswith("-")), len(words))
        at = draw.randrange(start, stop + 1)
        words[at : at + (at < stop)] = [value]
    return words


def odd_things(folder: Path) -> None:
    add_special_files(folder)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty").touch()
    (folder / "folder").mkdir()


@pytest.mark.parametrize(
    "name", [name for name in VERBS if name not in ("recipes list", "data presets", "study")]
)
def test_odd_arguments(inhabited: Proof, name):
    odd_things(inhabited.folder)
    verb, draw = VERBS[name], seeded(name)
    known = list(arguments(verb))
    for _ in range(times(1)):
        argument = draw.choice(known)
        value = draw.choice(ODD[argument.takes])
        inhabited.attempt(
            f"{name} {argument.flag or 'argument'} {value[:30]!r}",
            *altered(verb.command, argument, value, draw),
            right=lambda _: None,
            codes=(0, 1, 2) if argument.flag in ("--set", "--steps") else (0, 2),
            restore=True,
        )
