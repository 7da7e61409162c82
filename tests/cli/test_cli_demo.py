"""The demo from end to end, with few steps."""

import json

import pytest
from command_line import start

from softtrunc.cli import main
from softtrunc.recipes.demo import _clear, _unfinished, demo_recipes


@pytest.mark.slow
def test_demo_trains_measures_and_reports(tmp_path):
    process = start("demo", "--out", "demo", "--steps", "12", cwd=tmp_path)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    for name in ("hard", "soft-k1"):
        evaluation = json.loads((tmp_path / "demo" / name / "evaluation.json").read_text())
        assert {f["key"] for f in evaluation["figures"]} >= {"nll_residual", "nelbo"}
        assert name in out
        assert f"nll_residual {name}: 360/360" in err
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "hard" in page
    assert "soft-k1" in page


def test_a_finished_demo_is_replaced_and_an_unfinished_one_goes_on(tmp_path):
    recipes = demo_recipes(full=False, steps=20)
    assert not _unfinished(tmp_path, recipes)
    for name, step in (("hard", 20), ("soft-k1", 10)):
        (tmp_path / name / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert _unfinished(tmp_path, recipes)
    (tmp_path / "soft-k1" / "checkpoints" / "step-00000020").mkdir()
    assert not _unfinished(tmp_path, recipes)
    (tmp_path / "report.html").write_text("")
    _clear(tmp_path)
    assert not tmp_path.exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, unchecked):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"
