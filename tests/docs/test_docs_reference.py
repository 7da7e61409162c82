"""The reference is whole: every key, verb and public module has its place, made from the code."""

from __future__ import annotations

import pkgutil
import re
import typing

import pytest
import yaml
from documents import PAGES, ROOT, name
from recipe_keys import groups, recipe_tables

import softtrunc
from softtrunc.cli import app
from softtrunc.recipes.schema import Recipe
from softtrunc.recipes.values import Section

KEYS = [(group, key) for group in groups() for key in group.keys]


def find(place: str) -> typing.Any:
    return next(key for _, key in KEYS if key.name == place)


def test_every_section_of_the_schema_is_in_the_table():
    def inner(cls: type[Section]) -> set[type[Section]]:
        known = {cls}
        for field in cls.model_fields.values():
            for each in typing.get_args(field.annotation) or (field.annotation,):
                if isinstance(each, type) and issubclass(each, Section):
                    known |= inner(each)
        return known

    sections = inner(Recipe)
    assert len(groups()) == len(sections)
    assert len(KEYS) == sum(
        1 for s in sections for f in s.model_fields.values() if not _is_section(f.annotation)
    )


def _is_section(annotation: object) -> bool:
    members = typing.get_args(annotation) or (annotation,)
    return any(isinstance(each, type) and issubclass(each, Section) for each in members)


@pytest.mark.parametrize(("group", "key"), KEYS, ids=[f"{g.choice}{k.name}" for g, k in KEYS])
def test_every_key_says_what_it_means(group, key):
    assert key.meaning, f"{key.name} ({group.choice}): a line in the docstring of its section"


def test_values_and_defaults_are_those_of_the_schema():
    assert find("training.ema_rate").values == "number ≥ 0, < 1"
    assert find("training.ema_rate").default == "`0.9999`"
    assert find("training.steps").values == "integer ≥ 1"
    assert find("training.steps").default == "required"
    assert find("evaluation.eps").values == "number > 0, < 1"
    assert find("data.channels").values == "integer ≥ 1, ≤ 1,000,000 or null"
    assert find("evaluation.dequantizer.width").default == "`32`"
    assert find("sampling.churn_range").default == "`[0.0, null]`"


def test_the_table_is_markdown():
    rows = [line for line in recipe_tables().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_every_command_is_on_the_page_of_commands():
    from commands import command_pages

    page = command_pages()
    verbs = [info.name or info.callback.__name__ for info in app.registered_commands]
    for verb in [*verbs, "data inspect", "edit inpaint", "recipes show"]:
        assert f"## softtrunc {verb}\n" in page
    assert "`--trajectory <path>`" in page


def test_every_public_name_has_a_page():
    for public in set(softtrunc.__all__) - {"__version__"}:
        home = getattr(softtrunc, public).__module__.split(".")[1]
        assert (ROOT / "docs" / "reference" / f"{home}.md").is_file(), public


def test_every_reference_page_is_of_a_module():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for module in re.findall(r"^::: (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            pkgutil.resolve_name(module)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert nav == {name(page).removeprefix("docs/") for page in PAGES if "docs" in page.parts}
