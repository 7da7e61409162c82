"""What is released agrees with itself: versions, the files of a build, the recipe of the image."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import softtrunc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def instructions() -> list[tuple[str, str]]:
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(first, rest) for first, rest in words]


def test_the_version_is_the_same_everywhere():
    version = PROJECT["project"]["version"]
    assert softtrunc.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)} ", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_every_file_of_the_sdist_exists():
    for path in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / path.removeprefix("/")).exists(), path


def test_constraints_pin_what_the_project_asks_for():
    def plain(name: str) -> str:
        return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")

    pins = {plain(line) for line in (ROOT / "constraints.txt").read_text().split()}
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(each for extra in extras for each in extra)]
    assert {plain(each) for each in asked} - pins == {"softtrunc"}


def test_the_dockerfile_holds_known_instructions_in_order():
    first = [word for word, _ in instructions()]
    assert set(first) <= INSTRUCTIONS
    assert first[:2] == ["ARG", "FROM"]
    assert all(ord(letter) < 128 for letter in DOCKERFILE)


def test_what_the_dockerfile_copies_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    sources = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    copied = [name for words in sources if not words[0].startswith("--") for name in words]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in let_in), name


def test_stages_and_arguments_of_the_dockerfile_are_declared():
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"--from=(\w+)", DOCKERFILE)) <= stages
    declared = set(re.findall(r"^(?:ARG|ENV) (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)\}", DOCKERFILE)) <= declared
