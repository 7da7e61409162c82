"""`softtrunc recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["recipes"]

recipes = typer.Typer(help="What can be trained.", no_args_is_help=True, rich_markup_mode=None)


@recipes.command("list")
def show_list() -> None:
    """List the recipes."""
    from rich.table import Table

    from softtrunc.cli.console import stdout
    from softtrunc.recipes import load_recipe, recipe_names

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("recipe", "data", "network", "SDE", "weighting", "truncation", "description"):
        table.add_column(column, no_wrap=column != "description")
    for name in recipe_names():
        recipe = load_recipe(name)
        truncation = "hard" if recipe.truncation.hard else f"k = {recipe.truncation.k:g}"
        table.add_row(
            name,
            recipe.data.source or "your images",
            recipe.network.preset,
            recipe.sde.kind,
            recipe.objective.weighting,
            truncation,
            recipe.description,
        )
    stdout().print(table)


@recipes.command("show")
def show_one(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")
    ] = None,
) -> None:
    """Print a recipe with every default written out."""
    from softtrunc.recipes import dump_recipe, load_recipe

    typer.echo(dump_recipe(load_recipe(name, overrides or [])), nl=False)
