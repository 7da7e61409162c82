"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperCommand


def offering(*names: str) -> Callable[[str], list[str]]:
    """What the shell completes to: the names that begin with what was typed."""

    def offer(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return offer


def offer_recipes(incomplete: str) -> list[str]:
    """The recipes of the package that begin with what was typed; a shell then offers files."""
    from softtrunc.recipes import recipe_names

    return offering(*recipe_names())(incomplete)


def _shipped(path: Path | None) -> Path | None:
    """Names of models that ship stand for runs made of them."""
    if path is None or path.exists() or len(path.parts) != 1:
        return path
    from softtrunc.jobs.adopt import shipped_run

    return shipped_run(path.name) or path


def _all_shipped(paths: list[Path]) -> list[Path]:
    return [found for path in paths if (found := _shipped(path)) is not None]


_SAMPLERS = ("pc", "euler_maruyama", "ancestral", "ode", "heun", "dpm_solver")
_PRECISIONS = ("fp32", "bf16", "fp16")

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a recipe, or a YAML file.",
        autocompletion=offer_recipes,
    ),
]
_RUN = "A run folder, or fashion16, the model that comes with the package."
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help=_RUN, callback=_shipped)]
MaybeRunFolder = Annotated[Path | None, typer.Argument(metavar="RUN", help=_RUN, callback=_shipped)]
RunFolders = Annotated[
    list[Path],
    typer.Argument(metavar="RUN [RUN]", help="A run, or two to compare.", callback=_all_shipped),
]
Weights = Annotated[Literal["ema", "raw"], typer.Option(help="Averaged weights, or the last ones.")]
Ema = Annotated[
    float | None,
    typer.Option(
        "--ema",
        metavar="LENGTH",
        help="Average over this share of the training, e.g. 0.05; needs training.posthoc_ema.",
    ),
]
Data = Annotated[
    str | None, typer.Option(help="The images: a folder, archive or prepared data set.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the recipe: --set truncation.k=0.9"
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="pc, euler_maruyama, ancestral, ode, heun or dpm_solver.",
        autocompletion=offering(*_SAMPLERS),
    ),
]
Steps = Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps of the sampler.")]
Label = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help="A class, by name or number; all: every class in turn; none: without a class.",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(metavar="N", min=-1.0, help="Scale of classifier-free guidance; 0: none."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Precision of the network: fp32, bf16 or fp16.", autocompletion=offering(*_PRECISIONS)
    ),
]


def as_overrides(
    keys: Mapping[str, object], given: Sequence[str] | None, label: str | None = None
) -> list[str]:
    """Options as `--set`s of these keys, before those that were given themselves.

    Args:
        keys: what options say, None where they say nothing.
        given: every `--set`.
        label: what `--class` says.
    """
    # JSON's quotes are YAML's too, whatever a path holds.
    told = [f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None]
    if label is not None:
        told.append(f"sampling.label={json.dumps(None if label == 'all' else label)}")
    return [*told, *(given or [])]


def figures_of(dequantization: str | None) -> Sequence[str] | None:
    """The figures in bits/dim that `--dequantization NAME` means, None where it is not given.

    Raises:
        UserError: if there is no such dequantization.
    """
    from softtrunc.feedback.errors import UserError, nearest
    from softtrunc.recipes.schema import FIGURES_BY_DEQUANTIZATION as KNOWN

    if dequantization is not None and dequantization not in KNOWN:
        raise UserError(f"--dequantization {dequantization}: {nearest(dequantization, KNOWN)}")
    return None if dequantization is None else KNOWN[dequantization]


class Command(TyperCommand):
    """A command whose context is of the class that typer says it is."""

    context_class = typer.Context


def refuse_unused(context: typer.Context, why: str, *names: str) -> None:
    """Refuse options that were given and would change nothing.

    Args:
        context: of the command.
        why: what makes them useless.
        names: parameters of the command, as Python calls them.

    Raises:
        UserError: naming those that stand on the command line.
    """
    from softtrunc.feedback.errors import UserError

    told = [
        next((flag for flag in parameter.opts if flag.startswith("--")), str(parameter.name))
        for parameter in context.command.params
        if parameter.name in names and _is_given(context, parameter.name)
    ]
    if told:
        raise UserError(f"{', '.join(told)}: {why}: leave {'it' if len(told) == 1 else 'them'} out")


def chosen_weights(
    context: typer.Context, weights: Literal["ema", "raw"], ema: float | None
) -> Literal["ema", "raw"] | float:
    """What --weights and --ema say together.

    Raises:
        UserError: if both are given.
    """
    if ema is None:
        return weights
    refuse_unused(context, "--ema says which weights", "weights")
    return ema


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
