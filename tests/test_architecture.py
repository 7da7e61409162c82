"""The folder says the same sentence as the README: imports run one way, and cost little."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import pytest
import torch

import softtrunc

PACKAGE = Path(softtrunc.__file__).parent
PROJECT = Path(__file__).parents[1] / "pyproject.toml"

LONGEST_FILE, LONGEST_FUNCTION = 400, 80

# The ground that everything but the core may stand on: it imports nothing of the package.
GROUND = {"feedback"}

# What holds a model may name its type and its SDE's.
WORDS = {"sde", "score"}

BELOW_TRAINING = {"objective", "truncation", "times", "weighting", "networks", "data"}

# Which part of the package may import which; everything may import what is outside.
ARROWS: dict[str, set[str]] = {
    "truncation": set(),
    "sde": set(),
    "feedback": set(),
    "records": GROUND,
    "networks": GROUND,
    "metrics": GROUND,
    "data": GROUND,
    "times": {"sde"},
    "noise": {"sde"},
    "hub": GROUND,
    "pretrained": {"networks", "sde", "hub"} | GROUND,
    "prediction": {"sde"},
    "score": {"sde", "prediction", "hub", "pretrained"},
    "guidance": WORDS,
    "weighting": {"truncation", "sde"},
    "objective": {"truncation", "times", "weighting"} | WORDS,
    "flow": {"noise"} | WORDS | GROUND,
    "samplers": {"flow", "noise"} | WORDS,
    "density": {"flow", "noise", "times"} | WORDS,
    # A checkpoint may be described by the name of a recipe.
    "interop": {"networks", "hub", "pretrained", "recipes"} | WORDS | GROUND,
    "training": {"objective", "data", "pretrained", "records"} | WORDS | GROUND,
    # What the truncation prior makes of the times is told of the loss itself.
    "evaluation": {"samplers", "density", "metrics", "data", "records", "objective", "times"}
    | WORDS
    | GROUND,
    "report": {"evaluation", "records", "truncation"} | GROUND,
    # Here alone names become objects of every part.
    "recipes": {"training", "samplers", "evaluation", "guidance"} | BELOW_TRAINING | WORDS | GROUND,
    "runs": {"recipes", "samplers", "training", "data", "records", "score"} | GROUND,
    "jobs": {
        *("runs", "recipes", "report", "evaluation", "training", "interop", "records"),
        *("samplers", "density", "metrics", "data", "noise", "hub", "pretrained", "networks"),
        "objective",
        *WORDS,
        *GROUND,
    },
    "cli": {"__init__", "jobs", "runs", "recipes", "records"} | GROUND,
    "__main__": {"cli"},
    "__init__": {"guidance", "objective", "score", "sde", "times", "truncation", "weighting"},
}

# The core reads like the paper: tensors, their shapes, and nothing else from outside.
CORE = {
    *("truncation", "sde", "times", "weighting"),
    *("prediction", "score", "objective", "guidance"),
}
CORE_LIBRARIES = {"torch", "jaxtyping"}

# What a program that only trains with our loss must not wait for.
HEAVY = [
    "accelerate",
    "diffusers",
    "jinja2",
    "matplotlib",
    "pandas",
    "pydantic",
    "sklearn",
    "softtrunc.networks",
    "torchmetrics",
    "torchvision",
]

# Types that jaxtyping gives a shape.
SHAPED = {"Bool", "Float", "Inexact", "Int", "Integer", "Num", "Shaped", "UInt8"}


class Import(NamedTuple):
    """An import statement: the part of the package it stands in, and the full name it fetches."""

    part: str
    target: str
    where: str


def entry_points(project: Path) -> Iterator[Import]:
    """Entry points of the package's own: one part fetches another without an import statement.

    Scripts are how programs start and import nothing for anybody.
    """
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    for group, points in declared.get("entry-points", {}).items():
        asking = group.removeprefix("softtrunc.").split(".")[0]
        for target in points.values():
            yield Import(asking, target.replace(":", "."), f"{project.name}: {group}")


def part_of(path: Path) -> str:
    """`sde` of `sde.py`, `networks` of `networks/blocks.py`, `__init__` of the package's own."""
    return path.parts[0].removesuffix(".py")


def imports(package: Path) -> Iterator[Import]:
    """Every import in the package, those inside functions and for type checkers included."""
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        inside = [package.name, *relative.parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = inside[: len(inside) - node.level + 1] if node.level else []
                base = [*base, *(node.module.split(".") if node.module else [])]
                names = [".".join([*base, alias.name]) for alias in node.names]
            for name in names:
                yield Import(part_of(relative), name, f"{relative}:{node.lineno}")


def offences(package: Path, arrows: dict[str, set[str]], project: Path | None = None) -> list[str]:
    """Imports of one part by another that the table of arrows does not have."""
    found = []
    every = imports(package)
    for part, target, where in every if project is None else chain(every, entry_points(project)):
        root, _, rest = target.partition(".")
        if root != package.name:
            continue
        # A name of the package itself, such as its version, is fetched from its __init__.
        other = rest.split(".")[0]
        other = other if other in arrows else "__init__"
        if other != part and other not in arrows.get(part, set()):
            found.append(f"{where}: {part} -> {other}")
    return found


def test_imports_follow_the_arrows():
    assert offences(PACKAGE, ARROWS, PROJECT) == []


def test_a_forbidden_entry_point_would_be_found(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project.entry-points."softtrunc.sde"]\nname = "softtrunc.recipes.load:load"\n'
    )
    found = offences(PACKAGE, ARROWS, project)
    assert found == ["pyproject.toml: softtrunc.sde: sde -> recipes"]


def test_no_file_is_longer_than_a_reader_bears():
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: n for name, n in lines.items() if n > LONGEST_FILE} == {}


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Every function of a file with its number of lines, its docstring aside."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                length -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, length


def test_no_function_needs_scrolling():
    found = {
        f"{path.relative_to(PACKAGE)}: {name}": length
        for path in PACKAGE.rglob("*.py")
        for name, length in function_lengths(path)
        if length > LONGEST_FUNCTION
    }
    assert found == {}


def test_every_part_of_the_package_has_its_arrows():
    parts = {part_of(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert parts == set(ARROWS)


def test_arrows_never_lead_back():
    seen: set[str] = set()
    rest = {part: set(targets) for part, targets in ARROWS.items() if part != "__main__"}
    while rest:
        free = {part for part, targets in rest.items() if targets <= seen}
        assert free, f"a circle among {sorted(rest)}"
        seen |= free
        rest = {part: targets for part, targets in rest.items() if part not in free}


@pytest.mark.parametrize(
    ("path", "line", "offence"),
    [
        ("sde.py", "from house.score import x", "sde -> score"),
        ("sde.py", "import house.score as s", "sde -> score"),
        ("sde.py", "from house import score", "sde -> score"),
        ("sde.py", "from .score import x", "sde -> score"),
        ("sde.py", "from . import score", "sde -> score"),
        ("sde.py", "from house import __version__", "sde -> __init__"),
        ("sde.py", "def f():\n    from house.score import x", "sde -> score"),
        ("networks/blocks.py", "from ..sde import x", "networks -> sde"),
        ("networks/blocks.py", "from house.sde import x", "networks -> sde"),
        ("networks/blocks.py", "from .other import x", None),
        ("networks/blocks.py", "import torch, housekeeping", None),
        ("score.py", "from house.sde import x", None),
    ],
)
def test_a_forbidden_import_would_be_found(tmp_path, path, line, offence):
    file = tmp_path / "house" / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    arrows = {"sde": set(), "networks": set(), "score": {"sde"}}
    found = offences(tmp_path / "house", arrows)
    assert [text.split(": ")[1] for text in found] == ([offence] if offence else [])


def test_the_core_stands_on_tensors_alone():
    outside = {
        (part, name)
        for part, target, _ in imports(PACKAGE)
        if part in CORE and (name := target.split(".")[0]) not in sys.stdlib_module_names
    }
    assert {name for _, name in outside} <= CORE_LIBRARIES | {"softtrunc"}


# Public names are fetched on first use: use them all; and then what draws and measures.
LOAD = """
import sys, torch
before = set(sys.modules)
import softtrunc
for name in softtrunc.__all__:
    getattr(softtrunc, name)
print(*(set(sys.modules) - before))
from softtrunc.networks import ScoreUNet, preset
with torch.device("meta"):
    softtrunc.ScoreModel(ScoreUNet(preset("ncsnpp", image_size=32, channels=3)), softtrunc.VPSDE())
ScoreUNet(preset("tiny", image_size=8, channels=1))
import softtrunc.data
softtrunc.data.load_digits_split("train")
print(*(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def loading() -> list[set[str]]:
    """What a fresh interpreter has loaded after importing everything public, and after a model."""
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_importing_the_package_loads_nothing_heavy(loading):
    assert "softtrunc.objective" in loading[0]
    assert loading[0].isdisjoint(HEAVY)


def test_a_model_and_the_digits_load_no_compiler_and_no_scikit_learn(loading):
    assert "softtrunc.networks.score_unet" in loading[1]
    assert loading[1].isdisjoint({"torch._dynamo", "sympy", "sklearn", "scipy"})


def test_recipes_and_the_names_of_figures_need_no_torch():
    line = (
        "import sys, softtrunc.recipes, softtrunc.evaluation.figure; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_there_and_no_others():
    for name in softtrunc.__all__:
        assert getattr(softtrunc, name) is not None
    with pytest.raises(AttributeError, match="SoftTruncatedLoss"):
        _ = softtrunc.SoftTruncatedLoss


def test_shapes_in_annotations_are_strings():
    """Unquoted, `b *event` parses as a product: nothing would be checked, and nothing said."""
    unquoted = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Subscript(
                    value=ast.Name(id=name),
                    slice=ast.Tuple(elts=[_, ast.Constant(value=str(shape))]),
                ) if name in SHAPED and "*" not in shape.split():
                    continue
                case ast.Subscript(value=ast.Name(id=name)) if name in SHAPED:
                    unquoted.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert unquoted == []


def test_signatures_are_checked_while_tests_run():
    sde, x = softtrunc.VPSDE(), torch.zeros(2, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        sde.perturb(x, torch.tensor(0.5), torch.zeros(2, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        sde.prior_log_prob(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(jaxtyping.TypeCheckError):
        softtrunc.PowerPrior("one")
