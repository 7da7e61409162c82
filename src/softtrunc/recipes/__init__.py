"""Recipes: whole experiments as validated YAML, and the only place that turns names into objects.

This module holds what needs no torch; `build`, `train`, `measure` and `demo` are imported by name.
"""

from softtrunc.feedback.errors import UserError
from softtrunc.recipes.load import dump_recipe, load_recipe, recipe_names
from softtrunc.recipes.schema import Recipe

__all__ = ["Recipe", "UserError", "dump_recipe", "load_recipe", "recipe_names"]
