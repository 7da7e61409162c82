"""From YAML and command-line overrides to a validated recipe."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from softtrunc.feedback.errors import UserError, nearest, user_errors
from softtrunc.feedback.yaml import dump_yaml, parse_yaml
from softtrunc.recipes.schema import Recipe

_TAGS = ("kind", "sampler")
# What is drawn, and how exactly the network is evaluated, whichever sampler does it.
_KEPT = ("label", "guidance", "guidance_interval", "precision")

# Keys of version 0.1 that chose among arms no study found better, and what they were by default.
_RETIRED: dict[str, dict[str, Any]] = {
    "truncation": {"sigmoid": None, "per": "step", "sequence": "random"},
    "objective": {"error_power": 0.0},
}


def _library() -> dict[str, Path]:
    """Every recipe and base of the package by name; bases begin with an underscore."""
    folder = Path(str(resources.files("softtrunc.recipes"))) / "library"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return [name for name in _library() if not name.startswith("_")]


def _parse_yaml(text: str, where: str) -> Any:
    with user_errors(where):
        return parse_yaml(text)


def parse_flow(text: str, where: str) -> Any:
    """A value, list or mapping written on one line of YAML, as the command line takes them.

    Raises:
        UserError: if it is not YAML, saying `where`.
    """
    value = _parse_yaml(text, where)
    # YAML takes the colon of {a:1} for a letter.
    if isinstance(value, dict) and any(v is None and ":" in str(k) for k, v in value.items()):
        raise UserError(f"{where}: write a space after the colon: {{key: value}}")
    return _infinite(value)


def _infinite(value: Any) -> Any:
    """YAML's infinity is `.inf`; people write `inf`."""
    if isinstance(value, list):
        return [_infinite(item) for item in value]
    if isinstance(value, dict):
        return {key: _infinite(item) for key, item in value.items()}
    return math.inf if value in ("inf", "infinity") else value


def _merge(base: Any, over: Any) -> Any:
    """`over` on top of `base`, mapping by mapping; another kind of thing replaces the whole."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    if any(tag in over and base.get(tag, over[tag]) != over[tag] for tag in _TAGS):
        return {key: base[key] for key in _KEPT if key in base} | dict(over)
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value) if key in base else value
    return merged


def _read(path: Path, name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe file with everything that it extends folded in."""
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys; see `softtrunc recipes show`")
    raw.pop("provenance", None)  # a run's own recipe.yaml is a recipe too
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    library = _library()
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: write the name of one recipe")
    if parent in (*seen, name):
        raise UserError(f"{path}: extends goes in a circle: {' -> '.join((*seen, name, parent))}")
    if parent not in library:
        raise UserError(f"{path}: extends {parent!r}: no such recipe; {nearest(parent, library)}")
    merged: dict[str, Any] = _merge(_read(library[parent], parent, (*seen, name)), raw)
    if "description" not in raw and path not in library.values():
        merged["description"] = f"after {parent}"  # whose words would tell of something else
    return merged


def _nested(override: str) -> dict[str, Any]:
    """`a.b=c` as {a: {b: c}}, c read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write key=value, e.g. --set truncation.k=0.9")
    value: Any = parse_flow(text, f"--set {override}")
    for key in reversed(path.strip().split(".")):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section that a field holds, or those of a union."""
    found = typing.get_args(annotation) or (annotation,)
    return [each for each in found if isinstance(each, type) and issubclass(each, BaseModel)]


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """The keys that stand beside the last step of an error location."""
    sections: list[type[BaseModel]] = [Recipe]
    for step in location[:-1]:
        # pydantic writes the tag of a union's member as a step of the path
        tagged = [
            section
            for section in sections
            for tag in _TAGS
            if (field := section.model_fields.get(tag))
            and step in typing.get_args(field.annotation)
        ]
        fields = [section.model_fields.get(str(step)) for section in sections]
        sections = tagged or [s for f in fields if f is not None for s in _sections(f.annotation)]
    return list(sections[0].model_fields) if sections else []


def _explain(error: ValidationError, where: str) -> UserError:
    """The first thing wrong, in one line."""
    first = error.errors()[0]
    location = first["loc"]
    shown = [str(step) for step in location]
    if len(shown) > 2 and shown[0] in ("sde", "sampling"):
        del shown[1]
    key = ".".join(shown) or "recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        hint = nearest(str(location[-1]), _known_keys(location))
        of = f" of {location[1]!r}" if len(shown) < len(location) else ""
        return UserError(f"{where}: unknown key {key!r}{of}: {hint}{more}")
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        known = context["expected_tags"].replace("'", "").split(", ")
        field = context["discriminator"].strip("'")
        return UserError(
            f"{where}: {key}.{field}={context['tag']!r} is unknown: "
            f"{nearest(context['tag'], known)}{more}"
        )
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f"={first['input']!r}"
    return UserError(f"{where}: {key}{given}: {message[0].lower()}{message[1:]}{more}")


def parse_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """Validate a mapping.

    Raises:
        UserError: naming the first thing that is wrong, and `where`.
    """
    try:
        return Recipe.model_validate(_without_retired(raw, where))
    except ValidationError as error:
        raise _explain(error, where) from error


def _without_retired(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The mapping without keys that are gone, as an older run's recipe holds them by default.

    Raises:
        UserError: if one of them has another value.
    """
    kept = dict(raw)
    for section, retired in _RETIRED.items():
        given = kept.get(section)
        if not isinstance(given, Mapping):
            continue
        for key, default in retired.items():
            if given.get(key, default) != default:
                raise UserError(
                    f"{where}: {section}.{key}={given[key]}: gone, since no study found it better "
                    "(docs/results.md): leave it out"
                )
        kept[section] = {key: value for key, value in given.items() if key not in retired}
    return kept


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of the package by name, or a YAML file by path, with `a.b=c` overrides applied.

    Raises:
        UserError: if there is no such recipe, or a key or value is wrong.
    """
    library = _library()
    path = Path(name)
    if name in library and not name.startswith("_"):
        raw = {"name": name, **_read(library[name], name)}
    elif path.suffix in (".yaml", ".yml"):
        with user_errors(f"recipe {name}"):
            found = path.is_file()
        if not found:
            raise UserError(f"recipe {name}: no such file")
        raw = {"name": path.stem, **_read(path, path.stem)}
    else:
        raise UserError(f"recipe {name!r} is unknown: {nearest(name, recipe_names())}")
    return _overridden(raw, overrides, f"recipe {name}")


def override_recipe(recipe: Recipe, overrides: Sequence[str], where: str) -> Recipe:
    """A recipe with `a.b=c` overrides applied.

    Raises:
        UserError: if a key or value is wrong, saying `where`.
    """
    return _overridden(recipe.model_dump(), overrides, where) if overrides else recipe


def _overridden(raw: Mapping[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    merged: Any = raw
    # Of which kind a section is comes first: another kind has other keys, in whatever order told.
    for change in sorted(map(_nested, overrides), key=lambda change: not _names_kind(change)):
        merged = _merge(merged, change)
    return parse_recipe(merged, where)


def _names_kind(change: Mapping[str, Any]) -> bool:
    sections = (section for section in change.values() if isinstance(section, Mapping))
    return any(tag in section for section in sections for tag in _TAGS)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    return dump_yaml(recipe.model_dump())
