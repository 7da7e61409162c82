"""The demo from end to end, with few steps."""

import json
from functools import partial

import forked  # noqa: F401 - the server whose processes the demo's runs are
import numpy as np
import pytest

from softtrunc.cli import main
from softtrunc.data import open_dataset
from softtrunc.jobs import demo
from softtrunc.jobs.anatomy import anatomy
from softtrunc.jobs.demo import _clear, _unfinished, demo_recipes
from softtrunc.recipes import UserError, dump_recipe, load_recipe


@pytest.mark.slow
def test_demo_trains_measures_and_reports(tmp_path, monkeypatch, capsys, unchecked):
    # A part of the images: every one of them would be judged and measured.
    few = {}
    for split, count in (("train", 100), ("test", 60)):
        data = open_dataset("fashion16", split)
        few |= {f"x_{split}": data.images[:count], f"y_{split}": data.labels[:count]}
    np.savez(tmp_path / "few.npz", **few)
    small = ["evaluation={samples: 40, nelbo_draws: 1}", "network.options={base_channels: 8}"]
    small += [f"data.source={tmp_path / 'few.npz'}"]
    monkeypatch.setattr(
        demo, "load_recipe", lambda name, changes: load_recipe(name, [*small, *changes])
    )
    few = partial(anatomy, images=4, samples=20, bins=2, times=1)
    monkeypatch.setattr(demo, "_take_apart", few)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "4"]) == 0
    told = capsys.readouterr()
    for name in ("hard", "soft"):
        evaluation = json.loads((out / name / "evaluation.json").read_text())
        assert {f["key"] for f in evaluation["figures"]} == {"nelbo", "frechet_distance"}
        assert name in told.out
    page = (out / "report.html").read_text()
    assert "Which times decide samples" in page
    assert (out / "hard" / "anatomy" / "anatomy.html").is_file()


def test_a_finished_demo_is_replaced_and_an_unfinished_one_goes_on(tmp_path):
    recipes = demo_recipes(full=False, steps=20)
    assert not _unfinished(tmp_path, recipes)
    for (name, recipe), step in zip(recipes.items(), (20, 10), strict=True):
        (tmp_path / name / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (tmp_path / name / "recipe.yaml").write_text(dump_recipe(recipe))
    assert _unfinished(tmp_path, recipes)
    (tmp_path / "soft" / "checkpoints" / "step-00000020").mkdir()
    assert _unfinished(tmp_path, recipes)  # trained, but not measured
    for name in recipes:
        (tmp_path / name / "evaluation.json").write_text("{}")
    assert _unfinished(tmp_path, recipes)  # measured, but no page
    (tmp_path / "report.html").write_text("")
    assert not _unfinished(tmp_path, recipes)
    _clear(tmp_path)
    assert not tmp_path.exists()


def test_a_run_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "recipe.yaml").write_text(dump_recipe(load_recipe("folder-32")))
    with pytest.raises(UserError, match="'hard', which the demo did not write"):
        _clear(tmp_path)
    assert (tmp_path / "hard" / "recipe.yaml").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, unchecked):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"
