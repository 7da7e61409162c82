"""What a run may be gone on with."""

from __future__ import annotations

import numpy as np
import pytest

from softtrunc.data import ImageDataset
from softtrunc.feedback.errors import UserError
from softtrunc.recipes import load_recipe
from softtrunc.runs.folder import Run

IMAGES = np.zeros((2, 1, 8, 8), dtype=np.uint8)
CARD = ImageDataset.create(IMAGES, name="black", split="train", source="test", levels=17).card


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_more_steps_are_refused_where_they_decide_the_learning_rate(tmp_path, schedule):
    def recipe(steps):
        told = [f"training.schedule={schedule}", f"training.steps={steps}"]
        return load_recipe("digits-vp-nll-st", told)

    run = Run(tmp_path / "run")
    run.start(recipe(6000), CARD)
    run.check_same(recipe(6000), CARD)
    if schedule == "constant":
        run.check_same(recipe(7000), CARD)
    else:
        with pytest.raises(UserError, match=r"training\.steps was 6000, is 7000"):
            run.check_same(recipe(7000), CARD)
    other = "linear" if schedule != "linear" else "cosine"
    changed = load_recipe("digits-vp-nll-st", [f"training.schedule={other}"])
    with pytest.raises(UserError, match=r"training\.schedule was"):
        run.check_same(changed, CARD)
