"""Which figures a run has: each of its own protocol and images, none in the place of another."""

from __future__ import annotations

import json
import shutil

import jaxtyping
import pytest

from softtrunc.cli import main
from softtrunc.evaluation.features import extractor_identity
from softtrunc.jobs.measure import measure
from softtrunc.jobs.measured import is_measured, measured_figures
from softtrunc.jobs.study import Cell, _measured_runs
from softtrunc.jobs.train import train
from softtrunc.recipes import UserError, load_recipe
from softtrunc.recipes.load import override_recipe
from softtrunc.records import read_evaluation
from softtrunc.report import read_run, summary_rows, write_report
from softtrunc.runs.folder import Run

pytestmark = pytest.mark.usefixtures("unchecked")

RECIPE = load_recipe(
    "digits-vp-nll-st",
    [
        "training={steps: 4, batch_size: 8}",
        "network.options={base_channels: 8}",
        "sampling={sampler: heun, steps: 2}",
        "evaluation={samples: 40, figures: [nelbo], nelbo_draws: 2, batch_size: 360}",
    ],
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    train(RECIPE, folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """Measured as the recipe says."""
    copy = shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "run")
    jaxtyping.config.update("jaxtyping_disable", True)
    measure(copy)
    jaxtyping.config.update("jaxtyping_disable", False)
    return Run(copy)


def figures(run):
    return read_evaluation(run.evaluation_file).figures


def varied(*changes):
    return override_recipe(RECIPE, changes, "test")


def test_a_few_images_are_no_finished_measurement(run):
    measure(run.path, samples=("fid",), limit=2)
    assert figures(run)[0].protocol["n"] == 2
    assert not is_measured(run, RECIPE)
    measure(run.path, samples=())
    assert is_measured(run, RECIPE)
    # The preview of the same protocol made way.
    assert [f.key for f in figures(run)].count("nelbo") == 1


@pytest.mark.parametrize(
    "change",
    [
        "evaluation.eps=1e-3",
        "evaluation.nelbo_draws=3",
        "evaluation.passes=2",
        "evaluation.seed=1",
        "evaluation.figures=[nelbo, nll]",
        "evaluation.samples=41",
        "evaluation.features=inception",
        "sampling.steps=3",
        "sampling={sampler: dpm_solver, steps: 2}",
        "training.steps=5",
    ],
)
def test_every_setting_of_the_protocol_counts(whole, change):
    assert is_measured(whole, RECIPE)
    assert is_measured(whole, varied("evaluation.batch_size=7"))  # decides no number
    assert not is_measured(whole, varied(change))


def test_other_images_and_other_weights_are_no_measurement_of_this_recipe(run):
    measure(run.path, split="train", samples=())
    measure(run.path, density=False)
    assert not is_measured(run, RECIPE)
    measure(run.path, samples=())
    assert is_measured(run, RECIPE)
    measure(run.path, weights="raw")
    assert not is_measured(run, RECIPE)


def test_a_new_protocol_stands_beside_the_old_one(whole, tmp_path):
    run = Run(shutil.copytree(whole.path, tmp_path / "runs" / "run_seed=0"))
    before = measured_figures(run, RECIPE)
    changes = ["evaluation.eps=1e-3", "sampling.steps=3"]
    other = varied(*changes)
    measure(run.path, overrides=changes)
    assert is_measured(run, RECIPE)
    assert is_measured(run, other)
    assert measured_figures(run, RECIPE) == before
    assert [f.protocol["eps"] for f in figures(run) if f.key == "nelbo"] == [1e-5, 1e-3]
    ours, theirs = ({f.key: f for f in measured_figures(run, recipe)} for recipe in (RECIPE, other))
    assert ours.keys() == theirs.keys()
    assert ours["nelbo"].value != theirs["nelbo"].value
    steps = [f["frechet_distance"].protocol["sampler"]["steps"] for f in (ours, theirs)]
    assert steps == [2, 3]
    # A report shows what was measured last, a study in each of its cells what the cell asks for.
    assert read_run(run.path).figure("nelbo") == theirs["nelbo"]
    cells = [Cell(name, "run", {}, {0: r}, None) for name, r in (("a", RECIPE), ("b", other))]
    shown = [_measured_runs(cell, tmp_path)[0].figure("nelbo") for cell in cells]
    assert shown == [ours["nelbo"], theirs["nelbo"]]
    # Once more the same: in its own place.
    measure(run.path, overrides=changes)
    assert len(figures(run)) == 2 * len(before)


def test_each_figure_says_which_images_it_is_of(run, tmp_path):
    again = Run(shutil.copytree(run.path, tmp_path / "again"))
    for one in (run, again):
        measure(one.path, samples=(), limit=20)
    measure(run.path, density=False, samples=("fid", "kid", "is"))
    content = json.loads(run.evaluation_file.read_text())
    assert "data" not in content
    data = {f["key"]: f["data"] for f in content["figures"]}
    assert (data["nelbo"]["split"], data["nelbo"]["n"]) == ("test", 360)
    assert data["nelbo"]["value_range"] == [-1.0, 1.0]
    for key in ("frechet_distance", "kernel_distance"):
        assert (data[key]["split"], data[key]["n"]) == ("train", 1437)
        assert (data[f"{key}_test"]["split"], data[f"{key}_test"]["n"]) == ("test", 360)
    assert data["frechet_distance"]["fingerprint"] != data["nelbo"]["fingerprint"]
    assert data["frechet_distance_test"]["fingerprint"] == data["nelbo"]["fingerprint"]
    assert data["inception_score"] is None  # compared with nothing
    table = summary_rows([read_run(one.path) for one in (run, again)])
    assert not [words for words in table.cautions if "NELBO" in words]


def test_several_eps_in_one_go(run, capsys, tmp_path):
    command = ["evaluate", str(run.path), "--limit", "8"]
    assert main([*command, "--eps", "1e-5,1e-3,1e-3", "--eps", "1e-5,1e-3"]) == 0
    printed = capsys.readouterr().out
    # The recipe's own stands last, where a report looks for the figure of a kind.
    assert [f.protocol["eps"] for f in figures(run)] == [1e-3, 1e-5]
    assert "eps" in printed
    assert "0.001" in printed
    assert not (run.path / "evaluation.partial").exists()
    assert main([*command, "--bpd"]) == 0
    assert len(figures(run)) == 2
    for wrong, words in (("1e-5,x", "write times with commas"), ("2.0", "--eps: evaluation.eps")):
        assert main([*command, "--eps", wrong]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match="of one eps"):
        measure(run.path, eps=(1e-5, 1e-3), per_image=tmp_path / "table.csv")


def test_lossless_figures_that_begin_at_one_time_are_measured_once(run):
    lossless = "evaluation.figures=[nelbo_lossless]"
    measure(run.path, samples=(), eps=(1e-5, 1e-4), limit=8, overrides=[lossless])
    assert [f.key for f in figures(run)] == ["nelbo_lossless"]


def test_an_extractor_is_known_by_its_content(tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(b"one")
    first = extractor_identity(str(path))
    path.write_bytes(b"two")
    assert extractor_identity(str(path)) != first
    assert extractor_identity("digits-mlp") == {"extractor": "digits-mlp"}
    with pytest.raises(OSError, match=r"nowhere\.pt"):
        extractor_identity("nowhere.pt")


def test_figures_of_other_checkpoints_and_weights_stay(trained, tmp_path, capsys):
    options = ["training.checkpoint_every=2", "training.keep_checkpoints=null"]
    train(override_recipe(RECIPE, options, "test"), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert main(["evaluate", str(run.path), "--checkpoint", "all", "--bpd"]) == 0
    newest = read_evaluation(run.evaluation_file)
    earlier = read_evaluation(run.earlier_evaluation_file(2, "ema"))
    assert (earlier.step, newest.step) == (2, 4)
    assert earlier.figures[0].value != newest.figures[0].value
    measure(run.path, samples=(), weights="raw")
    assert read_evaluation(run.evaluation_file).weights == "raw"
    assert read_evaluation(run.earlier_evaluation_file(4, "ema")).figures == newest.figures
    measure(run.path, samples=(), limit=3, overrides=["evaluation.eps=1e-3"])
    back = read_evaluation(run.evaluation_file)
    assert (back.weights, back.figures[0], len(back.figures)) == ("ema", newest.figures[0], 2)
    record = read_run(run.path)
    points = record.over_steps("nelbo", newest.figures[0].name)
    assert [step for step, _ in points] == [2, 4]
    page = write_report([run.path], tmp_path / "report.html").read_text()
    assert "Figures by training step" in page
    capsys.readouterr()
    for wanted, words in (("3", "write one of 2, 4"), ("last", "write a step, or all")):
        assert main(["evaluate", str(run.path), "--checkpoint", wanted]) == 2
        assert words in capsys.readouterr().err
