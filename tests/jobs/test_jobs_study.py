"""Which runs a study makes, what it compares with what, and when a run counts as finished."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest

from softtrunc.cli import main
from softtrunc.evaluation.figure import FORMS
from softtrunc.jobs.measured import density_protocol, is_measured, samples_protocol
from softtrunc.jobs.side_by_side import measuring_overrides
from softtrunc.jobs.study import _by_folder, _check_place, _is_done, plan_study
from softtrunc.recipes import UserError, dump_recipe
from softtrunc.recipes.build import build_sde
from softtrunc.recipes.load import override_recipe
from softtrunc.runs.folder import Run

pytestmark = pytest.mark.usefixtures("unchecked")


def test_values_are_crossed_with_each_other_and_with_seeds():
    cells = plan_study(
        ["digits-vp-nll-st"],
        ["truncation.k=0.9,inf", "truncation.eps=1e-5,0.001"],
        seeds=2,
        overrides=["training.steps=7"],
    )
    assert [cell.label for cell in cells] == [
        "k=0.9, eps=1e-5",
        "k=0.9, eps=1e-3",
        "k=inf, eps=1e-5",
        "k=inf, eps=1e-3",
    ]
    laws = [(c.recipes[0].truncation.k, c.recipes[0].truncation.eps) for c in cells]
    assert laws == [(0.9, 1e-5), (0.9, 1e-3), (math.inf, 1e-5), (math.inf, 1e-3)]
    for cell in cells:
        assert {seed: r.training.seed for seed, r in cell.recipes.items()} == {0: 0, 1: 1}
        assert {r.training.steps for r in cell.recipes.values()} == {7}
    # Along the last key, everything else equal.
    assert [cell.baseline for cell in cells] == [None, "k=0.9, eps=1e-5", None, "k=inf, eps=1e-5"]
    folders = {cell.folder(seed) for cell in cells for seed in cell.recipes}
    assert len(folders) == 8
    assert "k=0.9_eps=1e-5_seed=1" in folders


def test_the_baseline_may_be_chosen():
    cells = plan_study(
        ["digits-vp-nll", "digits-vp-fid"],
        ["truncation.k=1,inf"],
        seeds=1,
        baseline="truncation.k=inf",
    )
    assert [(cell.label, cell.baseline) for cell in cells] == [
        ("digits-vp-nll, k=1", "digits-vp-nll, k=inf"),
        ("digits-vp-nll, k=inf", None),
        ("digits-vp-fid, k=1", "digits-vp-fid, k=inf"),
        ("digits-vp-fid, k=inf", None),
    ]
    assert [cell.recipes[0].objective.weighting for cell in cells] == [
        *["likelihood"] * 2,
        *["variance"] * 2,
    ]
    cells = plan_study(
        ["digits-vp-nll", "digits-vp-fid"], [], seeds=1, baseline="recipe=digits-vp-fid"
    )
    assert [cell.baseline for cell in cells] == ["digits-vp-fid", None]


def test_several_keys_change_at_once():
    cells = plan_study(
        ["digits-vp-nll-st"],
        ["objective={weighting: likelihood},{weighting: variance, times: uniform, average: true}"],
        seeds=1,
    )
    assert [cell.label for cell in cells] == [
        "weighting=likelihood",
        "weighting=variance,times=uniform,average=true",
    ]
    objectives = [cell.recipes[0].objective for cell in cells]
    assert [o.times for o in objectives] == ["importance", "uniform"]
    assert [o.average for o in objectives] == [False, True]


def test_settings_that_training_does_not_know_of_share_its_runs(tmp_path):
    cells = plan_study(
        ["digits-vp-nll-st"],
        ["truncation.k=1,inf", "evaluation.eps=1e-5,1e-4", "sampling.steps=5,10"],
        seeds=2,
    )
    assert len({cell.label for cell in cells}) == 8
    assert cells[1].label == "k=1, eps=1e-5, steps=10"
    folders = _by_folder(cells, tmp_path)
    names = ["k=1_seed=0", "k=1_seed=1", "k=inf_seed=0", "k=inf_seed=1"]
    assert [path.name for path in folders] == names
    for path, recipes in folders.items():
        asked = [(r.evaluation.eps, r.sampling.steps) for r in recipes]
        assert asked == [(1e-5, 5), (1e-5, 10), (1e-4, 5), (1e-4, 10)]
        assert len({(r.truncation, r.training) for r in recipes}) == 1
        run = Run(path)
        path.mkdir(parents=True)
        # Whatever the run was told of evaluation, the settings for it say how it is measured.
        run.recipe_file.write_text(dump_recipe(recipes[0]))
        assert run.recipe() != recipes[1]
        told = override_recipe(run.recipe(), measuring_overrides(recipes[1]), "here")
        assert told == recipes[1]
    # A study of evaluation alone needs one run a seed, and what depends on the seed is no such key.
    (path,) = _by_folder(
        plan_study(["digits-vp-nll"], ["evaluation.eps=1e-5,1e-4"], seeds=1), tmp_path
    )
    assert path.name == "digits-vp-nll_seed=0"


def test_one_recipe_alone_is_a_study_of_seeds():
    (cell,) = plan_study(["digits-vp-nll"], [], seeds=3)
    assert (cell.label, cell.baseline, len(cell.recipes)) == ("digits-vp-nll", None, 3)


@pytest.mark.parametrize(
    ("vary", "baseline", "words"),
    [
        (["truncation.k"], None, "write key=value"),
        (["truncation.k="], None, "write key=value"),
        (["truncation.k=1,1.0"], None, "stands twice"),
        (["truncation.k=1", "truncation.k=2"], None, "given twice"),
        (["truncation.kk=1"], None, "did you mean 'k'?"),
        (["truncation.k=-1"], None, "truncation.k=-1: input should be greater than or equal to 0"),
        (["truncation.k=.nan"], None, "truncation.k=nan: input should be greater"),
        ([f"training.steps=1{'0' * 400}"], None, "training.steps=1000"),
        (["training.seed=1,2"], None, "give --seeds"),
        (["truncation.k=[1"], None, "not valid YAML"),
        (["truncation.k=1,2"], "truncation.eps=1", "is not varied"),
        (["truncation.k=1,2"], "truncation.k=3", "takes 1, 2"),
    ],
)
def test_mistakes_are_named_before_anything_runs(vary, baseline, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?").replace("[", r"\[")):
        plan_study(["digits-vp-nll"], vary, seeds=1, baseline=baseline)


def test_a_study_without_anything_to_measure_is_refused():
    with pytest.raises(UserError, match=r"evaluation\.features=inception"):
        plan_study(["stl10-uncsnpp-rve-st"], [], seeds=1)
    (cell,) = plan_study(
        ["stl10-uncsnpp-rve-st"], [], seeds=1, overrides=["evaluation.features=inception"]
    )
    assert cell.label == "stl10-uncsnpp-rve-st"


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        _check_place(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        _check_place(tmp_path / "thesis.txt")


def test_a_run_is_finished_when_its_last_step_is_measured_whole(tmp_path):
    (cell,) = plan_study(["digits-vp-nll"], [], seeds=1, overrides=["training.steps=9"])
    recipe, run = cell.recipes[0], Run(tmp_path / "run")
    assert not _is_done(run.path, recipe)
    run.path.mkdir()
    run.recipe_file.write_text(dump_recipe(recipe))
    keys = ["nll_residual", "nll", "nelbo", "frechet_distance", "frechet_distance_test"]

    def figure(key: str) -> dict[str, object]:
        split = "train" if key == "frechet_distance" else "test"
        data = {"name": "digits", "split": split, "n": 360, "fingerprint": "f", "levels": 17}
        if key in FORMS:
            data["value_range"] = [-1.0, 1.0]
            protocol = density_protocol(recipe).describe(key, build_sde(recipe), 17, (-1.0, 1.0))
            protocol |= {"split": "test", "n": 360}
        else:
            protocol = samples_protocol(recipe) | {
                "samples": recipe.evaluation.samples,
                "extractor": "digits-mlp",
                "reference": f"digits {split}",
                "n_reference": 360,
            }
        return {"key": key, "value": 1.0, "data": data, "protocol": protocol}

    def store(step: int, kept: list[str]) -> None:
        content = {"step": step, "weights": "ema", "figures": [figure(key) for key in kept]}
        run.evaluation_file.write_text(json.dumps(content))

    for step, kept, done in ((9, keys, True), (9, keys[:-1], False), (8, keys, False)):
        store(step, kept)
        assert is_measured(run, recipe) is done
    store(9, keys)
    assert _is_done(run.path, recipe)
    (other,) = plan_study(["digits-vp-nll"], [], seeds=1, overrides=["training.steps=10"])
    assert not _is_done(run.path, other.recipes[0])
    run.evaluation_file.write_text("{")
    assert not is_measured(run, recipe)


DOCUMENTED = re.findall(
    r"softtrunc (study [^`\n]+)",
    (Path(__file__).parents[2] / "docs" / "ablations.md").read_text(encoding="utf-8"),
)


@pytest.mark.parametrize("command", DOCUMENTED)
def test_the_documented_ablations_are_commands(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.split()) >= 6


def test_all_of_the_papers_ablations_are_documented():
    assert len(DOCUMENTED) >= 7
