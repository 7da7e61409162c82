"""The table of every recipe key: values, default and meaning, from the schema alone."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import yaml
from pydantic_core import PydanticUndefined

from softtrunc.recipes.schema import Recipe
from softtrunc.recipes.values import Section

# Bounds beyond these say where float32 or a counter ends, and nothing that a user would write.
_TINY, _HUGE = 1e-30, 1e15
_HEAD = "| key | values | default | meaning |"


class Key(NamedTuple):
    """One key: its place in a recipe, and what stands in the table."""

    name: str
    values: str
    default: str
    meaning: str


class Group(NamedTuple):
    """The keys of one section, or of one choice of it."""

    path: str
    choice: str
    about: str
    keys: list[Key]


@cache
def groups() -> list[Group]:
    """Every section of a recipe, in the order of the schema."""
    return list(_groups(Recipe, "", ""))


def known_keys() -> frozenset[str]:
    """Every key of a recipe, sections included."""
    found = groups()
    return frozenset([group.path for group in found] + [k.name for g in found for k in g.keys])


def recipe_tables() -> str:
    """Markdown: a heading and a table for every section."""
    parts = []
    for group in groups():
        title = f"`{group.path}`" if group.path else "Top level"
        parts.append(f"## {title}{f': {group.choice}' if group.choice else ''}\n\n{group.about}\n")
        rows = [f"| `{k.name}` | {k.values} | {k.default} | {k.meaning} |" for k in group.keys]
        parts.append("\n".join([_HEAD, "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _groups(section: type[Section], path: str, choice: str) -> Iterator[Group]:
    properties = section.model_json_schema(ref_template="#/$defs/{model}")
    about = inspect.getdoc(section) or ""
    meanings = _meanings(section)
    keys, inner = [], []
    for name, field in section.model_fields.items():
        place = f"{path}.{name}" if path else name
        sections = _sections(field.annotation)
        if sections:
            several = len(sections) > 1
            inner += [(each, place, _choice(each) if several else "") for each in sections]
            continue
        values = _values(properties["properties"][name], properties.get("$defs", {}))
        keys.append(Key(place, values, _default(field.default), meanings.get(name, "")))
    yield Group(path, choice, about.split("\n\n")[0].replace("\n", " "), keys)
    for each, place, word in inner:
        yield from _groups(each, place, word)


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [each for part in typing.get_args(annotation) for each in _sections(part)]
    return []


def _choice(section: type[Section]) -> str:
    """The words that choose this section among others: `kind: vp`."""
    for name in ("kind", "sampler"):
        if name in section.model_fields:
            words = typing.get_args(section.model_fields[name].annotation)
            return f"`{name}: {' | '.join(words)}`"
    raise TypeError(f"{section.__name__} has no key that chooses it")


def _meanings(section: type[Section]) -> dict[str, str]:
    """What the docstrings say of each key; a subclass overrules its parents."""
    told: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        text = inspect.cleandoc(cls.__doc__ or "") if cls is not object else ""
        for item in re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE):
            told |= _told(" ".join(item.split()))
    return told


def _told(item: str) -> dict[str, str]:
    """'`a`, `b`: both. `c`: this' as {a: both., b: both., c: this}."""
    head = r"(?:^|(?<=[.;] ))(`\w+`(?:, `\w+`)*): "
    pieces = re.split(head, item)[1:]
    told = {}
    for names, meaning in zip(pieces[::2], pieces[1::2], strict=True):
        for name in re.findall(r"`(\w+)`", names):
            told[name] = meaning.strip().rstrip(";").replace("|", "\\|")
    return told


def _values(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Which values a JSON schema allows, in words."""
    if "$ref" in schema:
        return _values(known[schema["$ref"].rsplit("/", 1)[-1]], known)
    if "anyOf" in schema:
        return " or ".join(_values(each, known) for each in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(_values(each, known) for each in schema["prefixItems"]) + "]"
        return f"list of {_values(schema['items'], known)}"
    words = {"boolean": "true or false", "null": "null", "string": "text", "object": "mapping"}
    return words.get(kind) or ({"integer": "integer"}.get(kind, "number") + _range(schema))


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a number, without those at which arithmetic itself ends."""
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    told = {sign: schema[bound] for bound, sign in bounds.items() if bound in schema}
    if 0 < told.get("≥", 0) < _TINY:
        del told["≥"]
        told = {">": 0} | told
    numbers = {sign: f"{v:,}" if isinstance(v, int) else f"{v:g}" for sign, v in told.items()}
    return ",".join(f" {sign} {numbers[sign]}" for sign, v in told.items() if v < _HUGE)


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"
