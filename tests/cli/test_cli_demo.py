"""The demo from end to end, with few steps."""

import json

import pytest
from command_line import start

from softtrunc.cli import main


@pytest.mark.slow
def test_demo_trains_measures_reports_and_replaces_itself(tmp_path):
    for _ in range(2):
        process = start("demo", "--out", "demo", "--steps", "12", cwd=tmp_path)
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
    for name in ("hard", "soft-k1"):
        evaluation = json.loads((tmp_path / "demo" / name / "evaluation.json").read_text())
        assert {f["key"] for f in evaluation["figures"]} >= {"nll_residual", "nelbo"}
        assert name in out
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "hard" in page
    assert "soft-k1" in page
    assert "train soft-k1: 12/12" in err


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, unchecked):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"
