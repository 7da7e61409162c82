"""What a user's recipe is called, and in whose words."""

from __future__ import annotations

import pytest

from softtrunc.recipes import load_recipe


@pytest.mark.parametrize(
    ("own", "description"),
    [("", "after digits-vp-nll"), ("description: as I want it\n", "as I want it")],
)
def test_a_recipe_that_extends_one_has_its_own_name_and_words(tmp_path, own, description):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: digits-vp-nll\ntruncation: {{k: 0.9}}\n{own}")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.description) == ("mine", description)
    # Recipes of the package that extend each other keep what they say.
    assert load_recipe("digits-vp-nll-st").description.startswith("Soft Truncation")
