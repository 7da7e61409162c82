"""`softtrunc recipes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from softtrunc.cli.options import Overrides, RecipeName

if TYPE_CHECKING:
    from softtrunc.recipes import Recipe

recipes = typer.Typer(
    help="List the recipes, or show one.", no_args_is_help=True, rich_markup_mode=None
)

_WEIGHTINGS = {"likelihood": "g²", "variance": "σ²", "edm": "EDM", "mixed": "g² + σ²"}


def _weighting(recipe: Recipe) -> str:
    mixed = recipe.objective.mixed
    words = _WEIGHTINGS[recipe.objective.weighting]
    if recipe.objective.weighting == "mixed":
        words += f", {mixed.coefficient:g}{' balanced' if mixed.balanced else ''}"
    return words


def _prior(recipe: Recipe) -> str:
    law = recipe.truncation
    words = law.words
    if law.eps != 1e-5:
        words += f", eps {law.eps:.0e}"
    return words if law.hard or law.tau_max == 1.0 else f"{words}, tau < {law.tau_max:.3g}"


def _network(recipe: Recipe) -> str:
    name = recipe.network.preset
    unbounded = (recipe.network.conditioning or "").startswith("unbounded")
    return f"{name}, unbounded" if unbounded and not name.startswith("u") else name


def _sde(recipe: Recipe) -> str:
    sde = recipe.sde
    if sde.kind in ("ve", "rve"):
        return f"{sde.kind.upper()} {sde.sigma_min:g} … {sde.sigma_max:g}"
    return sde.kind.upper()


def _paper(recipe: Recipe) -> str:
    paper = recipe.paper
    if paper is None:
        return ""
    named = {"FID": paper.fid, "IS": paper.inception_score, "bpd": paper.bits_per_dim}
    return ", ".join(f"{name} {value:.2f}" for name, value in named.items() if value is not None)


@recipes.command("list")
def show_list() -> None:
    """List all recipes with network, SDE and the paper's figures."""
    from softtrunc.cli.console import stdout
    from softtrunc.cli.table import plain_table
    from softtrunc.jobs.plan import parameters_of
    from softtrunc.recipes import load_recipe, recipe_names

    columns = ("recipe", "data", "network", "parameters", "SDE", "weight", "prior", "paper")
    table = plain_table(columns, numbers=["parameters"], whole=["recipe", "network"])
    for name in recipe_names():
        recipe = load_recipe(name)
        count = parameters_of(recipe)
        table.add_row(
            name,
            recipe.data.preset or recipe.data.source or "your images",
            _network(recipe),
            "" if count is None else f"{count / 1e6:.1f} M",
            _sde(recipe),
            _weighting(recipe),
            _prior(recipe),
            _paper(recipe),
        )
    stdout(170).print(table)


@recipes.command("show")
def show_one(
    name: RecipeName,
    overrides: Overrides = None,
) -> None:
    """Print a recipe with every default written out."""
    from softtrunc.cli.console import echo
    from softtrunc.recipes import dump_recipe, load_recipe

    echo(dump_recipe(load_recipe(name, overrides or [])), nl=False)
