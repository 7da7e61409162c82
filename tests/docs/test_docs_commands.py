"""Every command of README and docs is one that the command line takes."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
import typer
from documents import PAGES, ROOT, blocks, inline_commands, name
from recipe_keys import known_keys
from typer.core import TyperGroup
from typer.exceptions import TyperException

from softtrunc.cli import app, main
from softtrunc.recipes import recipe_names

# Programs that are not ours: they are named and not looked into.
OTHERS = {"cd", "docker", "git", "python3", "sbatch", "source"}
ROOT_COMMAND = typer.main.get_command(app)
ELLIPSES = {"...", "…"}


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command, None if nothing is."""
    program, *rest = words
    program = re.sub(r"^\.venv[\\/]?(bin|Scripts)[\\/]?", "", program)
    if program == "softtrunc":
        return ours(rest)
    if "softtrunc" in rest and rest[rest.index("softtrunc") - 1] == "-m":
        return ours(rest[rest.index("softtrunc") + 1 :])
    if program == "make":
        return None if set(rest) <= targets() | {"..."} or "=" in rest[0] else "no such target"
    if program == "pip" or rest[:2] == ["-m", "pip"]:
        return extras(rest)
    if words in (["accelerate", "launch"], ["accelerate", "config"]):
        return None
    if program == "python":
        return script(rest)
    return None if program in OTHERS else f"{program} is not known: mark the block as output?"


def ours(words: list[str]) -> str | None:
    """What is wrong with the words after `softtrunc`."""
    command = ROOT_COMMAND
    context = command.context_class(command, info_name="softtrunc")
    words = [word for word in words if word not in ELLIPSES]
    if not words or words == ["--version"] or words[0] in ("--install-completion", "--help"):
        return None
    while isinstance(command, TyperGroup):
        if not words or words[0] not in command.list_commands(context):
            return f"no such verb: {words[:1]}" if words else None
        verb = words.pop(0)
        command = command.get_command(context, verb)
        context = command.context_class(command, info_name=verb, parent=context)
    return values(command, context, [word.removeprefix("[").removesuffix("]") for word in words])


def values(command, context, words: list[str]) -> str | None:
    try:
        given, left, _ = command.make_parser(context).parse_args(words)
        if left:
            return f"too many words: {left}"
        for parameter in command.params:
            value = given.get(parameter.name)
            if value not in (None, [], ()) and not placeholder(value):
                parameter.get_runtime_param().coerce(value, param=parameter, ctx=context)
    except TyperException as error:
        return error.format_message()
    keys = [*(given.get("overrides") or []), *(given.get("vary") or [])]
    if wrong := [key for key in keys if key.split("=")[0] not in known_keys()]:
        return f"no such key: {wrong}"
    recipes = given.get("recipe") or given.get("recipes") or []
    recipes = [recipes] if isinstance(recipes, str) else recipes
    recipes = [each for each in recipes if not each.endswith(".yaml") and not placeholder(each)]
    wrong = sorted(set(recipes) - set(recipe_names()))
    return f"no such recipe: {wrong}" if wrong else None


def placeholder(word: object) -> bool:
    return isinstance(word, str) and word.isupper()


def targets() -> set[str]:
    return set(re.findall(r"^([\w]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def extras(words: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"softtrunc\S*\[([\w,]+)\]", " ".join(words))
    wrong = {each for names in named for each in names.split(",")}
    wrong -= set(project["optional-dependencies"])
    return f"no such extra: {sorted(wrong)}" if wrong else None


def script(words: list[str]) -> str | None:
    if words[:1] == ["-m"]:
        path = ROOT / words[1].replace(".", "/")
        known = words[1] in ("venv", "pip", "http.server", "build")
        exists = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        return None if known or exists else f"no such module: {words[1]}"
    files = [word for word in words if word.endswith(".py")]
    wrong = [each for each in files if not (ROOT / each).is_file() and "/" in each]
    return f"no such file: {wrong}" if wrong else None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_options(page):
    placed = [(each.place, words) for each in blocks(page) for words in each.commands]
    placed += [(name(page), words) for words in inline_commands(page)]
    told = [(where, words, complaint(words)) for where, words in placed]
    assert [f"{w}: {shlex.join(c)}: {why}" for w, c, why in told if why] == []


RUN = [each for page in PAGES for each in blocks(page) if each.marker == "run" and each.commands]


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.place)
def test_marked_commands_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in block.commands:
        assert words[0].endswith("softtrunc"), block.place
        assert main(words[1:]) == 0, (block.place, capsys.readouterr().err)


def test_some_commands_are_run():
    assert RUN


@pytest.mark.parametrize(
    "line",
    [
        "softtrunc trian folder-32",
        "softtrunc train folder-33",
        "softtrunc train folder-32 --dta x",
        "softtrunc train folder-32 --steps none",
        "softtrunc train folder-32 --set training.stepps=3",
        "softtrunc study folder-32 --vary truncation.kk=1,2",
        "softtrunc sample a b",
        "accelerate launch -m softtrunc sample RUN --sampler-steps 3",
        "make sense",
        "pip install 'softtrunc[everything]'",
        "python -m benchmarks.nothing",
        "python examples/nothing.py",
        "conjure RUN",
    ],
)
def test_a_wrong_command_is_found(line):
    assert complaint(shlex.split(line)) is not None
