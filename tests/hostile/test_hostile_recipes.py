"""Recipes with values that nobody meant, for every key, on the command line and in files."""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from harness import Outcome, Proof, seeded, times
from pydantic import BaseModel
from world import RECIPE, SMALL, sets

from softtrunc.feedback.yaml import parse_yaml
from softtrunc.recipes.schema import Recipe

NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 0.5, 1.5, 1e-3, 1e-10, 1e-12, 5e-324, -0.0, 1e10, 1e15, 1e19, 1e38, 1e308,
    -1e308, math.inf, -math.inf, math.nan, 10**12, 2**31, 2**63, 2**64, 10**30, 10**400,
    0.9999999999999999, 1 - 1e-10, 1 + 1e-12, 255, 256, 100_000,
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, "", " ", "x", "no", "1e3", "0x10", "\u0661\u0662", "inf", "x" * 5000, "𝄞",
    "\x1b[31m", "../..", "/dev/zero", "[bold]", "\x00", "\u202e", [], {}, [1], [1, 2], [1, 2, 3],
    ["a"], [[]], [None], [0.9, 0.999], [math.nan, 1], [10**30, 1], [1, 10**6], {"a": 1}, {"": {}},
    {"kind": "ve"}, {"sampler": "pc"}, [{}] * 20, {str(i): i for i in range(50)},
]  # fmt: skip


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections(part)


def keys(section: type[BaseModel] = Recipe, before: str = "") -> Iterator[str]:
    """Every key of the schema with dots; of a union's members each."""
    for name, field in section.model_fields.items():
        yield before + name
        for inner in sections(field.annotation):
            yield from keys(inner, f"{before}{name}.")


def tags(key: str, draw: random.Random) -> list[str]:
    """What must be set besides so that a key of a union's member is known."""
    if key.startswith("sde."):
        return [f"sde.kind={draw.choice(['vp', 'subvp', 've', 'rve'])}"]
    if key.startswith("sampling."):
        names = ["pc", "euler_maruyama", "ancestral", "ode", "heun", "dpm_solver"]
        return [f"sampling.sampler={draw.choice(names)}"]
    return []


def flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def wraps(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def same(found: Any, given: Any) -> bool:
    """Whether a recipe says what was written; numbers and truth values may be written as words."""
    if isinstance(given, dict) and isinstance(found, dict):
        return all(key in found and same(found[key], given[key]) for key in given)
    if isinstance(given, list) and isinstance(found, list):
        return len(found) == len(given) and all(map(same, found, given))
    if isinstance(found, bool) or isinstance(given, bool):
        words = {True: (True, 1, "1", "true", "yes", "on", "x"), False: (False, 0, "0", "no")}
        return isinstance(found, bool) and given in words[found]
    if isinstance(found, float):
        return found == float(given)
    if isinstance(found, int) and isinstance(given, str):
        return found == int(given)
    return bool(found == given)


def shown(key: str, value: Any) -> Any:
    def right(outcome: Outcome) -> None:
        found = at(parse_yaml(outcome.out), key)
        assert same(found, value), f"{key} became {found!r}"

    return right


def words(key: str, value: Any) -> str:
    return f"{key} = {str(value)[:40]!r}"


def choices(seed: int, count: int, *starts: str) -> Iterator[tuple[list[str], str, Any]]:
    """Keys that start so, each with an odd value; what else must be set for it to be known."""
    draw = seeded(seed)
    known = [key for key in dict.fromkeys(keys()) if key.startswith(starts)]
    for _ in range(times(count)):
        key = draw.choice(known)
        odd = NUMBERS if draw.random() < 0.7 else OTHERS
        yield tags(key, draw), key, draw.choice(odd)


def test_values_on_the_command_line(hostile: Proof):
    for others, key, value in choices(0, 12, ""):
        hostile.attempt(
            words(key, value),
            *("recipes", "show", RECIPE, *sets(*others, f"{key}={flow(value)}")),
            right=shown(key, value),
        )


def test_values_in_files(hostile: Proof):
    for others, key, value in choices(1, 5, ""):
        content = {"extends": RECIPE}
        Path("own.yaml").write_text(
            yaml.safe_dump(content | wraps(key, value), allow_unicode=True), encoding="utf-8"
        )
        hostile.attempt(
            words(key, value),
            *("recipes", "show", "own.yaml", *sets(*others)),
            right=shown(key, value) if not others else lambda _: None,
        )


def test_plans(hostile: Proof):
    for others, key, value in choices(2, 4, "data", "sde", "trunc", "obj", "net", "train", "samp"):
        hostile.attempt(
            words(key, value),
            *("train", RECIPE, *sets(*SMALL, *others, f"{key}={flow(value)}"), "--dry-run"),
            right=lambda _: None,
        )
